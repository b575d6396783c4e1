"""Guided: learns from what was trained which networks are worth training, inside what fits; the default.

A model of loss (`nas.search.surrogate`) is asked which candidate is expected to improve most on the best: what is
likely good, or unknown enough. Candidates are even draws, mutations of the best, and the exact best of the linear part
of draws of the model, found over the whole set (Thompson sampling). With two objectives it is the expected gain of the
front (hypervolume), latency being known exactly. A tenth of the candidates is drawn by chance, so that a wrong model
cannot trap the search. Where the request names features, the most promising candidates are scored by them, and a model
that knows these scores chooses; and of the candidates before there is a model, every other is the one of a few even
draws whose scores are best.
"""

from __future__ import annotations

import itertools

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy import stats

from nas.search.lattice import Path
from nas.search.samplers._context import Context, History, PathSampler
from nas.search.surrogate import Surrogate, standardized

SPREAD_OUT = 8  # candidates that fill the set before a model is asked
BY_CHANCE = 10  # every so many trials one is drawn evenly
EVEN, BEST, MUTATIONS = 192, 5, 12  # candidates: even draws, whose mutations, how many of each
TURNS, KEPT = 3, 32  # how often the best candidates are mutated further, and how many of them are left
HEATS = ((0.0, 3), (0.5, 2), (1.0, 2), (1.0, 2))  # of draws that are maximized exactly (0: the mean), how many best
SHORTLIST = 8  # candidates a trial whose features are asked for
FRONT_DRAWS, LEVELS = 8, 12  # of the model, and of latency, with two objectives


class Guided(PathSampler):
    """See the module."""

    enough = SPREAD_OUT

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Path | None:
        """The candidate that the model expects most of."""
        for path in self.context.starts:
            if self.fitting_and_new(path, history) and trial.number < len(self.context.starts):
                return path
        if len(history.seen) < SPREAD_OUT + len(self.context.starts) or len(history.paths) < SPREAD_OUT // 2:
            by_scores = self.context.features is not None and len(history.seen) % 2 == 0
            return self._best_scored(history) if by_scores else self._spread_out(history)
        if trial.number % BY_CHANCE == BY_CHANCE - 1:
            return None
        model = Surrogate(self.context.encoder(np.array(history.paths)), history.values[:, 0])
        return self._liked(model, history)

    def _spread_out(self, history: History) -> Path | None:
        """Of even draws the one that lies farthest from what was seen."""
        drawn = [path for path in _as_paths(self.feasible.draw(self.rng, 64)) if path not in history.seen]
        if not drawn or not history.seen:
            return drawn[0] if drawn else None
        mine, theirs = self.context.encoder(np.array(drawn)), self.context.encoder(np.array(sorted(history.seen)))
        gaps = sum(
            mine.squares(name)[:, None] + theirs.squares(name)[None] - 2 * mine.products(name, theirs)
            for name in ("choices", "numbers")
            if name in mine.groups
        )
        return drawn[int(np.argmax(np.min(gaps, axis=1)))]

    def _best_scored(self, history: History) -> Path | None:
        """Of even draws the one that features like best, by the mean of its ranks."""
        assert self.context.features is not None
        drawn = [path for path in _as_paths(self.feasible.draw(self.rng, self._few)) if path not in history.seen]
        if not drawn:
            return None
        scores = self.context.features(np.array(drawn))
        return drawn[int(np.argmin(stats.rankdata(scores, axis=0).mean(1)))]

    @property
    def _few(self) -> int:
        """How many candidates are scored by the features for each that is proposed."""
        return EVEN if self.context.features_are_free else SHORTLIST

    def _liked(self, model: Surrogate, history: History) -> Path | None:
        two = self.context.objectives == 2
        if self.context.listed and not two:
            paths = [path for path in self.context.listed if path not in history.seen]
            return self._chosen(paths, self._promise(model, paths, history), history) if paths else None
        found: dict[Path, None] = {}
        for heat, count in HEATS:
            weights = model.linear(self.rng, heat)
            scores = [-score for score in self.context.encoder.scores(weights)] if weights else []
            if scores and two:
                found.update(dict.fromkeys(self.feasible.front(scores, LEVELS)))
            elif scores:
                found.update(dict.fromkeys(self.feasible.best(scores, count, history.seen)))
        exact = list(found)
        found.update(dict.fromkeys(_as_paths(self.feasible.draw(self.rng, EVEN))))
        order = np.argsort(history.values[:, 0], kind="stable")[:BEST]
        parents = [history.paths[place] for place in order]
        if two:
            parents = [path for path, _ in zip(self._front(history)[0], range(2 * BEST), strict=False)]
        for parent in [*parents, *exact[:6]]:
            found.update(dict.fromkeys(self.feasible.neighbours(parent, self.rng, MUTATIONS)))
        found = {path: None for path in found if path not in history.seen}
        if not found:
            return None
        if not two:
            found = self._refined(model, found, history)
        paths = list(found)
        return self._chosen(paths, self._promise(model, paths, history), history)

    def _promise(
        self, model: Surrogate, paths: list[Path], history: History, features: np.ndarray | None = None
    ) -> np.ndarray:
        """How much each candidate is expected to improve on what is known. Shape: (n,)"""
        encoded = self.context.encoder(np.array(paths))
        if features is not None:
            encoded = encoded.beside(features)
        if self.context.objectives == 2:
            return self._gains(model.draws(encoded, self.rng, FRONT_DRAWS), paths, history)
        return model.gain(encoded)

    def _chosen(self, paths: list[Path], promise: np.ndarray, history: History) -> Path:
        """The most promising candidate; with features, of the first few by a model that knows these, too."""
        if self.context.features is None:
            return paths[int(np.argmax(promise))]
        paths = [paths[place] for place in np.argsort(-promise, kind="stable")[: self._few]]
        known, new = self.context.features(np.array(history.paths)), self.context.features(np.array(paths))
        encoded = self.context.encoder(np.array(history.paths)).beside(standardized(known, known))
        model = Surrogate(encoded, history.values[:, 0])
        return paths[int(np.argmax(self._promise(model, paths, history, standardized(known, new))))]

    def _refined(self, model: Surrogate, found: dict[Path, None], history: History) -> dict[Path, None]:
        """Those that the model expects most of, mutations of the first ones among them."""
        gains: dict[Path, float] = {}
        for turn in range(TURNS):
            new = [path for path in found if path not in gains and path not in history.seen]
            if new:
                gains.update(zip(new, model.gain(self.context.encoder(np.array(new))).tolist(), strict=True))
            order = sorted(gains, key=gains.__getitem__, reverse=True)
            if turn < TURNS - 1:
                near = (self.feasible.neighbours(path, self.rng, MUTATIONS) for path in order[:4])
                found = dict.fromkeys(itertools.chain.from_iterable(near))
        return dict.fromkeys(order[:KEPT])

    def _front(self, history: History) -> tuple[list[Path], np.ndarray]:
        """Those that no other dominates, by latency, and their values."""
        order = np.lexsort((history.values[:, 0], history.values[:, 1]))
        kept, least = [], np.inf
        for place in order:
            if history.values[place, 0] < least:
                least = history.values[place, 0]
                kept.append(place)
        return [history.paths[place] for place in kept], history.values[kept]

    def _gains(self, losses: np.ndarray, paths: list[Path], history: History) -> np.ndarray:
        """What each candidate is expected to add to the area that the front dominates. Shape: (draws, n) -> (n,)"""
        assert self.context.latency is not None
        latency = self.context.latency(np.array(paths))
        front = self._front(history)[1]
        corner = np.array([history.values[:, 0].max(), max(history.values[:, 1].max(), float(latency.max()))])
        edges = np.concatenate([front[:, 1], [corner[1]]])
        widths = np.maximum(edges[1:][None] - np.maximum(edges[:-1][None], latency[:, None]), 0.0)  # (n, steps)
        before = np.maximum(np.minimum(edges[0], corner[1]) - latency, 0.0)  # left of the front
        depth = np.maximum(front[:, 0][None, None] - losses[:, :, None], 0.0)  # (draws, n, steps)
        gains = (depth * widths[None]).sum(2) + before[None] * np.maximum(corner[0] - losses, 0.0)
        return np.asarray(gains.mean(0))


def _as_paths(array: np.ndarray) -> list[Path]:
    return [tuple(line) for line in array.tolist()]


def make(seed: int, context: Context) -> BaseSampler:
    """Guided search; the model is fitted to the history anew for every draw."""
    return Guided(seed, context)


SAMPLER = make
