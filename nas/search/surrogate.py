"""A model of loss learned from few candidates: Bayesian ridge on sums over steps, and a Gaussian process on the rest.

Both are one Gaussian process: each group of features (counts of rows, choices, numbers such as multiply-adds) has a
linear kernel with a variance of its own, pairs of choices and curves of the numbers have kernels that are no sums over
steps. Variances and noise are chosen by the leave-one-out predictive likelihood, which has a closed form (Rasmussen and
Williams, sec. 5.4.2), so a kernel that does not predict is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse, stats

from nas.search.lattice import Costs, gathered

MOST_TUNED = 150  # candidates that variances are chosen on
LEVELS = (0.0, 0.1, 0.3, 1.0, 3.0)
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
ROUNDS = 2
CURVED = ("pairs", "curves")


@dataclass(frozen=True)
class Encoded:
    """Candidates as features. Linear ones: (n, features) by group, centred and scaled so that lines have length one on
    average; numbers, (n, scalars), as standardized logarithms.
    """

    groups: dict[str, np.ndarray]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: np.ndarray) -> Encoded:
        return Encoded({name: found[places] for name, found in self.groups.items()}, self.numbers[places])

    def beside(self, other: Encoded) -> Encoded:
        """These candidates and others."""
        groups = {name: np.concatenate([found, other.groups[name]]) for name, found in self.groups.items()}
        return Encoded(groups, np.concatenate([self.numbers, other.numbers]))


class Encoder:
    """Turns paths into features.

    Args:
        groups: features of every step by group, see `Lattice.groups`.
        scalars: numbers of every step.
        reference: paths that features are centred and scaled by.
    """

    def __init__(
        self, groups: dict[str, list[sparse.csr_matrix]], scalars: Sequence[Costs], reference: np.ndarray
    ) -> None:
        self.steps = dict(groups)
        if scalars:
            self.steps["numbers"] = [
                sparse.csr_matrix(np.stack([cost[layer] for cost in scalars], 1)) for layer in range(reference.shape[1])
            ]
        self.middles, self.scales = {}, {}
        for name, found in self.steps.items():
            known = gathered(found, reference)
            self.middles[name] = known.mean(0)
            if name == "numbers":
                self.scales[name] = np.maximum(known.std(0), 1e-12) * known.shape[1] ** 0.5
            else:
                length = float(np.sqrt(((known - known.mean(0)) ** 2).sum(1).mean()))
                self.scales[name] = np.full(known.shape[1], max(length, 1e-12))
        logs = self._logs(reference)
        self._log_middle, self._log_scale = logs.mean(0), np.maximum(logs.std(0), 1e-12)

    def _logs(self, paths: np.ndarray) -> np.ndarray:
        if "numbers" not in self.steps:
            return np.zeros((len(paths), 0))
        logs: np.ndarray = np.log(np.maximum(gathered(self.steps["numbers"], paths), 1e-12))
        return logs

    def __call__(self, paths: np.ndarray) -> Encoded:
        """Features of candidates. Shape: (n, layers) -> n lines"""
        groups = {
            name: (gathered(found, paths) - self.middles[name]) / self.scales[name]
            for name, found in self.steps.items()
        }
        return Encoded(groups, (self._logs(paths) - self._log_middle) / self._log_scale)

    def scores(self, weights: dict[str, np.ndarray]) -> Costs:
        """What steps add to a weighted sum of the linear features, up to a constant."""
        layers = len(next(iter(self.steps.values())))
        scaled = {name: found / self.scales[name] for name, found in weights.items()}
        return [
            np.asarray(sum(self.steps[name][layer] @ scaled[name] for name in scaled), dtype=float)
            for layer in range(layers)
        ]


def kernels(one: Encoded, two: Encoded) -> dict[str, np.ndarray]:
    """The kernel of each part of the model. Shape: (n, m) each"""
    found = {name: one.groups[name] @ two.groups[name].T for name in one.groups}
    if "choices" in one.groups:
        mine, theirs = (np.linalg.norm(item.groups["choices"], axis=1) for item in (one, two))
        cosine = found["choices"] / np.maximum(mine[:, None] * theirs[None], 1e-12)
        found["pairs"] = cosine**2
    if one.numbers.shape[1]:
        gaps = ((one.numbers[:, None] - two.numbers[None]) ** 2).mean(2)
        found["curves"] = np.exp(-gaps / 2)
    return found


class Surrogate:
    """The model, fitted.

    Args:
        known: candidates with a loss; two at least.
        losses: of them; (n,)
    """

    def __init__(self, known: Encoded, losses: np.ndarray) -> None:
        self.known = known
        quarter, half, three = np.percentile(losses, [25, 50, 75])
        cut = half + 5 * max(three - quarter, 1e-12)  # a diverged training says no more than "bad"
        clipped = np.minimum(losses, cut)
        self.middle, self.spread = float(clipped.mean()), max(float(clipped.std()), 1e-12)
        self.y = (clipped - self.middle) / self.spread
        self._kernels = kernels(known, known)
        self.variances, self.noise = self._tuned()
        self._kernel = self._sum(self._kernels)
        self._solve = linalg.cho_factor(self._kernel + self.noise * np.eye(len(known)), lower=True)
        self._weights = linalg.cho_solve(self._solve, self.y)

    def _sum(self, parts: dict[str, np.ndarray], names: Sequence[str] | None = None) -> np.ndarray:
        chosen = [name for name in (names or self.variances) if self.variances[name]]
        some = next(iter(parts.values()))
        total = np.zeros(some.shape)
        for name in chosen:
            total += self.variances[name] * parts[name]
        return total

    def _tuned(self) -> tuple[dict[str, float], float]:
        """Variances and noise of the highest leave-one-out likelihood, one after the other."""
        count = len(self.y)
        places = (
            np.arange(count)
            if count <= MOST_TUNED
            else np.sort(
                np.unique(
                    np.concatenate([np.argsort(self.y)[: MOST_TUNED // 3], np.arange(count)[-2 * MOST_TUNED // 3 :]])
                )
            )
        )
        parts = {name: found[np.ix_(places, places)] for name, found in self._kernels.items()}
        y, eye = self.y[places], np.eye(len(places))
        chosen = {name: 0.0 if name in CURVED else 0.3 for name in parts}
        noise = 0.1

        def value(variances: dict[str, float], noise: float) -> float:
            matrix = sum((v * parts[name] for name, v in variances.items() if v), noise * eye)
            inverse = np.linalg.inv(matrix)
            alpha, diagonal = inverse @ y, np.diag(inverse)
            scale = float((alpha**2 / diagonal).mean())  # one common factor, at its best
            prior = 0.02 * sum(1 for name, v in variances.items() if v and name in CURVED)
            return -0.5 * float(np.log(scale) - np.log(diagonal).mean()) - prior

        best = value(chosen, noise)
        for _ in range(ROUNDS):
            for name in [*parts, "noise"]:
                for level in NOISES if name == "noise" else LEVELS:
                    trial = chosen if name == "noise" else chosen | {name: level}
                    level = level if name == "noise" else noise
                    if not any(trial.values()):
                        continue
                    if (found := value(trial, level)) > best + 1e-9:
                        best, chosen, noise = found, trial, level
        matrix = sum((v * parts[name] for name, v in chosen.items() if v), noise * eye)
        inverse = np.linalg.inv(matrix)
        alpha, diagonal = inverse @ y, np.diag(inverse)
        scale = float((alpha**2 / diagonal).mean())
        held_out = y - alpha / diagonal
        self.correlation = float(stats.spearmanr(held_out, y).statistic) if np.ptp(held_out) else 0.0
        return {name: v * scale for name, v in chosen.items()}, noise * scale

    @property
    def is_linear(self) -> bool:
        """Whether cross-validation leaves the parts out that are no sums over steps."""
        return not any(self.variances.get(name) for name in CURVED)

    def gain(self, candidates: Encoded) -> np.ndarray:
        """By how much each candidate is expected to fall below the best known one, noise aside (expected improvement).

        Shape: n candidates -> (n,)
        """
        across = self._sum(kernels(candidates, self.known))
        half = linalg.solve_triangular(self._solve[0], across.T, lower=True)
        own = np.zeros(len(candidates))  # the diagonal of the kernel
        for name, variance in self.variances.items():
            own += variance * (1.0 if name in CURVED else (candidates.groups[name] ** 2).sum(1))
        deviation = np.sqrt(np.maximum(own - (half**2).sum(0), 1e-12))
        least = float((self._kernel @ self._weights).min())
        ahead = (least - across @ self._weights) / deviation
        return np.asarray(self.spread * deviation * (ahead * stats.norm.cdf(ahead) + stats.norm.pdf(ahead)))

    def linear(self, rng: np.random.Generator | None = None, heat: float = 1.0) -> dict[str, np.ndarray]:
        """Weights of the linear features: their mean, or a posterior draw whose deviations are scaled by `heat`.

        Matheron's rule: a draw of the prior, corrected by what the data say of its residual.
        """
        names = [name for name in self.known.groups if self.variances[name]]
        residual = self.y
        prior: dict[str, np.ndarray] = {}
        weights = {name: self.variances[name] * self.known.groups[name].T @ self._weights for name in names}
        if rng is None or not heat:
            return weights
        count = len(self.y)
        total = rng.normal(size=count) * self.noise**0.5
        for name in names:
            found = self.known.groups[name]
            prior[name] = rng.normal(size=found.shape[1]) * self.variances[name] ** 0.5
            total = total + found @ prior[name]
        if not self.is_linear:
            curved = self._sum(self._kernels, [name for name in CURVED if name in self._kernels])
            total = total + _root(curved) @ rng.normal(size=count)
        residual = linalg.cho_solve(self._solve, total)
        return {
            name: weights[name] + heat * (prior[name] - self.variances[name] * self.known.groups[name].T @ residual)
            for name in names
        }

    def draws(self, candidates: Encoded, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Joint posterior draws of losses. Shape: n candidates -> (count, n)"""
        across = self._sum(kernels(candidates, self.known))
        half = linalg.solve_triangular(self._solve[0], across.T, lower=True)
        cover = self._sum(kernels(candidates, candidates)) - half.T @ half
        noise = rng.normal(size=(count, len(candidates)))
        drawn = across @ self._weights + noise @ _root(cover).T
        return np.asarray(self.middle + self.spread * drawn)


def _root(cover: np.ndarray) -> np.ndarray:
    size = max(float(np.trace(cover)) / len(cover), 1e-12)
    for jitter in (1e-9, 1e-7, 1e-5, 1e-3):
        try:
            return np.asarray(np.linalg.cholesky(cover + jitter * size * np.eye(len(cover))))
        except np.linalg.LinAlgError:
            continue
    return np.diag(np.sqrt(np.maximum(np.diag(cover), 0.0)))
