"""Scores judged by networks whose accuracy is known.

What a score says of a network is remembered with the code, the settings and the data that it comes from, so that the
same command goes on after a kill, and is over at once the second time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

import search_spaces
from nas.core.errors import InputError
from nas.core.files import cache_folder
from nas.core.plain import read_yaml
from nas.core.remembered import remembered
from nas.core.source import code_of
from nas.core.tracing import macs_of_unit
from nas.evaluation import datasets, ranks, truth
from nas.evaluation.data import Data, load_data
from nas.evaluation.devices import pick_device
from nas.evaluation.evaluators import Asked, Evaluator, Progress, load_asked, read_asked
from nas.evaluation.truth import Truth
from nas.networks.building import cost_of
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.scoring import CandidateScorer
from nas.search.workers import Pool, Task

FEWEST = 5  # networks that a rank correlation is given of
BASELINES = "params", "macs"
SEED = 0  # of weights, of whatever else is random in a score, and of the bootstrap

Sides = tuple[int, int, int]  # (C, H, W) of images


@dataclass
class Judged:
    """What a score says of the networks of a truth.

    Attributes:
        name: as it was asked for.
        values: one a network, larger is better; NaN where there is none.
        seconds: of each network that was scored, and of what was prepared once for all.
        failed: why networks have no score, by their place in the truth.
    """

    name: str
    values: np.ndarray
    seconds: list[float] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


def judge(
    scores: Sequence[str],
    name: str | Path = truth.DEFAULT,
    dataset: str | None = None,
    *,
    workers: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How well scores rank the networks of a truth, beside their parameters and MACs, as plain data.

    Args:
        scores: evaluators, with their settings as requests spell them.
        name: of a truth: a file, a shipped one, or `published`.
        dataset: images to score with; by default the data set whose name the file's begins with.
        workers: networks scored at once, one thread each.
        device: where they are scored.
        progress: called with (done, total, seconds left or None, text).

    Returns:
        `ceiling`: what a score without the noise of training would reach. `scores`: figures of each, the baselines
        first; those that cannot be given are None, and a `remark` there, or of the truth, says why. Accuracies and
        regret are in 0..1.

    Raises:
        InputError: unknown scores, settings or data, or a truth that cannot be read.
    """
    asked = {label: one for text in scores for label, one in _asked(text).items()}
    known = truth.load(name)
    data, device = _data(known, dataset), str(pick_device(device))
    costs = [cost_of(each.arch) for each in known.networks]
    judged = [Judged(each, np.array([float(getattr(cost, each)) for cost in costs]), [0.0]) for each in BASELINES]
    for label, one in asked.items():
        judged.append(_scored(label, one, known, data, workers, device, progress or _silent))
    return _facts(known, next(iter(data.values())).name, judged)


def _silent(*args: Any, **kwargs: Any) -> None:
    pass


def _asked(text: str) -> dict[str, Asked]:
    """Evaluators by how they were asked for."""
    spelled = read_yaml(text, "score")
    items = spelled if isinstance(spelled, list) else [spelled]
    return dict(zip(map(_label, items), read_asked(spelled), strict=True))


def _label(item: Any) -> str:
    if isinstance(item, str):
        return item
    ((name, settings),) = item.items()
    return f"{name}: {str(yaml.safe_dump(settings, default_flow_style=True, width=math.inf)).strip()}"


def _data(known: Truth, dataset: str | None) -> dict[Sides, Data]:
    """The images of a truth's trainings, in the same division, for each shape that its networks take."""
    own = max((name for name in datasets.names() if known.file.stem.startswith(name)), key=len, default=None)
    if dataset is None and own is None:
        raise InputError(
            f"{known.file} does not say which images its networks learned from: name them (--data), or begin the "
            f"file's name with that of a data set ({', '.join(datasets.names())})"
        )
    shapes = {each.arch.input_shape for each in known.networks}
    return {shape: load_data(dataset or str(own), shape, limit=known.images) for shape in sorted(shapes)}


def _scored(
    label: str, asked: Asked, known: Truth, data: Mapping[Sides, Data], workers: int, device: str, progress: Progress
) -> Judged:
    """What an evaluator says of all networks; what it said before is not asked for again."""
    evaluator = load_asked(asked)
    memory = remembered(code_of(type(evaluator).__module__))
    shown = next(iter(data.values()))
    request = shown.request
    about = json.dumps([asked, SEED, device, shown.fingerprint, request.limit, request.seed, request.val_fraction])
    keys = [f"score {about} of {each.arch.to_json()}" for each in known.networks]
    found = {place: tuple(given) for place, key in enumerate(keys) if (given := memory.get(key))}
    left = [Task(place, known.networks[place].arch.to_json(), SEED) for place in range(len(keys)) if place not in found]
    judged = Judged(label, np.full(len(keys), math.nan))
    if left:
        prepared = _prepared(evaluator, about, known, shown, device, workers, partial(_show, progress, label))
    for shape in data:
        tasks = [task for task in left if known.networks[task.key].arch.input_shape == shape]
        if not tasks:
            continue
        spec = request.name if request.path is None else f"{request.name}:{request.path}"
        scorer = CandidateScorer(evaluator, spec, shape, request.seed, device, request.limit, prepared)
        with Pool(scorer, min(workers, len(tasks))) as pool:
            for outcome in pool.run(tasks):
                if outcome.score is None:
                    judged.failed[outcome.key] = outcome.reason
                    continue
                found[outcome.key] = (float(outcome.score.value), float(outcome.score.seconds or 0))
                memory.put(keys[outcome.key], found[outcome.key])
                progress(len(found), len(keys), None, label)
    memory.flush()
    for place, (value, seconds) in sorted(found.items()):
        judged.values[place] = -value
        judged.seconds.append(seconds)
    return judged


def _show(progress: Progress, label: str, done: float, total: float, left: float | None = None, text: str = "") -> None:
    progress(done, total, left, f"{label} gets ready {text}")


def _prepared(
    evaluator: Evaluator, about: str, known: Truth, data: Data, device: str, workers: int, progress: Progress
) -> Mapping[str, Any]:
    """What an evaluator prepares for the whole space of the networks, where it prepares anything."""
    if type(evaluator).prepare is Evaluator.prepare:
        return {}
    families = sorted({each.arch.family for each in known.networks})
    if len(families) > 1:
        raise InputError(f"{known.file}: prepares for one space, but its networks are of {', '.join(families)}")
    space = search_spaces.load(families[0])
    lattice = lattice_of(space)
    everything = FeasibleSet(lattice, [Sum("", lattice.costs(macs_of_unit), math.inf)])
    folder = cache_folder() / "judged" / hashlib.sha256(about.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return evaluator.prepare(
        space, everything, data, folder, seed=SEED, device=device, threads=workers, progress=progress
    )


# figures


def _facts(known: Truth, data: str, judged: Sequence[Judged]) -> dict[str, Any]:
    runs = [each.accuracies for each in known.networks]
    accuracy = np.array([np.mean(each) for each in runs])
    trainings = np.array([len(each) for each in runs])
    macs = next(each.values for each in judged if each.name == "macs")
    band = np.array([each.set == "band" for each in known.networks])
    parts = {"": np.full(len(runs), True), "_band": band}
    sigma = ranks.noise(runs)
    return {
        "truth": str(known.file),
        "data": data,
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
        "remark": ""
        if _enough(parts, band)
        else f"no figures: {band.sum()} networks are in the band, and it takes {FEWEST}",
        "scores": [_figures(each, known, accuracy, macs, parts) for each in judged],
    }


def _range(values: np.ndarray) -> list[float] | None:
    return [float(values.min()), float(values.max())] if len(values) else None


def _ceiling(
    accuracy: np.ndarray, trainings: np.ndarray, sigma: float | None, parts: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for part, chosen in parts.items():
        for statistic in (ranks.kendall, ranks.spearman):
            known = None
            if sigma is not None and _enough(parts, chosen):
                known = ranks.ceiling(accuracy[chosen], trainings[chosen], sigma, statistic)
            found[f"{statistic.__name__}{part}"] = known
    return found


def _enough(parts: Mapping[str, np.ndarray], chosen: np.ndarray) -> bool:
    """Whether there are networks enough for a figure of a part; none is given of all without one of the band."""
    return int(np.count_nonzero(chosen & parts["_band"])) >= FEWEST


def _figures(
    judged: Judged, known: Truth, accuracy: np.ndarray, macs: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    has = np.isfinite(judged.values)
    figures: dict[str, Any] = {"name": judged.name, "networks": int(has.sum())}
    remarks = []
    for part, within in parts.items():
        chosen = has & within
        score, truth_, size = judged.values[chosen], accuracy[chosen], macs[chosen]
        enough = _enough(parts, chosen)
        varies = enough and bool(np.ptp(score))
        draws = ranks.draws(len(score), SEED) if varies else np.empty((0, 0))
        for statistic in (ranks.kendall, ranks.spearman):
            values = statistic(score, truth_, draws) if varies else None
            _put(figures, statistic.__name__, part, values)
            if statistic is ranks.kendall:
                beyond = None if values is None or judged.name == "macs" else values - statistic(size, truth_, draws)
                _put(figures, "kendall_over_macs", part, beyond)
        figures[f"regret{part}"] = ranks.regret(score, truth_) if varies else None
        if enough and not varies:
            remarks.append(
                f"gives all {len(score)} networks {'of the band ' if part else ''}the same value: ranks nothing"
            )
        elif not enough and part and _enough(parts, within):
            remarks.append(f"only {len(score)} networks of the band have a score; a figure takes {FEWEST}")
    if judged.failed:
        place, reason = min(judged.failed.items())
        count = f"{len(judged.failed)} of {len(has)} networks have no score"
        remarks.append(f"{count}, which leaves the figures to the others; {known.networks[place].arch.id}: {reason}")
    failed = [{"network": known.networks[place].arch.id, "reason": judged.failed[place]} for place in judged.failed]
    seconds = median(judged.seconds) if judged.seconds else None
    return figures | {"seconds": seconds, "failed": failed, "remark": "; ".join(remarks)}


def _put(figures: dict[str, Any], name: str, part: str, values: np.ndarray | None) -> None:
    found = ranks.estimate(values) if values is not None else ranks.Estimate(math.nan, math.nan, math.nan)
    for key, value in zip(("", "_low", "_high"), found, strict=True):
        figures[f"{name}{key}{part}"] = value if math.isfinite(value) else None
