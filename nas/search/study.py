"""The Optuna study behind a run: its parameters, and what it keeps beside its trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from nas.core.errors import RunError
from nas.search.storage import OwnedStorage, open_storage

if TYPE_CHECKING:
    from nas.core.ops import Choice


def distributions_of(choices: Mapping[str, Choice]) -> dict[str, BaseDistribution]:
    """The fixed, unconditional Optuna parameters of a space: evenly spaced numbers as such, the rest as categories."""
    return {name: _distribution(choice.values) for name, choice in choices.items()}


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    if all(type(value) is int for value in values):
        steps = {after - before for before, after in itertools.pairwise(values)}
        if len(steps) == 1 and min(steps) > 0:
            return IntDistribution(values[0], values[-1], step=min(steps))
    return CategoricalDistribution(tuple(values))


def open_study(
    name: str, storage: str | Path | BaseStorage, sampler: BaseSampler | None, objectives: int
) -> optuna.Study:
    """The study of a run, made where it does not exist; every objective is minimized.

    Args:
        name: of the study in its storage.
        storage: path of a journal file, URL of a database that Optuna knows, or a storage; `close_study` lets go of a
            database.
        sampler: proposes the candidates; None where it is set later, before the first.
        objectives: 1 (loss), or 2 (loss and latency).

    Raises:
        RunError: the journal is damaged in the middle; a torn last line is cut off instead.
        InputError: Optuna cannot use the storage.
        RunError: another process has the study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = open_storage(storage, name)
    try:
        studies = store.ask(store.backend.get_all_studies)
        found = {study.study_name: len(study.directions) for study in studies}
        if found.setdefault(name, objectives) != objectives:
            raise RunError(f"study {name!r} has {found[name]} objectives, this run has {objectives}")
        return optuna.load_study(study_name=name, storage=OwnedStorage(store, name, objectives), sampler=sampler)
    except BaseException:
        store.close()
        raise


def has_study(name: str, storage: str) -> bool:
    """Whether a storage, named as for `open_study`, holds a study of this name; raises as that does."""
    if "://" not in storage and not Path(storage).is_file():
        return False
    store = open_storage(storage, name)
    try:
        return name in {study.study_name for study in store.backend.get_all_studies()}
    finally:
        store.close()


def close_study(study: optuna.Study) -> None:
    """Let go of a study that `open_study` opened: another process may have it then."""
    owned_storage_of(study).close()


def owned_storage_of(study: optuna.Study) -> OwnedStorage:
    """The storage of a study that `open_study` opened."""
    storage = study._storage
    assert isinstance(storage, OwnedStorage)
    return storage


def remembered(study: optuna.Study, key: str, make: Callable[[], Any]) -> Any:
    """What the study keeps under `key`, made and kept there the first time; plain data."""
    known = study.user_attrs
    if key not in known:
        study.set_user_attr(key, make())
        known = study.user_attrs
    return known[key]


def note_versions(study: optuna.Study, now: Mapping[str, str]) -> str:
    """Keep with the study that it goes on with these versions from its next trial.

    Returns:
        Which of them are others than before, in words; "" where none is.
    """
    spans = study.user_attrs.get("versions", [])
    if spans and spans[-1]["versions"] == now:
        return ""
    spans = [*spans, {"first_trial": len(study.get_trials(deepcopy=False)), "versions": dict(now)}]
    study.set_user_attr("versions", spans)
    changes = version_changes(study)
    return changes[-1] if len(spans) > 1 else ""


def version_changes(study: optuna.Study) -> list[str]:
    """Each change of versions in the life of a study: `torch 2.14.0 -> 2.15.0 from trial 40 on`."""
    spans = study.user_attrs.get("versions", [])
    first = spans[0]["first_trial"] if spans else 0
    changes = [f"unknown versions before trial {first}"] if first else []
    for before, after in itertools.pairwise(spans):
        names = sorted({*before["versions"], *after["versions"]})
        pairs = [(name, before["versions"].get(name, "none"), after["versions"].get(name, "none")) for name in names]
        texts = [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]
        changes.append(f"{', '.join(texts)} from trial {after['first_trial']} on")
    return changes
