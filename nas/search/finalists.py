"""From the best few candidates to a winner: measured, trained again with other seeds, ranked as chance allows."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import optuna

from nas.core.arch import Arch
from nas.core.errors import RunError
from nas.core.units import to_ms
from nas.evaluation.evaluators import title_of
from nas.metrics import MB
from nas.search.executors import Running
from nas.search.limits import Estimator, Limit
from nas.search.study import remembered
from nas.search.trials import Record
from nas.search.workers import Outcome, Task
from nas.tables.table import Table

SCORED = ("value", "val_loss", "val_accuracy")  # of a score, in this order
TRIES = 2  # of a measurement in one command; each of them is taken anew where the machine was disturbed


class Measured(Protocol):
    """The latency of a whole network, how far repeated measurements of it lie apart, and how disturbed the machine was;
    see `nas.profiling.profiler.Measurement`.
    """

    @property
    def us(self) -> float: ...

    @property
    def spread_us(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def disturbed(self) -> bool: ...

    @property
    def text(self) -> str: ...


Measure = Callable[[Arch, Table], Measured]
Weigh = Callable[[Arch, Table], int]


@dataclass(frozen=True)
class Timing:
    """A measurement as a study keeps it; see `Measured`."""

    us: float
    spread_us: float
    noise: float
    disturbed: bool
    text: str

    @classmethod
    def of(cls, known: Any) -> Timing | None:
        """What a study keeps, None where it has nothing; earlier versions kept a time and its spread, unchecked."""
        if known is None:
            return None
        if isinstance(known, list):
            return cls(known[0], known[1], math.inf, True, "not checked for noise, by an earlier version")
        return cls(**known)


@dataclass(frozen=True)
class Finalist:
    """One of the best candidates.

    Attributes:
        number: of its trial.
        arch: the architecture.
        record: what the search found.
        used: of each limit, in its unit: measured where it could be, else predicted.
        fits: whether that keeps every limit.
        timing: latency with the request's table's runtime; None where this is not the table's machine.
        memory_bytes: measured likewise where there is a budget on memory, else None.
        values: of its scores, that of the search first.
        losses, accuracies: of the trainings behind them; none where the scores have none.
    """

    number: int
    arch: Arch
    record: Record
    used: tuple[float, ...] = ()
    fits: bool = True
    timing: Timing | None = None
    memory_bytes: int | None = None
    values: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """What was measured of it, as plain data for `with_data`."""
        timing = None if self.timing is None else asdict(self.timing)
        measured = {"used": list(self.used), "fits": self.fits, "timing": timing, "memory_bytes": self.memory_bytes}
        return {"number": self.number, "arch": self.arch.id} | measured

    def with_data(self, data: Mapping[str, Any]) -> Finalist:
        """With what was measured of it, from `as_data`."""
        timing, memory_bytes = Timing.of(data["timing"]), data["memory_bytes"]
        return replace(self, used=tuple(data["used"]), fits=data["fits"], timing=timing, memory_bytes=memory_bytes)

    @property
    def mean_value(self) -> float:
        """Mean value of its repeated scores; that of the search, which favours it, where there is none."""
        values = self.values[1:] or self.values
        return sum(values) / len(values)

    def __str__(self) -> str:
        times = [f"{to_ms(self.record.predicted_us or 0):.4g} ms predicted"]
        if self.timing is not None:
            doubt = f" ({self.timing.text})" if self.timing.disturbed else ""
            times.insert(0, f"{to_ms(self.timing.us):.4g} ms measured{doubt}")
        return f"trial {self.number} (arch {self.arch.id}), {', '.join(times)}"


def with_measurements(
    finalist: Finalist,
    study: optuna.Study,
    estimator: Estimator,
    here: Sequence[str | None],
    measure: Measure,
    weigh: Weigh,
) -> Finalist:
    """Measure a finalist on every table's runtime that is here.

    A measurement is taken once in the life of a study, and again where the machine was disturbed: twice at most in a
    command; the less disturbed one is kept.

    Args:
        finalist: as it comes from the search.
        study: keeps the measurements.
        estimator: the tables and the limits.
        here: the tables that were measured on this machine, by the name that limits have for them.
        measure: times an arch the way a table was measured.
        weigh: measures its peak memory in bytes likewise; only asked where a limit is on memory.
    """
    times: dict[str | None, Timing] = {}
    memory: dict[str | None, int] = {}
    weighed = {limit.table for limit in estimator.limits if limit.metric == "memory_mb"}
    for name in here:
        table = estimator.table if name is None else estimator.tables[name]
        key = f"{finalist.arch.id} {table.hash[:12]}"
        times[name] = _timed(study, f"measured {key}", finalist.arch, table, measure)
        if name in weighed:
            memory[name] = remembered(study, f"memory {key}", functools.partial(weigh, finalist.arch, table))
    used = []
    for limit, predicted in zip(estimator.limits, estimator.estimate(finalist.arch).used, strict=True):
        if limit.metric == "latency_ms" and limit.table in times:
            used.append(to_ms(times[limit.table].us))
        elif limit.metric == "memory_mb" and limit.table in memory:
            used.append(memory[limit.table] / MB)
        else:
            used.append(predicted)
    fits = all(limit.excess(value) <= 0 for limit, value in zip(estimator.limits, used, strict=True))
    return replace(finalist, used=tuple(used), fits=fits, timing=times.get(None), memory_bytes=memory.get(None))


def _timed(study: optuna.Study, key: str, arch: Arch, table: Table, measure: Measure) -> Timing:
    best = Timing.of(study.user_attrs.get(key))
    for _ in range(TRIES):
        if best is not None and not best.disturbed:
            break
        found = measure(arch, table)
        if best is None or found.noise <= best.noise:
            best = Timing(found.us, found.spread_us, found.noise, found.disturbed, found.text)
            study.set_user_attr(key, asdict(best))
    assert best is not None
    return best


def require_fit(finalists: Sequence[Finalist], limits: Sequence[Limit]) -> None:
    """Check that a finalist keeps all limits.

    Raises:
        RunError: none does; it names the nearest miss and every other.
    """
    if any(finalist.fits for finalist in finalists):
        return

    def excess(finalist: Finalist) -> float:
        return max(limit.excess(used) for limit, used in zip(limits, finalist.used, strict=True))

    nearest, *others = sorted(finalists, key=excess)
    misfits = [limit.misfit(used) for limit, used in zip(limits, nearest.used, strict=True)]
    listed = "".join(f"\n  {other}: {excess(other):+.1%}" for other in others)
    raise RunError(
        f"none of the {len(finalists)} candidates measured keeps its budget. The nearest miss is {nearest}: "
        f"{'; '.join(filter(None, misfits))} ({excess(nearest):+.1%}).{' The others:' if others else ''}{listed}\n"
        "Raise `trials` or `finalists` to measure more candidates, or start a run with a higher budget"
    )


def with_repeats(
    finalists: Sequence[Finalist], study: optuna.Study, pool: Running, repeats: int, on_done: Callable[[Outcome], None]
) -> list[Finalist]:
    """Score those that fit again with other seeds; each of that is done once in the life of a study.

    Args:
        finalists: measured.
        study: keeps the scores.
        pool: scores.
        repeats: further scores of each, with the seeds after that of the search.
        on_done: called with each as it ends; one that fails is left out.
    """
    pairs = [
        (finalist, finalist.record.seed + extra)
        for extra in range(1, repeats + 1)
        for finalist in finalists
        if finalist.fits
    ]
    left = [pair for pair in pairs if _score_key(*pair) not in study.user_attrs]
    tasks = (Task(number, finalist.arch.to_json(), seed) for number, (finalist, seed) in enumerate(left))
    for outcome in pool.run(tasks):
        if outcome.score is not None:
            found = {name: getattr(outcome.score, name) for name in SCORED}
            study.set_user_attr(_score_key(*left[outcome.key]), found)
        on_done(outcome)
    known = study.user_attrs
    return [_with_scores(each, known, [seed for finalist, seed in pairs if finalist is each]) for each in finalists]


def _score_key(finalist: Finalist, seed: int) -> str:
    return f"score {finalist.arch.id} {seed}"


def _with_scores(finalist: Finalist, known: Mapping[str, Any], seeds: Sequence[int]) -> Finalist:
    scores = [{name: getattr(finalist.record, name) for name in SCORED}]
    for seed in seeds:
        found = known.get(_score_key(finalist, seed))
        if isinstance(found, list):  # of an earlier version: loss and accuracy
            found = {"value": found[0], "val_loss": found[0], "val_accuracy": found[1]}
        if found is not None:
            scores.append(found)
    values, losses, accuracies = (tuple(each[name] for each in scores if each[name] is not None) for name in SCORED)
    return replace(finalist, values=values, losses=losses, accuracies=accuracies)


@dataclass(frozen=True)
class Ranking:
    """How sure the order of the finalists is.

    Attributes:
        text: in words.
        pairs_sure: share of the pairs of finalists whose order is beyond chance, 0..1; None where nothing says so.
        noise_sigma: standard deviation of a value between two scores of one network; None as well.
    """

    text: str
    pairs_sure: float | None
    noise_sigma: float | None


def rank(finalists: Sequence[Finalist], trained: bool = True) -> Ranking:
    """Judge the order of finalists by the noise that their repeated trainings show, pooled over all of them.

    The score that chose a finalist says nothing of that: it is the best of many, so chance has favoured it. A pair
    counts as sure when its mean values differ beyond the two-sided 95 % interval of their difference (Student's t, with
    the degrees of freedom of the pooled variance).

    Args:
        finalists: with their scores.
        trained: whether a training stands behind a score.
    """
    if len(finalists) < 2:
        return Ranking("There was one finalist, so there is nothing to rank.", None, None)
    title = title_of(finalists[0].record.score)
    if not trained:
        by = f"The finalists are ordered by {title}, for which nothing was trained"
        return Ranking(f"{by}; how well it tells good networks from others is not known.", None, None)
    values = {finalist.number: finalist.values[1:] for finalist in finalists}
    freedom = sum(max(len(repeats) - 1, 0) for repeats in values.values())
    if freedom == 0:
        by = (
            "trained again once"
            if any(values.values())
            else "not trained again: they are ordered by the score that chose them"
        )
        return Ranking(f"The finalists were {by}; how far chance decided their order is not known.", None, None)
    squares = sum(float(np.var(repeats) * len(repeats)) for repeats in values.values() if repeats)
    sigma = math.sqrt(squares / freedom)
    times = _student(freedom)
    ordered = sorted(finalists, key=lambda finalist: finalist.mean_value)
    pairs = list(itertools.combinations(ordered, 2))

    def is_sure(one: Finalist, other: Finalist) -> bool:
        counts = len(values[one.number]), len(values[other.number])
        error = sigma * math.sqrt(sum(1 / count for count in counts)) if all(counts) else math.inf
        return abs(one.mean_value - other.mean_value) > times * error

    sure = [pair for pair in pairs if is_sure(*pair)]
    best, second = pairs[0]
    lead = "beyond chance" if pairs[0] in sure else "within what chance does"
    text = (
        f"Between two trainings of one network the {title} varies by {sigma:.3g} (standard deviation, from "
        f"repeats with {freedom} degree{'s' if freedom > 1 else ''} of freedom). By that, the order of {len(sure)} of "
        f"{len(pairs)} pairs of finalists is sure at 95 %; the winner's lead of "
        f"{second.mean_value - best.mean_value:.3g} over the second is {lead}."
    )
    return Ranking(text, len(sure) / len(pairs), sigma)


def _student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t: 2.45 for 6 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
