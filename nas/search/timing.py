"""The time of a search: how long candidates take, what is shown while they train, and how it ends in time.

With `minutes`, a command ends about so long after its own start; what earlier commands of the run spent does not count.
Each step leaves what the steps behind it need, by durations that were measured before: a profile takes half of the time
at most, candidates are proposed until the rest is needed, finalists are measured until one fits, repeats and the
epochs of the winner are as many as there is time for. What has begun is never cut off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nas.core.units import to_ms
from nas.evaluation.evaluators import Progress, title_of, titles_of
from nas.search.rungs import EXPECTED
from nas.search.workers import Outcome, Stage

if TYPE_CHECKING:
    from optuna import Study

    from nas.core.arch import Arch
    from nas.search import engine
    from nas.search.finalists import Finalist
    from nas.search.request import Request
    from nas.search.trials import Record

PROFILE_SHARE = 0.5  # of the time that profiling this machine may take
CANDIDATES_SHARE = 0.4  # of the time when they begin that candidates have at least
REPEATS_SHARE = 0.3  # of the time when they begin that repeats have at most, where the winner's training needs the rest
MARGIN = 1.2  # of what durations are expected to be
MEASURE_SECONDS = 20.0  # of a finalist, before one was measured
WRITE_SECONDS = 10.0  # for the ONNX file and the report


class Deadline:
    """When a command has to end.

    Args:
        minutes: from now on; None for never.
        clock: gives seconds.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = math.inf if minutes is None else clock() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds, not less than none."""
        return max(self.end - self.clock(), 0.0)


class Pace:
    """How long the candidates of a run take, those of earlier commands among them.

    Args:
        records: of the trials that are finished, or have passed a rung.
        guess: seconds of a candidate before one is known.
    """

    def __init__(self, records: Iterable[Record] = (), guess: float | None = None) -> None:
        self._known: list[tuple[float, float]] = []  # value, seconds
        self._guess = guess
        self._rungs: dict[int, list[float]] = {}
        for record in records:
            self.add(record)
            for rung in range(len(record.rungs)):
                self.passed(record, rung)

    def add(self, record: Record) -> None:
        """Take up a trial that is finished."""
        if record.state == "evaluated" and record.seconds is not None and record.value is not None:
            self._known.append((record.value, record.seconds))

    def passed(self, record: Record, rung: int) -> None:
        """Take up what a candidate took at one of several rungs."""
        self._rungs.setdefault(rung, []).append(record.rungs[rung].seconds or 0.0)

    def of_rung(self, rung: int) -> float | None:
        """Mean seconds of a candidate at a rung, None before one is known."""
        known = self._rungs.get(rung)
        return sum(known) / len(known) if known else None

    @property
    def longest(self) -> float:
        """Mean seconds of the rung that takes longest, as far as that is known."""
        return max([self.each or 0.0, *(self.of_rung(rung) or 0.0 for rung in self._rungs)])

    def look(self, stages: Iterable[Stage]) -> None:
        """Guess from candidates in training, as long as none is finished."""
        self._guess = max((stage.seconds / stage.epoch * stage.epochs for stage in stages), default=self._guess)

    @property
    def each(self) -> float | None:
        """Mean seconds of a candidate, None where nothing says so."""
        return sum(seconds for _, seconds in self._known) / len(self._known) if self._known else self._guess

    def of_best(self, count: int) -> float | None:
        """Seconds of the slowest among the best: what is trained again."""
        return max((seconds for _, seconds in sorted(self._known)[:count]), default=self._guess)


class Allotment:
    """How the time of a command is divided among what stands after the candidates.

    Args:
        request: says how many finalists and epochs are wanted.
        deadline: of the command.
        pace: of the candidates.
        measured: finalists are measured here.
        repeats: of every finalist that are wanted.
        epoch: seconds of an epoch of the winner's training, given what its candidate took, and the arch where it is
            known.
    """

    def __init__(
        self,
        request: Request,
        deadline: Deadline,
        pace: Pace,
        *,
        measured: bool,
        repeats: int,
        epoch: Callable[[float, Arch | None], float],
    ) -> None:
        self._request, self._deadline, self._pace = request, deadline, pace
        self._wanted_repeats, self._epoch = repeats, epoch
        self._measure_seconds = MEASURE_SECONDS if measured else 0.0
        self._at_first = deadline.left

    def is_over(self) -> bool:
        """Whether the next candidate would take time that the steps behind need."""
        left = self._deadline.left
        if left == math.inf:
            return False
        request, best = self._request, self._pace.of_best(self._request.finalists) or 0.0
        training = request.final_epochs * self._epoch(best, None)
        behind = request.finalists * self._measure_seconds + self._repeats(
            request.finalists, self._wanted_repeats, best
        )
        needed = min(MARGIN * (behind + training) + WRITE_SECONDS, (1 - CANDIDATES_SHARE) * self._at_first)
        return left < needed + MARGIN * self._pace.longest

    def measured(self, seconds: float) -> None:
        """A finalist was measured, which took so long."""
        self._measure_seconds = seconds

    def has_time_to_measure(self, candidate_seconds: float, arch: Arch) -> bool:
        """Whether a further finalist can be measured, and trained for an epoch."""
        left = self._deadline.left
        if left == math.inf:
            return True
        return left > MARGIN * (self._measure_seconds + self._epoch(candidate_seconds, arch)) + WRITE_SECONDS

    def repeats(self, finalists: Sequence[float]) -> int:
        """How many repeats of every finalist there is time for, given the seconds that their candidates took."""
        left, wanted = self._deadline.left - WRITE_SECONDS, self._wanted_repeats
        if left == math.inf or not finalists or not wanted:
            return wanted
        slowest = max(finalists)
        final = self._request.final_epochs * self._epoch(slowest, None)

        def fits(count: int) -> bool:
            repeats = MARGIN * self._repeats(len(finalists), count, slowest)
            return repeats + MARGIN * final <= left or repeats <= REPEATS_SHARE * left

        return max(count for count in range(wanted + 1) if count == 0 or fits(count))

    def final_epochs(self, candidate_seconds: float, arch: Arch) -> int:
        """Epochs of the winner that there is time for, at least one, given the seconds that its candidate took."""
        left, wanted = self._deadline.left - WRITE_SECONDS, self._request.final_epochs
        if left == math.inf:
            return wanted
        each = MARGIN * self._epoch(candidate_seconds, arch)
        return wanted if wanted * each <= left else max(int(left / each), 1)

    def _repeats(self, finalists: int, count: int, seconds: float) -> float:
        return math.ceil(finalists * count / self._request.workers) * seconds


class Watch:
    """Shows a search while its candidates train.

    Args:
        request: of the search.
        pace: of its candidates.
        progress: gets what is shown.
        log: gets a line for each candidate that is finished.
    """

    def __init__(self, request: Request, pace: Pace, progress: Progress, log: Callable[[str], None]) -> None:
        self._request, self._pace, self._progress, self._log = request, pace, progress, log
        self._titles = titles_of(request.evaluator)
        self._done, self._best, self._stages = (0,) * len(self._titles), "", tuple[Stage, ...]()

    def begin(self, done: tuple[int, ...]) -> None:
        """So many candidates have a score of each rung from earlier commands."""
        self._done = done
        self._show()

    def rung(self, now: engine.Standing) -> None:
        """A candidate has passed a rung before the last."""
        self._pace.passed(now.record, len(now.record.rungs) - 1)
        self._done = now.rungs
        self._show()

    def trial(self, now: engine.Standing) -> None:
        """A trial is finished."""
        record = now.record
        if record.state == "evaluated":
            self._pace.add(record)
            if record.rungs:
                self._pace.passed(record, len(record.rungs) - 1)
            accuracy = "" if record.val_accuracy is None else f", accuracy {record.val_accuracy:.1%}"
            number = f"{now.rungs[0]} of {now.trials}" + f"; {now.rungs[-1]} at the last rung" * bool(record.rungs)
            self._log(
                f"trial {now.number}: {_shown(record)}{accuracy}, {to_ms(record.predicted_us or 0):.4g} ms "
                f"predicted ({number})"
            )
        elif record.state == "failed":
            self._log(f"trial {now.number} failed: {record.reason}")
        elif record.state == "stopped":
            self._log(f"trial {now.number} {record.reason}")
        self._done = now.rungs
        if record.score and now.best is not None:
            self._best = f", best {_shown(replace(record, value=now.best))}"
        self._show()

    def training(self, stages: tuple[Stage, ...]) -> None:
        """What the workers are at."""
        self._stages = stages
        if len(self._titles) == 1:
            self._pace.look(stages)
        self._show()

    def _show(self) -> None:
        total, done = self._request.trials, self._done
        if len(done) == 1:
            left = seconds_left(total - done[0], self._stages, self._pace.each, self._request.workers)
            text = f"{done[0]} candidate{'s' * (done[0] != 1)} evaluated"
        else:
            left = self._rungs_left()
            text = ", ".join(f"{title} {count}" for title, count in zip(self._titles, done, strict=True))
        self._progress(done[0], total, left, f"{text}{self._best}{epochs_of(self._stages)}")

    def _rungs_left(self) -> float | None:
        """About how long it takes until as many stand at each rung as are expected; None before each has been seen."""
        expected, work = float(self._request.trials), 0.0
        for rung, done in enumerate(self._done):
            each = self._pace.of_rung(rung)
            if each is None:
                return None
            work += max(expected - done, 0.0) * each
            expected = max(expected * EXPECTED, 1.0)
        return work / self._request.workers


def _shown(record: Record) -> str:
    """`validation loss 0.4213`."""
    return f"{title_of(record.score)} {record.value:.4f}"


class RepeatsWatch:
    """Shows the finalists being trained again; see `Watch`.

    Args:
        request: of the search.
        pace: of its candidates.
        total: trainings there will be, those of earlier commands among them.
        progress, log: as there.
    """

    def __init__(
        self, request: Request, pace: Pace, total: int, progress: Progress, log: Callable[[str], None]
    ) -> None:
        self._request, self._pace, self._progress, self._log = request, pace, progress, log
        self._total, self._done, self._stages = total, 0, tuple[Stage, ...]()

    def trained(self, outcome: Outcome) -> None:
        """A training is finished."""
        self._done += 1
        if outcome.score is None:
            self._log(f"a repeated training failed: {outcome.reason}")
        self._show()

    def training(self, stages: tuple[Stage, ...]) -> None:
        """What the workers are at."""
        self._stages = stages
        self._show()

    def _show(self) -> None:
        left = seconds_left(self._total - self._done, self._stages, self._pace.each, self._request.workers)
        text = f"training the finalists again, {self._done} of {self._total}{epochs_of(self._stages)}"
        self._progress(self._done, self._total, left, text)


def epochs_of(stages: Iterable[Stage]) -> str:
    """`; epochs 3/4, 1/4` of the candidates in training, "" where none is."""
    shown = ", ".join(f"{stage.epoch}/{stage.epochs}" for stage in stages)
    return f"; epochs {shown}" if shown else ""


def seconds_left(trainings: int, stages: Iterable[Stage], each: float | None, workers: int) -> float | None:
    """How long so many trainings take, some of which are under way; None where nothing says how long one takes."""
    if each is None:
        return None
    work = trainings - sum(stage.epoch / stage.epochs for stage in stages)
    return max(work, 0.0) * each / max(min(workers, trainings), 1)


def final_epochs(study: Study, request: Request, winner: Finalist, allotment: Allotment) -> int:
    """Epochs of the winner's training: as many as it was begun with for the same request, else as there is time for."""
    key, asked = f"epochs of {winner.arch.id}", {"final_epochs": request.final_epochs, "minutes": request.minutes}
    known = study.user_attrs.get(key, {})
    if {name: known.get(name) for name in asked} != asked:
        known = asked | {"epochs": allotment.final_epochs(winner.record.seconds or 0.0, winner.arch)}
        study.set_user_attr(key, known)
    return int(known["epochs"])
