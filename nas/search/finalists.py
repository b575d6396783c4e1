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
from nas.metrics import MB
from nas.search.limits import Estimator, Limit
from nas.search.study import remembered
from nas.search.trials import Record
from nas.search.workers import Outcome, Pool, Task
from nas.tables.table import Table

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
        losses, accuracies: of its trainings, that of the search first.
    """

    number: int
    arch: Arch
    record: Record
    used: tuple[float, ...] = ()
    fits: bool = True
    timing: Timing | None = None
    memory_bytes: int | None = None
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
    def mean_loss(self) -> float:
        """Mean validation loss of its repeated trainings; that of the search, which favours it, where there is none."""
        losses = self.losses[1:] or self.losses
        return sum(losses) / len(losses)

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
    finalists: Sequence[Finalist], study: optuna.Study, pool: Pool, repeats: int, on_done: Callable[[Outcome], None]
) -> list[Finalist]:
    """Train those that fit again with other seeds; each training is done once in the life of a study.

    Args:
        finalists: measured.
        study: keeps the scores.
        pool: trains.
        repeats: further trainings of each, with the seeds after that of the search.
        on_done: called with each training as it ends; one that fails is left out.
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
            found = [outcome.score.val_loss, outcome.score.val_accuracy]
            study.set_user_attr(_score_key(*left[outcome.key]), found)
        on_done(outcome)
    known = study.user_attrs
    return [_with_scores(each, known, [seed for finalist, seed in pairs if finalist is each]) for each in finalists]


def _score_key(finalist: Finalist, seed: int) -> str:
    return f"score {finalist.arch.id} {seed}"


def _with_scores(finalist: Finalist, known: Mapping[str, Any], seeds: Sequence[int]) -> Finalist:
    record = finalist.record
    scores = [(record.val_loss, record.val_accuracy)]
    scores += [known[_score_key(finalist, seed)] for seed in seeds if _score_key(finalist, seed) in known]
    losses, accuracies = zip(*scores, strict=True)
    return replace(finalist, losses=losses, accuracies=accuracies)


@dataclass(frozen=True)
class Ranking:
    """How sure the order of the finalists is.

    Attributes:
        text: in words.
        pairs_sure: share of the pairs of finalists whose order is beyond chance, 0..1; None where nothing says so.
        noise_sigma: standard deviation of a validation loss between two trainings of one network; None as well.
    """

    text: str
    pairs_sure: float | None
    noise_sigma: float | None


def rank(finalists: Sequence[Finalist]) -> Ranking:
    """Judge the order of finalists by the noise that their repeated trainings show, pooled over all of them.

    The score that chose a finalist says nothing of that: it is the best of many, so chance has favoured it. A pair
    counts as sure when its mean losses differ beyond the two-sided 95 % interval of their difference (Student's t, with
    the degrees of freedom of the pooled variance).
    """
    if len(finalists) < 2:
        return Ranking("There was one finalist, so there is nothing to rank.", None, None)
    losses = {finalist.number: finalist.losses[1:] for finalist in finalists}
    freedom = sum(max(len(repeats) - 1, 0) for repeats in losses.values())
    if freedom == 0:
        by = (
            "trained again once"
            if any(losses.values())
            else "not trained again: they are ordered by the score that chose them"
        )
        return Ranking(f"The finalists were {by}; how far chance decided their order is not known.", None, None)
    squares = sum(float(np.var(repeats) * len(repeats)) for repeats in losses.values() if repeats)
    sigma = math.sqrt(squares / freedom)
    times = _student(freedom)
    ordered = sorted(finalists, key=lambda finalist: finalist.mean_loss)
    pairs = list(itertools.combinations(ordered, 2))

    def is_sure(one: Finalist, other: Finalist) -> bool:
        counts = len(losses[one.number]), len(losses[other.number])
        error = sigma * math.sqrt(sum(1 / count for count in counts)) if all(counts) else math.inf
        return abs(one.mean_loss - other.mean_loss) > times * error

    sure = [pair for pair in pairs if is_sure(*pair)]
    best, second = pairs[0]
    lead = "beyond chance" if pairs[0] in sure else "within what chance does"
    text = (
        f"Between two trainings of one network the validation loss varies by {sigma:.3g} (standard deviation, from "
        f"repeats with {freedom} degree{'s' if freedom > 1 else ''} of freedom). By that, the order of {len(sure)} of "
        f"{len(pairs)} pairs of finalists is sure at 95 %; the winner's lead of "
        f"{second.mean_loss - best.mean_loss:.3g} over the second is {lead}."
    )
    return Ranking(text, len(sure) / len(pairs), sigma)


def _student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t: 2.45 for 6 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
