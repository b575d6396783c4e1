"""Where a study is kept, and how its one owner writes there: little, and as a whole.

Optuna's storages write every parameter of a trial for itself, and read again what nobody else can have written. Here a
study is read once and kept in memory, and a trial is written when it is sent to a worker (`keep`) or is finished: one
commit for a candidate that is never evaluated, three for one that is. What a kill loses before that is drawn again, and
equally.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.core.errors import HIDDEN, InputError, RunError, without_passwords
from nas.search.owner import Owner

JOURNAL = "study.journal"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """An open storage.

    Attributes:
        backend: Optuna's.
        owner: of a study there, where the database knows who that is.
    """

    backend: BaseStorage
    owner: Owner | None = None

    def ask(self, call: Callable[[], Result]) -> Result:
        """Carry out a call that reads or writes the backend."""
        return call() if self.owner is None else self.owner.ask(call)

    def close(self) -> None:
        """Let the study go."""
        if self.owner is not None:
            self.owner.close()


def open_storage(storage: str | Path | BaseStorage, name: str) -> Store:
    """Open the storage of a study, as its only owner where it is a PostgreSQL; see `nas.search.study.open_study`."""
    if isinstance(storage, BaseStorage):
        return Store(storage)
    if isinstance(storage, str) and "://" in storage:
        return _database(storage, name)
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    mend_journal(path)
    try:
        return Store(JournalStorage(JournalFileBackend(str(path))))
    except (ValueError, KeyError) as error:
        raise RunError(
            f"{path} is damaged and cannot be read as an Optuna journal: {error}. Put a copy of it back, or delete the "
            "run directory to start over"
        ) from error


def _database(url: str, name: str) -> Store:
    shown = without_passwords(url, url)
    if HIDDEN in url:
        raise InputError(f"storage: the password of {shown} is not kept; give the whole URL again with --storage")
    try:
        if not url.startswith(("postgresql", "mysql")):
            return Store(get_storage(url))
        # a server may have been restarted, or have closed what was idle
        rdb = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "pool_recycle": 1800})
        return Store(get_storage(rdb), Owner(rdb.engine, name, shown) if url.startswith("postgresql") else None)
    except RunError:
        raise
    except Exception as error:  # of any database driver
        reason = without_passwords(str(error), url)
        raise InputError(f"storage: Optuna cannot use {shown!r}: {reason}") from None  # it would show the URL


class OwnedStorage(BaseStorage):
    """A study as its owner sees it, made where it does not exist; the id of a trial is its number.

    Args:
        store: where the study is kept.
        name: of it.
        objectives: how many it has, all of them minimized, where it is made.
    """

    def __init__(self, store: Store, name: str, objectives: int) -> None:
        self._store, self._backend, self._name = store, store.backend, name
        self._study_id = store.ask(lambda: self._find(objectives))
        self._directions = self._backend.get_study_directions(self._study_id)
        self._user_attrs = dict(self._backend.get_study_user_attrs(self._study_id))
        self._system_attrs = dict(self._backend.get_study_system_attrs(self._study_id))
        self._trials: list[FrozenTrial] = []
        self._kept: list[int] = []  # ids there, of the first trials; those behind them are not written yet
        self._distributions: dict[str, BaseDistribution] = {}
        store.ask(self._read_further)

    def _find(self, objectives: int) -> int:
        try:
            return self._backend.get_study_id_from_name(self._name)  # which writes nothing
        except KeyError:
            return self._backend.create_new_study([StudyDirection.MINIMIZE] * objectives, self._name)

    def close(self) -> None:
        """Let the study go."""
        self._store.close()

    def _read_further(self) -> None:
        """Take up trials of others, such as enqueued ones: all of them there once, later those behind the last."""
        for trial in self._backend.get_all_trials(self._study_id, deepcopy=False)[len(self._kept) :]:
            own = copy.copy(trial)
            self._kept.append(trial._trial_id)
            own._trial_id = own.number = len(self._trials)
            self._trials.append(own)
            for param, distribution in own.distributions.items():
                self._distributions.setdefault(param, distribution)

    def keep(self, number: int) -> None:
        """Write a trial, and those before it, where that is still to be done.

        Raises:
            RunError: someone else has written trials meanwhile.
        """
        while len(self._kept) <= number:
            self._create(self._trials[len(self._kept)])

    def _create(self, trial: FrozenTrial) -> None:
        before, tried = len(self._kept), False

        def create() -> int:
            nonlocal tried
            if tried:  # and the connection was lost, perhaps behind the commit
                there = self._backend.get_all_trials(self._study_id, deepcopy=False)[before:]
                if there and there[0].datetime_start == trial.datetime_start:
                    return there[0]._trial_id
            tried = True
            return self._backend.create_new_trial(self._study_id, trial)

        there = self._store.ask(create)
        if self._backend.get_trial_id_from_study_id_trial_number(self._study_id, before) != there:
            raise RunError(
                f"someone else has added trials to study {self._name!r} at the very moment when this run did; the same "
                "command continues it with them"
            )
        self._kept.append(there)

    def _change(self, trial_id: int, **values: Any) -> FrozenTrial:
        """Replace a trial by a copy with other values: readers of the former keep what they have read."""
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        changed = copy.copy(self._trials[trial_id])
        for name, value in values.items():
            setattr(changed, name, value)
        self._trials[trial_id] = changed
        return changed

    def _pass_on(self, trial_id: int, method: str, *args: Any) -> FrozenTrial:
        """Change a trial in the backend, where it stands there by now; returns it as it is here."""
        if trial_id < len(self._kept):
            there = self._kept[trial_id]
            self._store.ask(lambda: getattr(self._backend, method)(there, *args))
        return self.get_trial(trial_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if len(self._kept) == len(self._trials):
            self._store.ask(self._read_further)
        trial = copy.copy(template_trial) if template_trial is not None else create_trial(state=TrialState.RUNNING)
        trial.datetime_start = trial.datetime_start or datetime.datetime.now()
        trial._trial_id = trial.number = len(self._trials)
        self._trials.append(trial)
        if trial.state != TrialState.RUNNING:
            self.keep(trial.number)
        return trial.number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        known = self._distributions.setdefault(param_name, distribution)
        check_distribution_compatibility(known, distribution)
        if known == distribution:
            distribution = known  # one object for all trials
        trial = self._pass_on(trial_id, "set_trial_param", param_name, param_value_internal, distribution)
        value = distribution.to_external_repr(param_value_internal)
        params, distributions = trial.params | {param_name: value}, trial.distributions | {param_name: distribution}
        self._change(trial_id, params=params, distributions=distributions)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        trial, is_kept = self.get_trial(trial_id), trial_id < len(self._kept)
        self.check_trial_is_updatable(trial_id, trial.state)
        if state == TrialState.RUNNING and trial.state != TrialState.WAITING:
            return False

        tried = False

        def tell() -> bool:
            nonlocal tried
            there = self._kept[trial_id]
            if tried and self._backend.get_trial(there).state == state:
                return True  # the connection was lost behind the commit
            tried = True
            return self._backend.set_trial_state_values(there, state, values)

        if is_kept and not self._store.ask(tell):
            return False
        times: dict[str, Any] = {}
        if state == TrialState.RUNNING:
            times["datetime_start"] = datetime.datetime.now()
        if state.is_finished():
            times["datetime_complete"] = datetime.datetime.now()
        changed = self._change(trial_id, state=state, **times)
        if values is not None:
            changed.values = list(values)
        if not is_kept and state.is_finished():
            self.keep(trial_id)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        trial = self._pass_on(trial_id, "set_trial_intermediate_value", step, intermediate_value)
        self._change(trial_id, intermediate_values=trial.intermediate_values | {step: intermediate_value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._pass_on(trial_id, "set_trial_user_attr", key, value)
        self._change(trial_id, user_attrs=trial.user_attrs | {key: value})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._pass_on(trial_id, "set_trial_system_attr", key, value)
        self._change(trial_id, system_attrs=trial.system_attrs | {key: value})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if not 0 <= trial_id < len(self._trials):
            raise KeyError(trial_id)
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self.get_trial(trial_number)._trial_id

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self.get_trial(trial_id).number

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        trial = self.get_trial(trial_id)
        return trial.distributions[param_name].to_internal_repr(trial.params[param_name])

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._store.ask(lambda: self._backend.set_study_user_attr(self._study_id, key, value))
        self._user_attrs = self._user_attrs | {key: value}

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._store.ask(lambda: self._backend.set_study_system_attr(self._study_id, key, value))
        self._system_attrs = self._system_attrs | {key: value}

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._system_attrs

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._name

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._name:
            raise KeyError(study_name)
        return self._study_id

    def get_all_studies(self) -> list[Any]:
        return [study for study in self._store.ask(self._backend.get_all_studies) if study.study_name == self._name]

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise NotImplementedError("this storage holds one study")

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError("this storage holds one study")


def mend_journal(path: Path) -> int:
    """Remove what a killed writer left in a journal nobody else has open: a torn last line, and Optuna's own lock.

    Returns:
        The number of bytes cut off.
    """
    Path(f"{path}.lock").unlink(missing_ok=True)  # Optuna would wait half a minute for its dead holder
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    if last and not _is_json(last):
        whole = whole[: -len(last)]
    if len(whole) != len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return len(content) - len(whole)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
