"""Scores asked for networks whose accuracy is known, to be judged by `nas.search.verdicts`.

What a score says of a network is remembered with the code, the settings and the data that it comes from, so that the
same command goes on after a kill, and is over at once the second time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nas.core.errors import InputError
from nas.core.files import cache_folder
from nas.core.plain import read_yaml
from nas.core.remembered import remembered
from nas.core.source import code_of, code_of_package
from nas.core.tracing import macs_of_unit
from nas.evaluation import datasets, truth
from nas.evaluation.data import Data, load_data
from nas.evaluation.devices import pick_device
from nas.evaluation.evaluators import Asked, Evaluator, Progress, Score, load_asked, read_asked
from nas.evaluation.truth import Truth
from nas.search.executors.local import Pool
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.predictor import AUTO, NONE, Prior, prior_of, space_of
from nas.search.scoring import CandidateScorer
from nas.search.verdicts import Judged, figures, require_labels
from nas.search.workers import OnEpoch, Task, reason_of

SEED = 0  # of weights, and of whatever else is random in a score

Sides = tuple[int, int, int]  # (C, H, W) of images


def judge(
    scores: Sequence[str],
    name: str | Path = truth.DEFAULT,
    dataset: str | None = None,
    *,
    labels: Sequence[int] = (),
    prior: str = AUTO,
    workers: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How well scores rank the networks of a truth, beside their parameters and MACs, as plain data.

    Args:
        scores: evaluators, with their settings as requests spell them.
        name: of a truth: a file, a shipped one, or `published`.
        dataset: images to score with; by default the data set whose name the file's begins with.
        labels: of how many networks a model knows the training that predicts the others; any count of numbers.
        prior: trainings of other networks (the name of a truth, or its file); what a model expects by them is judged
            as a score, and a network that stands there, too, is expected from the others. `auto` takes those that
            `guided` would take by itself, `none` none.
        workers: networks scored at once, one thread each.
        device: where they are scored.
        progress: called with (done, total, seconds left or None, text).

    Returns:
        What `figures` says, of `params`, `macs` and these scores.

    Raises:
        InputError: unknown scores, settings or data, or a truth that cannot be read.
    """
    asked = {label: one for text in scores for label, one in asked_in(text).items()}
    known = truth.load(name)
    require_labels(known, labels)
    data, device = images_of(known, dataset), str(pick_device(device))
    tell = progress or _silent
    judged = [score(label, one, known, data, workers, device, tell) for label, one in asked.items()]
    families = {each.arch.family for each in known.networks}
    if prior != AUTO or len(families) == 1:
        prior = prior_of(prior, min(families))
    if prior not in (AUTO, NONE):
        judged.append(expected(Prior(prior), known))
    return figures(known, judged, labels, tell) | {"data": next(iter(data.values())).name}


@dataclass(frozen=True)
class Timed:
    """A scorer whose scores say what they took of a core, which other work on the machine does not change."""

    scorer: CandidateScorer

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch | None = None) -> Score:
        """Score an arch, given as JSON."""
        begun = time.process_time()
        score = self.scorer(arch, seed, on_epoch)
        return replace(score, seconds=time.process_time() - begun) if self.scorer.device == "cpu" else score


def _silent(*args: Any, **kwargs: Any) -> None:
    pass


def asked_in(text: str) -> dict[str, Asked]:
    """Evaluators by how they are asked for: a name, a mapping, or a list of these, as YAML."""
    spelled = read_yaml(text, "score")
    items = spelled if isinstance(spelled, list) else [spelled]
    return dict(zip(map(_label, items), read_asked(spelled), strict=True))


def _label(item: Any) -> str:
    if isinstance(item, str):
        return item
    ((name, settings),) = item.items()
    return f"{name}: {str(yaml.safe_dump(settings, default_flow_style=True, width=math.inf)).strip()}"


def images_of(known: Truth, dataset: str | None) -> dict[Sides, Data]:
    """The images of a truth's trainings, in the same division, for each shape that its networks take."""
    own = max((name for name in datasets.names() if known.file.stem.startswith(name)), key=len, default=None)
    if dataset is None and own is None:
        raise InputError(
            f"{known.file} does not say which images its networks learned from: name them (--data), or begin the "
            f"file's name with that of a data set ({', '.join(datasets.names())})"
        )
    shapes = {each.arch.input_shape for each in known.networks}
    return {shape: load_data(dataset or str(own), shape, limit=known.images) for shape in sorted(shapes)}


def score(
    label: str, asked: Asked, known: Truth, data: Mapping[Sides, Data], workers: int, device: str, progress: Progress
) -> Judged:
    """What an evaluator says of all networks; what it said before is not asked for again.

    Args:
        label: its name.
        asked: the evaluator.
        known: the networks.
        data: their images, see `images_of`.
        workers: networks scored at once.
        device: where.
        progress: called with (done, total, seconds left or None, text).
    """
    evaluator = load_asked(asked)
    memory = remembered(code_of(type(evaluator).__module__))
    shown = next(iter(data.values()))
    request = shown.request
    where = [SEED, device, shown.fingerprint, request.limit, request.seed, request.val_fraction]
    about, basis = json.dumps([asked, *where]), json.dumps([_early(asked, evaluator), *where])
    keys = [f"score {about} of {each.arch.to_json()}" for each in known.networks]
    found = {place: tuple(given) for place, key in enumerate(keys) if (given := memory.get(key))}
    left = [Task(place, known.networks[place].arch.to_json(), SEED) for place in range(len(keys)) if place not in found]
    judged = Judged(label, np.full(len(keys), math.nan))
    prepared: Mapping[str, Any] = {}
    if left and type(evaluator).prepare is not Evaluator.prepare:
        begun = _spent(device)
        try:
            prepared = _prepared(evaluator, basis, known, shown, device, workers, partial(_show, progress, label))
        except Exception as error:  # of this score alone: the others are judged
            judged.failed = dict.fromkeys((task.key for task in left), f"does not get ready: {reason_of(error)}")
            left = []
        else:
            memory.put(f"once {basis}", max(_spent(device) - begun, memory.get(f"once {basis}") or 0.0))
    for shape in data:
        tasks = [task for task in left if known.networks[task.key].arch.input_shape == shape]
        if not tasks:
            continue
        scorer = CandidateScorer(evaluator, request.spec, shape, request.seed, device, request.limit, prepared)
        with Pool(Timed(scorer), min(workers, len(tasks))) as pool:
            for outcome in pool.run(tasks):
                if outcome.score is None:
                    judged.failed[outcome.key] = outcome.reason
                    continue
                found[outcome.key] = (float(outcome.score.value), float(outcome.score.seconds or 0))
                memory.put(keys[outcome.key], found[outcome.key])
                progress(len(found), len(keys), None, label)
    memory.flush()
    judged.once = memory.get(f"once {basis}") or 0.0
    for place, (value, seconds) in sorted(found.items()):
        judged.values[place] = -value
        judged.seconds.append(seconds)
    return judged


def _spent(device: str) -> float:
    """Seconds of a clock: on the CPU, of what this process and those it waited for took of all cores."""
    return sum(os.times()[:4]) if device == "cpu" else time.monotonic()


def expected(prior: Prior, known: Truth) -> Judged:
    """What earlier trainings let expect of networks, as a score."""
    begun = time.process_time()
    losses = prior.losses_of([each.arch for each in known.networks])
    once = time.process_time() - begun
    return Judged(prior.name, -losses, [0.0] * len(losses), once)


def _early(asked: Asked, evaluator: Evaluator) -> dict[str, Any]:
    """An evaluator with those of its settings that `prepare` reads."""
    ((name, settings),) = asked.items()
    return {name: {key: value for key, value in settings.items() if key not in evaluator.late}}


def _show(progress: Progress, label: str, done: float, total: float, left: float | None = None, text: str = "") -> None:
    progress(done, total, left, f"{label} gets ready {text}")


def _prepared(
    evaluator: Evaluator, basis: str, known: Truth, data: Data, device: str, workers: int, progress: Progress
) -> Mapping[str, Any]:
    """What an evaluator prepares for the whole space of the networks."""
    space = space_of([each.arch for each in known.networks])
    lattice = lattice_of(space)
    everything = FeasibleSet(lattice, [Sum("", lattice.costs(macs_of_unit), math.inf)])
    key = f"{basis} {space.name} {space.input_shape} {code_of_package()}"
    folder = cache_folder() / "judged" / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return evaluator.prepare(
        space, everything, data, folder, seed=SEED, device=device, threads=workers, progress=progress
    )
