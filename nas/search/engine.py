"""The search loop: propose, price, evaluate what fits, tell the study; one coordinator, any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from nas.core.errors import NasError, RunError
from nas.report.schema import STATES
from nas.search.ledger import Ledger, Proposal
from nas.search.trials import Record
from nas.search.workers import Outcome, Task

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.space import Space
    from nas.search.limits import Estimate, Estimator

DRY_AFTER = 1000  # proposals in a row without a new candidate
FIRST_FAILURES = 5  # evaluations that may fail before the first succeeds
FAILURES_IN_A_ROW = 20
FOLLOWERS = 10  # repeats of candidates in flight that may wait for them, per worker


class Workers(Protocol):
    """Where candidates are evaluated: a `Pool`, or what stands for it in a test."""

    size: int

    @property
    def idle(self) -> int:
        """How many tasks could start at once."""

    def submit(self, task: Task) -> None:
        """Start a task."""

    def wait(self) -> Outcome:
        """The next outcome."""


@dataclass(frozen=True)
class Standing:
    """Where a search stands after a trial.

    Attributes:
        number: of the trial.
        record: what became of it.
        trials: evaluated candidates that were asked for.
        counts: trials so far by state, those of earlier processes included.
        best: the lowest value so far, None before the first.
    """

    number: int
    record: Record
    trials: int
    counts: dict[str, int]
    best: float | None


@dataclass(frozen=True)
class _Candidate:
    proposal: Proposal
    arch: Arch
    record: Record  # everything but what becomes of it


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
        trials: evaluated candidates to reach, those of earlier processes included.
        seed: of the training of every candidate.
        on_trial: called after each trial.
        is_over: whether the time is up: then nothing more is proposed, once something is evaluated.
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
        on_trial: Callable[[Standing], None] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ledger, self._space, self._estimator, self._workers = ledger, space, estimator, workers
        self._trials, self._seed, self._on_trial, self._is_over = trials, seed, on_trial, is_over
        self._counts: dict[str, int] = dict.fromkeys(STATES, 0)
        self._scores: dict[str, tuple[int, Record]] = {}  # by arch
        self._failures: dict[str, tuple[int, str]] = {}  # by arch
        self._in_flight: dict[str, list[_Candidate]] = {}  # by arch: the one in evaluation, then its followers
        self._best: float | None = None
        self._since_new = 0  # proposals since the last new candidate
        self._failed_in_a_row = 0
        self._evaluated_here = 0
        self._recall(ledger.past())

    def _recall(self, past: Sequence[tuple[int, Record]]) -> None:
        """Take up the state that earlier processes left. Failures that ended one of them are given another chance."""
        last: list[str] = []
        for number, record in past:
            is_new = record.arch not in self._failures
            self._remember(number, record)
            if record.state == "evaluated":
                last.clear()
            elif is_new and record.arch in self._failures:
                last.append(record.arch)
        for arch_id in last if len(last) >= FIRST_FAILURES else ():
            del self._failures[arch_id]

    def run(self) -> str:
        """Search.

        Returns:
            "", or why fewer candidates than asked for were evaluated: the time is up, or proposals ran dry.

        Raises:
            RunError: evaluations fail one after the other; it carries the last reason.
        """
        while True:
            while self._takes_more():
                self._propose()
            if not self._in_flight:
                return self._why_dry() if self._counts["evaluated"] < self._trials else ""
            self._receive(self._workers.wait())

    def _takes_more(self) -> bool:
        if not self._workers.idle or ((self._counts["evaluated"] or self._in_flight) and self._is_over()):
            return False
        if self._ledger.left_over:
            return True
        waiting = sum(map(len, self._in_flight.values())) - len(self._in_flight)
        return (
            self._counts["evaluated"] + len(self._in_flight) < self._trials
            and waiting < FOLLOWERS * self._workers.size
            and self._since_new < DRY_AFTER
            and not self._ledger.exhausted
        )

    def _propose(self) -> None:
        try:
            proposal = self._ledger.propose()
        except ValueError:  # told as failed there
            self._count("failed")
            self._since_new += 1
            return
        if proposal.record is not None:
            self._finish(proposal, proposal.record)
            return
        try:
            arch = self._space.arch(proposal.params)
            estimate = self._estimator.estimate(arch)
        except NasError as error:
            self._finish(proposal, Record("failed", reason=str(error), seed=self._seed))
            return
        self._ledger.constrain(proposal, self._estimator.constraints(estimate))
        self._settle(_Candidate(proposal, arch, self._priced(arch, estimate)), self._estimator.misfit(estimate))

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
        """Send a candidate where it belongs: nowhere, to the score it already has, or to a worker."""
        proposal, record, arch = candidate.proposal, candidate.record, candidate.arch
        if misfit:
            self._finish(proposal, replace(record, state="infeasible", reason=misfit))
        elif arch.id in self._scores:
            self._finish(proposal, self._again(record))
        elif arch.id in self._in_flight:
            self._in_flight[arch.id].append(candidate)
        elif arch.id in self._failures:
            self._finish(proposal, self._failed_again(record))
        else:
            self._in_flight[arch.id] = [candidate]
            self._since_new = 0
            self._ledger.keep(proposal)
            self._workers.submit(Task(proposal.number, arch.to_json(), self._seed))

    def _again(self, record: Record) -> Record:
        number, earlier = self._scores[record.arch]
        return replace(record.scored(earlier), state="duplicate", duplicate_of=number)

    def _failed_again(self, record: Record) -> Record:
        number, reason = self._failures[record.arch]
        return replace(record, state="failed", reason=f"the arch of trial {number}, which failed: {reason}")

    def _receive(self, outcome: Outcome) -> None:
        arch_id = next(key for key, waiting in self._in_flight.items() if waiting[0].proposal.number == outcome.key)
        first, *followers = self._in_flight.pop(arch_id)
        if outcome.score is None:
            self._finish(first.proposal, replace(first.record, state="failed", reason=outcome.reason))
            for candidate in followers:
                self._finish(candidate.proposal, self._failed_again(candidate.record))
            self._failed_in_a_row += 1
            self._require_successes(outcome.reason)
            return
        score = outcome.score
        record = first.record.scored(score)
        self._finish(first.proposal, replace(record, seconds=score.seconds, cost=score.cost))
        for candidate in followers:
            self._finish(candidate.proposal, self._again(candidate.record))
        self._failed_in_a_row = 0
        self._evaluated_here += 1

    def _require_successes(self, reason: str) -> None:
        allowed = FAILURES_IN_A_ROW if self._evaluated_here else FIRST_FAILURES
        if self._failed_in_a_row >= allowed:
            which = "in a row" if self._evaluated_here else "and no other"
            raise RunError(
                f"{self._failed_in_a_row} evaluations {which} failed, the last one because: {reason}. "
                "Repair the cause; the same command then continues the run"
            )

    def _finish(self, proposal: Proposal, record: Record) -> None:
        self._ledger.tell(proposal, record)
        self._remember(proposal.number, record)
        if self._on_trial is not None:
            self._on_trial(Standing(proposal.number, record, self._trials, dict(self._counts), self._best))

    def _remember(self, number: int, record: Record) -> None:
        self._count(record.state)
        self._since_new = 0 if record.state == "evaluated" else self._since_new + 1
        if record.state == "evaluated" and record.value is not None:
            self._scores[record.arch] = number, record
            self._best = record.value if self._best is None else min(self._best, record.value)
        elif record.state == "failed" and record.arch:
            self._failures.setdefault(record.arch, (number, record.reason))

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
            done = f"{self._counts['evaluated']} of {self._trials} candidates"
            return f"the search of candidates ends after {done}: the time is needed for what comes now"
        return (
            f"the last {self._since_new} proposals gave no new candidate that fits, so the search stops with {counts}: "
            "raise the budget, or try another sampler"
        )
