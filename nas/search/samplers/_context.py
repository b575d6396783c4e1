"""What samplers know: the feasible set, features of candidates, where to start, and what was tried before."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas.core.errors import InputError
from nas.search.feasible import FeasibleSet
from nas.search.lattice import Costs, Path
from nas.search.limits import Estimator
from nas.search.surrogate import Encoder
from nas.search.trials import so_far

MOST_LISTED = 7000  # candidates of a set that are all looked at
REFERENCE = 512  # draws that features are centred and scaled by
LAST = 1_000_000  # the last rung, above all others


@dataclass(frozen=True, eq=False)
class Context:
    """What a search gives its sampler.

    Attributes:
        feasible: the candidates that fit.
        objectives: 1 (loss), or 2 (loss and latency).
        scalars: further numbers that are sums over steps, such as multiply-adds, by name.
        latency: the second objective of paths, in ms, (n, layers) -> (n,); exact, since tables know it.
        starts: candidates to begin with.
        features: scores of paths by the evaluators that the request names as features, (n, layers) -> (n, features);
            None where it names none. What was asked for once is known; else each costs what its evaluator takes.
            Smaller is better.
        features_are_free: whether they cost nothing, as those of a prior.
        estimator: the limits and tables: it says what any arch costs, and whether it fits.
        rungs: how many evaluators score candidates in turn.
    """

    feasible: FeasibleSet
    objectives: int = 1
    scalars: Mapping[str, Costs] = field(default_factory=dict)
    latency: Callable[[np.ndarray], np.ndarray] | None = None
    starts: tuple[Path, ...] = ()
    features: Callable[[np.ndarray], np.ndarray] | None = None
    features_are_free: bool = False
    estimator: Estimator | None = None
    rungs: int = 1
    pasts: MutableMapping[Study, Past] = field(default_factory=weakref.WeakKeyDictionary, repr=False)
    _paths: MutableMapping[Study, dict[int, Path | None]] = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    @property
    def space(self) -> Any:
        """All networks, those that do not fit among them: sampled, mutated, and turned to parameters and back."""
        return self.feasible.lattice.space

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """Even draws of the set, the same in every process. Shape: (REFERENCE, layers)"""
        return self.feasible.draw(np.random.default_rng(0), REFERENCE)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Turns candidates into features of a model, made once since samplers are made anew for every draw."""
        return Encoder(self.feasible.lattice.groups(), list(self.scalars.values()), self.reference)

    @functools.cached_property
    def listed(self) -> list[Path]:
        """All candidates, where they are few enough to look at each; else none."""
        found = self.feasible.listed
        return [] if found is None or len(found) > MOST_LISTED else [tuple(line) for line in found.tolist()]

    def path_of(self, study: Study, trial: FrozenTrial) -> Path | None:
        """The candidate of a trial that has all its parameters; None before, or where they choose none."""
        known = self._paths.setdefault(study, {})
        if trial.number not in known:
            try:
                path = self.feasible.lattice.path_of(trial.params)
            except InputError:
                path = None
            if not trial.state.is_finished() and so_far(trial) is None:  # some parameters may be missing
                return path
            known[trial.number] = path
        return known[trial.number]


@dataclass(frozen=True)
class History:
    """What was tried before a trial, or at all.

    Of several rungs the values are those of one, since values of different evaluators do not compare: of the highest
    where enough candidates have one (as BOHB learns from the largest budget, arXiv:1807.01774, sec. 4.1), and before
    there is such a rung, of the first. That candidates stopped or wait is no matter.

    Attributes:
        seen: candidates of all earlier trials, those in evaluation among them.
        paths, values: those with a score, in order of trials, and their values; one line an objective's column.
    """

    seen: set[Path]
    paths: list[Path]
    values: np.ndarray

    @classmethod
    def of(cls, context: Context, study: Study) -> History:
        """The history of a whole study, with the values of its last rung."""
        return cls._of(context, study, None, None)

    @classmethod
    def before(cls, context: Context, study: Study, trial: FrozenTrial, enough: int = 1) -> History:
        """The history that a trial is drawn from: also where it was begun by an earlier process, which knew less.

        Args:
            context: of the search.
            study: with the trials.
            trial: that is drawn.
            enough: candidates with a value of a rung that a sampler can learn from.
        """
        return cls._of(context, study, trial, enough)

    @classmethod
    def _of(cls, context: Context, study: Study, trial: FrozenTrial | None, enough: int | None) -> History:
        trials = study.get_trials(deepcopy=False)
        if trial is not None and trial.params:  # begun by an earlier process, which did not know all that is finished
            past = Past()
        else:
            past = context.pasts.setdefault(study, Past())
            past.take_up(context, study, trials)
        later = Past()
        for other in trials[past.count :]:
            if (other.params or other.state.is_finished()) and (trial is None or not _is_later(other, trial)):
                later.add(context, study, other, trial is None or not _was_unknown(other, trial), past)
        rung = LAST
        if enough is not None:
            counts = {rung: past.size(rung) + later.size(rung) for rung in {*past.rungs, *later.rungs}}
            rungs = sorted(counts, reverse=True)  # LAST is above all
            rung = next((rung for rung in rungs if counts[rung] >= enough), rungs[-1] if rungs else LAST)
        if not later.seen:
            return cls(past.seen, past.paths(rung), past.array(rung, context.objectives))
        values = np.concatenate([each.array(rung, context.objectives) for each in (past, later)])
        return cls(past.seen | later.seen, [*past.paths(rung), *later.paths(rung)], values)


class Past:
    """What trials tell of candidates: of a study those up to the first that is not finished, so that each is taken up
    once.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seen: set[Path] = set()
        self._values: dict[int, dict[Path, list[float]]] = {}  # by rung
        self._arrays: dict[int, np.ndarray] = {}

    @property
    def rungs(self) -> set[int]:
        """Those where candidates have values."""
        return set(self._values)

    def size(self, rung: int) -> int:
        """How many have a value at a rung."""
        return len(self._values.get(rung, ()))

    def take_up(self, context: Context, study: Study, trials: Sequence[FrozenTrial]) -> None:
        """Go on to the first trial that is not finished."""
        while self.count < len(trials) and trials[self.count].state.is_finished():
            self.add(context, study, trials[self.count])
            self.count += 1

    def add(
        self, context: Context, study: Study, trial: FrozenTrial, known: bool = True, before: Past | None = None
    ) -> None:
        """Take up a trial, with its values where they are known; of one candidate those of the first trial count."""
        path = context.path_of(study, trial)
        if path is None:
            return
        self.seen.add(path)
        if not known:
            return
        record = so_far(trial)
        for rung, passed in enumerate(record.rungs[: context.rungs - 1] if record is not None else ()):
            self._add(path, rung, _objectives(context, path, passed.value), before)
        if trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values)):
            self._add(path, LAST, trial.values, before)

    def _add(self, path: Path, rung: int, values: list[float], before: Past | None) -> None:
        if before is None or path not in before._values.get(rung, ()):
            self._values.setdefault(rung, {}).setdefault(path, values)

    def paths(self, rung: int) -> list[Path]:
        """The candidates with a value at a rung."""
        return list(self._values.get(rung, ()))

    def array(self, rung: int, objectives: int) -> np.ndarray:
        """Their values, a line a candidate. Shape: (n, objectives)"""
        have = self._arrays.get(rung, np.empty((0, objectives)))
        if len(have) < self.size(rung):
            lines = list(self._values[rung].values())[len(have) :]
            have = np.concatenate([have, np.array(lines, dtype=float).reshape(-1, objectives)])
            self._arrays[rung] = have
        return have


def _objectives(context: Context, path: Path, value: float) -> list[float]:
    """What a study would be told if that were the value of a candidate."""
    if context.objectives == 1:
        return [value]
    assert context.latency is not None
    return [value, float(context.latency(np.array([path]))[0])]


def _is_later(other: FrozenTrial, trial: FrozenTrial) -> bool:
    return other.number == trial.number or (other.number > trial.number and not other.state.is_finished())


def _was_unknown(other: FrozenTrial, trial: FrozenTrial) -> bool:
    """Whether a trial was finished after another one had been begun and had some of its parameters."""
    done, begun = other.datetime_complete, trial.datetime_start
    return bool(done is not None and begun is not None and trial.params and done > begun)


class PathSampler(BaseSampler):
    """A sampler of candidates that fit and are new.

    Args:
        seed: of this draw.
        context: of the search.

    Attributes:
        enough: candidates with a value that it needs to learn from; see `History`.
    """

    enough: ClassVar[int] = 1

    def __init__(self, seed: int, context: Context) -> None:
        self.context, self.feasible = context, context.feasible
        self.rng = np.random.default_rng(seed)

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Path | None:
        """A candidate that fits and was not seen; None to draw one evenly."""
        raise NotImplementedError

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Known from outside."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the candidate that `propose` gives."""
        history = History.before(self.context, study, trial, self.enough)
        path = self.propose(study, trial, history)
        if path is None or path in history.seen:
            path = self.feasible.unseen(self.rng, history.seen)
        if path is None:  # the engine asks `is_exhausted` first; a trial that a killed process left may come here
            path = tuple(map(int, self.feasible.draw(self.rng)[0]))
        params = self.feasible.lattice.params_of(path)
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: all parameters are drawn jointly."""
        raise InputError(f"{param_name} is no parameter of the space")

    def fitting_and_new(self, path: Path, history: History) -> bool:
        """Whether a candidate may be proposed."""
        return path not in history.seen and self.feasible.fits(path)


def is_exhausted(context: Context, study: Study) -> bool:
    """Whether every candidate that fits was proposed."""
    seen = History.of(context, study).seen
    if 4 * len(seen) < context.feasible.about:
        return False
    return context.feasible.unseen(np.random.default_rng(0), seen) is None
