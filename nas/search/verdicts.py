"""How well scores rank networks whose accuracy is known: each by itself, combined, and as what a model learns from.

Several scores are combined in two ways: by the mean of their ranks, and by a ridge regression that predicts each
network from all others. Given a number of labels, the model of `guided` learns from the trainings of so many networks,
drawn by chance again and again, and ranks the others: from its encoding of networks, from the scores, and from both.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import stats

from nas.core.errors import InputError
from nas.evaluation import ranks
from nas.evaluation.truth import Truth
from nas.networks.building import cost_of
from nas.search.predictor import encoded_in, space_of
from nas.search.surrogate import Encoded, Surrogate, fit, standardized

FEWEST = 5  # networks that a rank correlation is given of
FEWEST_LEFT = 3  # of those that a model is asked for, in each of many draws
SPLITS = 100  # draws of the networks that a model learns from
BASELINES = "params", "macs"
RANKS, RIDGE = "rank average", "ridge"
ENCODING, SCORES, BOTH = "encoding", "scores", "encoding and scores"
MIDDLE, LEAST = 0.2, 10  # share of networks, in the middle by MACs, that are the band where a file marks none; at least
SEED = 0  # of the bootstrap and of splits
STATISTICS = ranks.kendall, ranks.spearman

Parts = Mapping[str, np.ndarray]
Tell = Callable[..., None]


@dataclass
class Judged:
    """What a score says of the networks of a truth.

    Attributes:
        name: as it was asked for.
        values: one a network, larger is better; NaN where there is none.
        seconds: of each network that was scored.
        once: seconds that it took to get ready, for all networks together.
        failed: why networks have no score, by their place in the truth.
        of: the scores that it combines; none for a score by itself.
        remark: what a reader should know of it.
    """

    name: str
    values: np.ndarray
    seconds: list[float] = field(default_factory=list)
    once: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    remark: str = ""

    @property
    def cost(self) -> float | None:
        """Seconds for a network; None where none has a score."""
        return median(self.seconds) if self.seconds else None

    @property
    def ranks_something(self) -> bool:
        """Whether it gives networks enough several values."""
        known = self.values[np.isfinite(self.values)]
        return len(known) >= FEWEST and bool(np.ptp(known))


def read_scores(file: Path, known: Truth) -> list[Judged]:
    """Scores of the networks of a truth, as `benchmarks/truth/scores.py` keeps them: a line of JSON each.

    A line has `score` (its name), `arch` (the network's id), `value` (larger is better; null where the network has no
    score, and then `reason`), `seconds`; and, in place of all but the first, `once` for what getting ready took.

    Raises:
        InputError: a line is none.
    """
    places = {each.arch.id: place for place, each in enumerate(known.networks)}
    found: dict[str, Judged] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            judged = found.setdefault(line["score"], Judged(line["score"], np.full(len(places), math.nan)))
            if "once" in line:
                judged.once = float(line["once"])
            elif (place := places.get(line["arch"])) is not None and line["value"] is None:
                judged.failed[place] = str(line["reason"])
            elif place is not None:
                judged.values[place] = float(line["value"])
                judged.seconds.append(float(line["seconds"]))
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{file}:{number}: no line of scores ({error}); remove it") from error
    return list(found.values())


def require_labels(known: Truth, labels: Sequence[int]) -> None:
    """Raise where a model cannot learn from so many networks and be judged by the others.

    Raises:
        InputError: naming the number, and how many there may be.
    """
    most = len(known.networks) - FEWEST
    for count in labels:
        if not 2 <= count <= most:
            raise InputError(
                f"labels: expected 2 to {most}, since {known.file} has {len(known.networks)} networks and {FEWEST} of "
                f"them are to be predicted; got {count}"
            )


def figures(
    known: Truth, scores: Sequence[Judged], labels: Sequence[int] = (), tell: Tell = lambda *_: None
) -> dict[str, Any]:
    """How well scores rank the networks of a truth, as plain data.

    Args:
        known: the networks.
        scores: of them.
        labels: of how many networks the model of `guided` knows the training, for each number that it is judged at.
        tell: called with (done, total, seconds left or None, text).

    Returns:
        `scores`: figures of parameters, of MACs, of each score, and of both combinations where there are several; with
        the ends of a 90 % interval as `kendall_low`, `kendall_high`, and all of it within the band as `kendall_band`
        and so on. `predictors`: of the model that learns from labels, means over splits with the 5 % and 95 % quantiles
        of them. `ceiling`: what a score without the noise of training would reach. A figure that cannot be given is
        None, and a `remark` there, or of the truth, says why. Accuracies, noise and regret are in 0..1.
    """
    costs = [cost_of(each.arch) for each in known.networks]
    baselines = [Judged(each, np.array([float(getattr(cost, each)) for cost in costs]), [0.0]) for each in BASELINES]
    runs = [each.accuracies for each in known.networks]
    accuracy = np.array([np.mean(each) for each in runs])
    trainings = np.array([len(each) for each in runs])
    macs = next(each.values for each in baselines if each.name == "macs")
    band, marked = _band(known, macs)
    parts = {"": np.full(len(runs), True), "_band": band}
    sigma = ranks.noise(runs)
    judged = [*baselines, *scores, *combinations(scores, accuracy)]
    return {
        "truth": str(known.file),
        "images": known.images,
        "recipe": known.recipe,
        "networks": len(runs),
        "networks_band": int(band.sum()),
        "trainings": int(trainings.sum()),
        "macs": _range(macs),
        "macs_band": _range(macs[band]),
        "accuracy": _range(accuracy),
        "accuracy_band": _range(accuracy[band]),
        "noise": sigma,
        "ceiling": _ceiling(accuracy, trainings, sigma, parts),
        "band_marked": marked,
        "remark": _remark(marked, parts, trainings),
        "scores": [_figures(each, known, accuracy, macs, parts) for each in judged],
        "predictors": predictors(known, scores, labels, accuracy, parts, tell),
    }


def _band(known: Truth, macs: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which networks are of like MACs, and whether the file marks them."""
    band = np.array([each.set == "band" for each in known.networks])
    if band.any():
        return band, True
    count = min(max(round(MIDDLE * len(macs)), LEAST), len(macs))
    first = (len(macs) - count) // 2
    band[np.argsort(macs, kind="stable")[first : first + count]] = True
    return band, False


def _remark(marked: bool, parts: Parts, trainings: np.ndarray) -> str:
    """What a truth cannot tell."""
    band = parts["_band"]
    remarks = [] if marked else [f"no network is marked as of the band: it is the {band.sum()} in the middle by MACs"]
    if not _enough(parts, band):
        remarks.append(f"no figures: {band.sum()} networks are in the band, and it takes {FEWEST}")
    if trainings.max() == 1:
        remarks.append("no network was trained twice, so the noise of training and the ceiling it leaves are unknown")
    return "; ".join(remarks)


def _range(values: np.ndarray) -> list[float] | None:
    return [float(values.min()), float(values.max())] if len(values) else None


def _ceiling(accuracy: np.ndarray, trainings: np.ndarray, sigma: float | None, parts: Parts) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for part, chosen in parts.items():
        for statistic in STATISTICS:
            known = None
            if sigma is not None and _enough(parts, chosen):
                known = ranks.ceiling(accuracy[chosen], trainings[chosen], sigma, statistic)
            found[f"{statistic.__name__}{part}"] = known
    return found


def _enough(parts: Parts, chosen: np.ndarray) -> bool:
    """Whether there are networks enough for a figure of a part; none is given of all without one of the band."""
    return int(np.count_nonzero(chosen & parts["_band"])) >= FEWEST


def _figures(judged: Judged, known: Truth, accuracy: np.ndarray, macs: np.ndarray, parts: Parts) -> dict[str, Any]:
    has = np.isfinite(judged.values)
    found: dict[str, Any] = {"name": judged.name, "of": list(judged.of), "networks": int(has.sum())}
    remarks = [judged.remark] if judged.remark else []
    for part, within in parts.items():
        chosen = has & within
        score, truth, size = judged.values[chosen], accuracy[chosen], macs[chosen]
        enough = _enough(parts, chosen)
        varies = enough and bool(np.ptp(score))
        draws = ranks.draws(len(score), SEED) if varies else np.empty((0, 0))
        for statistic in STATISTICS:
            values = statistic(score, truth, draws) if varies else None
            _put(found, statistic.__name__, part, values)
            if statistic is ranks.kendall:
                beyond = None if values is None or judged.name == "macs" else values - statistic(size, truth, draws)
                _put(found, "kendall_over_macs", part, beyond)
        found[f"regret{part}"] = ranks.regret(score, truth) if varies else None
        if enough and not varies:
            remarks.append(
                f"gives all {len(score)} networks {'of the band ' if part else ''}the same value: ranks nothing"
            )
        elif not enough and part and _enough(parts, within):
            remarks.append(f"only {len(score)} networks of the band have a score; a figure takes {FEWEST}")
    if judged.failed:
        place, reason = min(judged.failed.items())
        count = f"{len(judged.failed)} of {len(has)} networks have no score"
        others = ", which leaves the figures to the others" if has.any() else ""
        remarks.append(f"{count}{others}; {known.networks[place].arch.id}: {reason}")
    failed = [{"network": known.networks[place].arch.id, "reason": judged.failed[place]} for place in judged.failed]
    return found | {"seconds": judged.cost, "once_seconds": judged.once, "failed": failed, "remark": "; ".join(remarks)}


def _put(figures: dict[str, Any], name: str, part: str, values: np.ndarray | None) -> None:
    found = ranks.estimate(values) if values is not None else ranks.Estimate(math.nan, math.nan, math.nan)
    for key, value in zip(("", "_low", "_high"), found, strict=True):
        figures[f"{name}{key}{part}"] = value if math.isfinite(value) else None


def combinations(scores: Sequence[Judged], accuracy: np.ndarray) -> list[Judged]:
    """The scores taken together, where several of them rank something: the mean of their ranks, and a ridge regression.

    The regression predicts each network from the accuracies of all others; its penalty is that of the highest posterior
    density. A score that ranks nothing is left out, and a network without one of the others has no combined score.
    """
    used, left = _used(scores)
    if len(used) < 2:
        return []
    values = np.stack([each.values for each in used], 1)
    whole = np.isfinite(values).all(1)
    if whole.sum() < FEWEST:
        return []
    seconds = [sum(each.cost or 0.0 for each in used)]
    remark = f"without {', '.join(left)}, which ranks nothing" if left else ""
    found = []
    for name, combined in (
        (RANKS, stats.rankdata(values[whole], axis=0).mean(1)),
        (RIDGE, _left_out(values[whole], accuracy[whole])),
    ):
        all_values = np.full(len(accuracy), math.nan)
        all_values[whole] = combined
        found.append(
            Judged(
                name,
                all_values,
                seconds,
                sum(each.once for each in used),
                of=tuple(each.name for each in used),
                remark=remark,
            )
        )
    return found


def _used(scores: Sequence[Judged]) -> tuple[list[Judged], list[str]]:
    """The scores that can be combined, and the names of the others."""
    used = [each for each in scores if each.ranks_something]
    return used, [each.name for each in scores if not each.ranks_something]


def _left_out(features: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The accuracy of each network as a ridge regression on the others expects it. Shape: (n, features) -> (n,)"""
    spread = float(accuracy.std())
    if not spread:
        return np.zeros(len(accuracy))
    z = standardized(features, features)
    return fit({SCORES: z @ z.T / z.shape[1]}, (accuracy - accuracy.mean()) / spread).held_out


def predictors(
    known: Truth,
    scores: Sequence[Judged],
    labels: Sequence[int],
    accuracy: np.ndarray,
    parts: Parts,
    tell: Tell = lambda *_: None,
) -> list[dict[str, Any]]:
    """How the model of `guided` ranks the networks that it has not learned from, after so many trainings.

    A label is what a search sees of a training: the validation loss of a network's first one, or the negative of its
    accuracy where the file has no loss. Which networks are learned from is drawn from all of them, `SPLITS` times.
    """
    if not labels:
        return []
    used, left = _used(scores)
    remarks = [f"without {', '.join(left)}, which ranks nothing"] if left else []
    values = np.stack([each.values for each in used], 1) if used else np.empty((len(accuracy), 0))
    whole = np.isfinite(values).all(1)
    kinds: dict[str, Encoded] = {}
    networks = [each.arch for each in known.networks]
    try:
        kinds[ENCODING] = encoded_in(space_of(networks), networks)
    except InputError as error:
        remarks.append(f"without an encoding of the networks: {error}")
    nothing = Encoded({}, {}, np.zeros((len(accuracy), 0)))
    if used:
        kinds[SCORES] = nothing
        if ENCODING in kinds:
            kinds[BOTH] = kinds[ENCODING]
    losses = known.losses
    found: list[dict[str, Any]] = []
    total = len(labels) * len(kinds)
    for count, kind in itertools.product(labels, kinds):
        tell(len(found), total, None, f"learns from {count} networks")
        can = np.asarray(whole | (kind == ENCODING))
        line: dict[str, Any] = {"labels": count, "from": kind, "of": [each.name for each in used]}
        if kind == ENCODING:
            line["of"] = []
        taus = _splits(kinds[kind], None if kind == ENCODING else values, losses, accuracy, can, count, parts)
        for key, several in taus.items():
            part = "_band" if key.endswith("_band") else ""
            several = several[np.isfinite(several)]
            name = key.removesuffix(part)
            line[key] = float(several.mean()) if len(several) else None
            for end, share in (("low", 0.05), ("high", 0.95)):
                line[f"{name}_{end}{part}"] = float(np.quantile(several, share)) if len(several) else None
        found.append(line | {"splits": SPLITS, "remark": "; ".join(remarks)})
    return found


def _splits(
    encoded: Encoded,
    values: np.ndarray | None,
    losses: np.ndarray,
    accuracy: np.ndarray,
    can: np.ndarray,
    count: int,
    parts: Parts,
) -> dict[str, np.ndarray]:
    """Correlations with accuracy of what is predicted of the networks that are not learned from, a split each."""
    rng, places = np.random.default_rng(SEED), np.flatnonzero(can)
    found = {f"{each.__name__}{part}": np.full(SPLITS, math.nan) for each in STATISTICS for part in parts}
    for split in range(SPLITS):
        order = rng.permutation(places)
        taught, asked = order[:count], order[count:]
        one, two = encoded.at(taught), encoded.at(asked)
        if values is not None:
            one = one.beside(standardized(values[taught], values[taught]))
            two = two.beside(standardized(values[taught], values[asked]))
        expected = -Surrogate(one, losses[taught]).mean(two)
        for part, within in parts.items():
            mine = within[asked]
            if min(mine.sum(), parts["_band"][asked].sum()) < FEWEST_LEFT or not _enough(parts, within):
                continue
            once = np.ones((1, int(mine.sum())))
            for each in STATISTICS:
                found[f"{each.__name__}{part}"][split] = each(expected[mine], accuracy[asked][mine], once)[0]
    return found
