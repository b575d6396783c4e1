"""The study as the engine sees it: it proposes parameters, and keeps what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from nas.search.samplers._seeded import Seeded
from nas.search.study import owned_storage_of
from nas.search.trials import RECORD, SO_FAR, Record, record_of, so_far


@dataclass(frozen=True)
class Proposal:
    """A trial that has parameters and no result yet.

    Attributes:
        trial: Optuna's.
        params: value of every parameter.
        record: what an earlier process found but did not live to tell the study; usually None.
        so_far: what it would be if it stopped, where it has passed rungs already; else None.
    """

    trial: optuna.Trial
    params: dict[str, Any]
    record: Record | None = None
    so_far: Record | None = None

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number


class Ledger:
    """Asks and tells a study.

    Trials that a killed process left running go first, in order: they keep their numbers, the parameters and the rungs
    that they already have, and the seeded sampler draws the rest as it would have. So nothing is drawn twice, and a run
    of one worker is the same as if it had never been interrupted.

    Args:
        study: nobody else asks or tells it meanwhile.
        distributions: the fixed parameters.
    """

    def __init__(self, study: optuna.Study, distributions: Mapping[str, BaseDistribution]) -> None:
        self._study, self._storage = study, owned_storage_of(study)
        self._distributions = dict(sorted(distributions.items()))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._left = deque(trial for trial in running if not _waits(trial))
        self._waiting = [trial for trial in running if _waits(trial)]

    @property
    def left_over(self) -> int:
        """How many trials of a killed process still wait to be proposed again."""
        return len(self._left)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has proposed every candidate that fits."""
        sampler = self._study.sampler
        return isinstance(sampler, Seeded) and sampler.is_exhausted(self._study)

    def past(self) -> list[tuple[int, Record]]:
        """Number and record of every finished trial, in order."""
        finished = (trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished())
        return [(trial.number, record_of(trial) or Record("failed")) for trial in finished]

    def waiting(self) -> list[Proposal]:
        """The trials of a killed process that have passed rungs, for whoever goes on with them."""
        return [self._with_params(self._again(frozen)) for frozen in self._waiting]

    def try_again(self, number: int) -> None:
        """Let the candidate of a trial that failed be proposed next, with the rungs that it has passed."""
        trials = self._study.get_trials(deepcopy=False)
        failed, record = trials[number], record_of(trials[number])
        queued = (trial for trial in trials if trial.state is TrialState.WAITING)
        if any(trial.system_attrs.get("fixed_params") == failed.params for trial in queued):
            return  # by a process that was killed before it asked for it
        known = replace(record, state="stopped", reason="", lost=False) if record and record.rungs else None
        self._study.enqueue_trial(failed.params, None if known is None else {SO_FAR: known.as_data()})

    def propose(self) -> Proposal:
        """The next trial with its parameters.

        Raises:
            ValueError: a parameter that someone enqueued has no such value; the trial is told as failed.
        """
        if not self._left:
            return self._with_params(self._study.ask())
        return self._with_params(self._again(self._left.popleft()))

    def _again(self, frozen: FrozenTrial) -> optuna.Trial:
        return optuna.Trial(self._study, frozen._trial_id)

    def _with_params(self, trial: optuna.Trial) -> Proposal:
        try:
            params = {name: _suggest(trial, name, dist) for name, dist in self._distributions.items()}
        except ValueError as error:
            self.tell(Proposal(trial, {}), Record("failed", reason=str(error)))
            raise
        return Proposal(trial, params, record_of(trial), so_far(trial))

    def constrain(self, proposal: Proposal, constraints: Mapping[str, float]) -> None:
        """Note by how much each budget is exceeded, as a share of it; positive is infeasible."""
        noted = proposal.trial.constraints
        for name, excess in constraints.items():
            if name not in noted:
                proposal.trial.set_constraint(name, excess)

    def keep(self, proposal: Proposal) -> None:
        """Write a trial, which is sent to a worker now."""
        self._storage.keep(proposal.number)

    def passed(self, proposal: Proposal, record: Record) -> None:
        """Keep what a trial would be if it stopped at the rung that it has passed; it is not finished."""
        proposal.trial.set_user_attr(SO_FAR, record.as_data())

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Finish a trial: the record first, then the values, so that a kill in between loses neither.

        What it reached at rungs becomes its intermediate values, the first rung being step 0, and a trial that stopped
        is pruned. Optuna knows no intermediate values where there are several objectives: there the record has them.
        """
        if proposal.record is None:
            proposal.trial.set_user_attr(RECORD, record.as_data())
        if record.rungs and len(self._study.directions) == 1:
            known = self._study.get_trials(deepcopy=False)[proposal.number].intermediate_values
            for step, rung in enumerate(record.rungs):
                if step not in known:
                    proposal.trial.report(rung.value, step)
        if record.state == "failed":
            self._study.tell(proposal.trial, state=TrialState.FAIL)
        elif record.rungs and record.value is None:
            self._study.tell(proposal.trial, state=TrialState.PRUNED)
        else:
            self._study.tell(proposal.trial, record.values(len(self._study.directions)), TrialState.COMPLETE)


def _waits(trial: FrozenTrial) -> bool:
    return RECORD not in trial.user_attrs and SO_FAR in trial.user_attrs


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)
