"""The search loop: propose, price, evaluate what fits, tell the study; one coordinator, any number of workers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nas.core.errors import NasError, RunError
from nas.evaluation.evaluators import title_of
from nas.report.schema import STATES
from nas.search.ledger import Ledger, Proposal
from nas.search.rungs import Going, Rungs
from nas.search.trials import Record, Rung
from nas.search.workers import Dispatch, Outcome, Task, Workers

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.space import Space
    from nas.search.limits import Estimate, Estimator

DRY_AFTER = 1000  # proposals in a row without a new candidate
FIRST_FAILURES = 5  # evaluations that may fail before the first succeeds
FAILURES_IN_A_ROW = 20
FOLLOWERS = 10  # repeats of candidates in flight that may wait for them, per worker


@dataclass(frozen=True)
class Standing:
    """Where a search stands after a trial, or after a rung of one.

    Attributes:
        number: of the trial.
        record: what became of it, or what it would be if it stopped at this rung.
        trials: candidates with a score of the first rung that were asked for.
        counts: trials so far by state, those of earlier processes included.
        rungs: candidates so far with a score of each rung, likewise.
        best: the lowest value so far, None before the first.
    """

    number: int
    record: Record
    trials: int
    counts: dict[str, int]
    rungs: tuple[int, ...]
    best: float | None


@dataclass(frozen=True)
class _Candidate:
    proposal: Proposal
    arch: Arch
    record: Record  # everything but what becomes of it


@dataclass
class _Flight:
    """A candidate at work, where it goes, and the repeats of it that take its score."""

    candidate: _Candidate
    going: Going
    followers: list[_Candidate]


class Engine:
    """Runs a study until enough candidates are evaluated.

    What exceeds a budget is told as infeasible and never evaluated; an arch that was evaluated before, or is being
    evaluated now, takes that score. All state between two trials is incremental, so that a trial costs the same at the
    end as at the beginning.

    Args:
        ledger: the study.
        space: what the parameters choose from.
        estimator: prices archs and knows the budgets.
        workers: evaluate candidates.
        trials: candidates with a score of the first rung to reach, those of earlier processes included.
        seed: of the training of every candidate, and of chance.
        rungs: how many evaluators there are; see `nas.search.rungs`.
        front: whether latency is an objective, too.
        on_trial: called after each trial.
        on_rung: called when a candidate has passed a rung before the last.
        is_over: whether the time is up: then nothing more is begun, once something is evaluated.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        estimator: Estimator,
        workers: Workers,
        *,
        trials: int,
        seed: int,
        rungs: int = 1,
        front: bool = False,
        on_trial: Callable[[Standing], None] | None = None,
        on_rung: Callable[[Standing], None] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ledger, self._space, self._estimator, self._workers = ledger, space, estimator, Dispatch(workers)
        self._trials, self._seed, self._is_over = trials, seed, is_over
        self._on_trial, self._on_rung = on_trial, on_rung
        self._rungs = Rungs(rungs, front=front, seed=seed)
        self._counts: dict[str, int] = dict.fromkeys(STATES, 0)
        self._known: dict[str, tuple[int, Record]] = {}  # by arch: those that are evaluated or stopped
        self._failures: dict[str, tuple[int, str]] = {}  # by arch
        self._lost: deque[tuple[int, str]] = deque()  # trials of earlier processes that are tried again, and archs
        self._waiting: dict[int, _Candidate] = {}  # by trial: those that have passed a rung
        self._flights: dict[int, _Flight] = {}  # by trial
        self._at_work: dict[str, int] = {}  # by arch: the trial of those that wait or fly
        self._best: float | None = None
        self._since_new = 0  # proposals since the last new candidate
        self._failed_in_a_row: Counter[int] = Counter()  # by rung
        self._evaluated_here: Counter[int] = Counter()
        self._recall(ledger.past())

    def _recall(self, past: Sequence[tuple[int, Record]]) -> None:
        """Take up the state that earlier processes left. Failures that ended one of them are given another chance, and
        so is once what failed since its workers were lost.
        """
        last: list[str] = []
        times = Counter(record.arch for _, record in past if record.lost or record.state in ("evaluated", "stopped"))
        latest = {record.arch: number for number, record in past}
        for number, record in past:
            is_new = record.arch not in self._failures
            if record.lost and times[record.arch] == 1:
                self._lost.append((number, record.arch))
                self._count("failed")
                continue
            self._remember(number, record)
            if not record.lost or latest[record.arch] == number:  # else a later trial went on with its rungs
                self._place(number, record)
            if record.state in ("evaluated", "stopped"):
                self._since_new = 0
                last.clear()
            elif is_new and record.arch in self._failures:
                last.append(record.arch)
        for arch_id in last if len(last) >= FIRST_FAILURES else ():
            del self._failures[arch_id]
        for proposal in self._ledger.waiting():
            self._take_up(proposal)

    def _place(self, number: int, record: Record) -> None:
        """Let a candidate stand at the rungs that it has passed."""
        if record.state in ("infeasible", "duplicate"):
            return
        values = [rung.value for rung in record.rungs]
        if record.value is not None and not values:  # there is one rung
            values = [record.value]
        for rung, value in enumerate(values):
            self._rungs.scored(number, rung, value, record.predicted_us or 0.0)
        if values and record.state == "failed":
            self._rungs.failed(number, len(values))
        elif record.state == "stopped" and number not in self._waiting:
            self._rungs.stopped(number, len(values) - 1)

    @property
    def scored(self) -> tuple[int, ...]:
        """How many candidates have a score of each rung."""
        return self._rungs.counts

    def run(self) -> str:
        """Search.

        Returns:
            "", or why fewer candidates than asked for were evaluated: the time is up, or proposals ran dry.

        Raises:
            RunError: evaluations fail one after the other; it carries the last reason.
        """
        while True:
            while self._workers.idle and self._start():
                pass
            if not self._flights:
                for number in self._rungs.waiting():  # the time is up
                    self._stop(number)
                return self._why_dry() if self._rungs.counts[0] < self._trials else ""
            self._receive(self._workers.wait())

    def _start(self) -> bool:
        """Begin what comes next, if there is something: what was begun before, a candidate that goes on, a new one."""
        if self._is_over():
            if self._counts["evaluated"] or self._flights:
                return False
            if (going := self._rungs.furthest()) is not None:
                self._send(going)
                return True
        if self._ledger.left_over:
            self._propose()
            return True
        new = self._to_begin()
        beginning = new + sum(flight.going.rung == 0 for flight in self._flights.values())
        for number in self._rungs.stops(beginning):
            self._stop(number)
        if (going := self._rungs.next(beginning)) is not None:
            self._send(going)
            return True
        waiting = sum(len(flight.followers) for flight in self._flights.values())
        if not new or waiting >= FOLLOWERS * self._workers.size:
            return False
        self._propose()
        return True

    def _to_begin(self) -> int:
        """How many further candidates are to begin: none where proposals ran dry."""
        if self._since_new >= DRY_AFTER or (not self._lost and self._ledger.exhausted):
            return 0
        beginning = sum(flight.going.rung == 0 for flight in self._flights.values())
        return max(self._trials - self._rungs.counts[0] - beginning, 0)

    def _propose(self) -> None:
        if not self._ledger.left_over:
            self._try_lost()
        try:
            proposal = self._ledger.propose()
        except ValueError:  # told as failed there
            self._count("failed")
            self._since_new += 1
            return
        self._take_up(proposal)

    def _try_lost(self) -> None:
        """Have a candidate whose workers were lost proposed next, if there is one that nobody proposed meanwhile."""
        while self._lost:
            number, arch_id = self._lost.popleft()
            if not any(arch_id in known for known in (self._known, self._failures, self._at_work)):
                self._ledger.try_again(number)
                return

    def _take_up(self, proposal: Proposal) -> None:
        """Price a proposal, and send it where it belongs."""
        if proposal.record is not None:
            self._place(proposal.number, proposal.record)
            self._finish(proposal, proposal.record)
            return
        try:
            arch = self._space.arch(proposal.params)
            estimate = self._estimator.estimate(arch)
        except NasError as error:
            self._finish(proposal, Record("failed", reason=str(error), seed=self._seed))
            return
        self._ledger.constrain(proposal, self._estimator.constraints(estimate))
        candidate = _Candidate(proposal, arch, proposal.so_far or self._priced(arch, estimate))
        if proposal.so_far is not None:
            self._waiting[proposal.number] = candidate
            self._place(proposal.number, proposal.so_far)
            self._at_work[arch.id] = proposal.number
        else:
            self._settle(candidate, self._estimator.misfit(estimate))

    def _priced(self, arch: Arch, estimate: Estimate) -> Record:
        latency = estimate.latency
        return Record(
            "evaluated",
            arch=arch.id,
            predicted_us=latency.total_us,
            low_us=latency.low_us,
            high_us=latency.high_us,
            params=estimate.params,
            macs=estimate.macs,
            seed=self._seed,
        )

    def _settle(self, candidate: _Candidate, misfit: str) -> None:
        """Send a new candidate where it belongs: nowhere, to the score it already has, or to a worker."""
        proposal, record, arch = candidate.proposal, candidate.record, candidate.arch
        if misfit:
            self._finish(proposal, replace(record, state="infeasible", reason=misfit))
        elif arch.id in self._known:
            self._finish(proposal, self._again(record))
        elif arch.id in self._at_work:
            self._follow(candidate)
        elif arch.id in self._failures:
            self._finish(proposal, self._failed_again(record))
        else:
            self._at_work[arch.id] = proposal.number
            self._since_new = 0
            self._ledger.keep(proposal)
            self._fly(candidate, Going(proposal.number, 0, by_chance=False))

    def _follow(self, candidate: _Candidate) -> None:
        """Let a repeat of an arch that is at work wait for its score; of several rungs it takes what is there."""
        number = self._at_work[candidate.arch.id]
        first = self._waiting[number] if number in self._waiting else self._flights[number].candidate
        if first.record.rungs:
            self._finish(candidate.proposal, self._repeat(candidate.record, number, first.record))
        else:
            self._flights[number].followers.append(candidate)

    def _send(self, going: Going) -> None:
        """Send a candidate that waits to its next rung."""
        self._rungs.sent(going)
        self._fly(self._waiting.pop(going.number), going)

    def _fly(self, candidate: _Candidate, going: Going) -> None:
        self._flights[going.number] = _Flight(candidate, going, [])
        self._workers.submit(Task(going.number, candidate.arch.to_json(), self._seed, going.rung))

    def _stop(self, number: int) -> None:
        """Tell a candidate that waits that it goes no further."""
        candidate = self._waiting.pop(number)
        count, rung = len(candidate.record.rungs), candidate.record.rungs[-1]
        self._rungs.stopped(number, count - 1)
        reason = f"stopped at rung {count} of {self._rungs.last + 1}, {title_of(rung.score)} {rung.value:.6g}"
        self._finish(candidate.proposal, replace(candidate.record, state="stopped", reason=reason))

    def _again(self, record: Record) -> Record:
        return self._repeat(record, *self._known[record.arch])

    def _repeat(self, record: Record, number: int, earlier: Record) -> Record:
        return replace(record.scored(earlier), state="duplicate", duplicate_of=number, rungs=earlier.rungs)

    def _failed_again(self, record: Record) -> Record:
        number, reason = self._failures[record.arch]
        return replace(record, state="failed", reason=f"the arch of trial {number}, which failed: {reason}")

    def _receive(self, outcome: Outcome) -> None:
        flight = self._flights.pop(outcome.key)
        candidate, (number, rung, by_chance) = flight.candidate, flight.going
        if outcome.score is None:
            self._rungs.failed(number, rung)
            record = replace(candidate.record, state="failed", reason=outcome.reason, lost=outcome.lost)
            self._finish(candidate.proposal, record)
            for follower in flight.followers:
                self._finish(follower.proposal, self._failed_again(follower.record))
            self._failed_in_a_row[rung] += 1
            self._require_successes(rung, outcome.reason)
            return
        score, record = outcome.score, candidate.record
        self._rungs.scored(number, rung, score.value, record.predicted_us or 0.0)
        self._failed_in_a_row[rung] = 0
        self._evaluated_here[rung] += 1
        if self._rungs.last > 0:
            passed = Rung(score.name, score.value, score.seconds, score.cost, by_chance)
            record = replace(record, rungs=(*record.rungs, passed))
        if rung < self._rungs.last:
            record = replace(record, state="stopped")
            self._waiting[number] = replace(candidate, record=record)
            self._ledger.passed(candidate.proposal, record)
            if self._on_rung is not None:
                self._on_rung(self._standing(number, record))
            for follower in flight.followers:
                self._follow(follower)
            return
        record = replace(record.scored(score), state="evaluated", seconds=score.seconds, cost=score.cost)
        self._finish(candidate.proposal, record)
        for follower in flight.followers:
            self._finish(follower.proposal, self._again(follower.record))

    def _require_successes(self, rung: int, reason: str) -> None:
        failed, here = self._failed_in_a_row[rung], self._evaluated_here[rung]
        if failed >= (FAILURES_IN_A_ROW if here else FIRST_FAILURES):
            at = f" of rung {rung + 1}" if self._rungs.last else ""
            raise RunError(
                f"{failed} evaluations{at} {'in a row' if here else 'and no other'} failed, the last one because: "
                f"{reason}. Repair the cause; the same command then continues the run"
            )

    def _finish(self, proposal: Proposal, record: Record) -> None:
        self._ledger.tell(proposal, record)
        self._remember(proposal.number, record)
        if self._on_trial is not None:
            self._on_trial(self._standing(proposal.number, record))

    def _standing(self, number: int, record: Record) -> Standing:
        return Standing(number, record, self._trials, dict(self._counts), self._rungs.counts, self._best)

    def _remember(self, number: int, record: Record) -> None:
        self._count(record.state)
        if record.state in ("evaluated", "stopped"):
            self._known[record.arch] = number, record
        else:
            self._since_new += 1
        if record.state == "evaluated" and record.value is not None:
            self._best = record.value if self._best is None else min(self._best, record.value)
        elif record.state == "failed" and record.arch:
            self._failures.setdefault(record.arch, (number, record.reason))
        if self._at_work.get(record.arch) == number:
            del self._at_work[record.arch]

    def _count(self, state: str) -> None:
        self._counts[state] += 1

    def _why_dry(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self._counts.items() if count)
        if self._ledger.exhausted:
            return (
                f"every network that fits was proposed, so the search stops with {counts or 'nothing'}: raise a budget "
                "to have more of them"
            )
        if self._since_new < DRY_AFTER and self._counts["evaluated"]:
            done = f"{self._rungs.counts[0]} of {self._trials} candidates"
            return f"the search of candidates ends after {done}: the time is needed for what comes now"
        return (
            f"the last {self._since_new} proposals gave no new candidate that fits, so the search stops with {counts}: "
            "raise the budget, or try another sampler"
        )
