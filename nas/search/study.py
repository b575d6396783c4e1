"""The Optuna study behind a run: its parameters, its storage, and what a killed process may have left there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas.core.errors import HIDDEN, InputError, RunError, without_passwords

if TYPE_CHECKING:
    from nas.core.ops import Choice

JOURNAL = "study.journal"


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
        storage: path of a journal file, URL of a database that Optuna knows, or a storage.
        sampler: proposes the candidates; None where it is set later, before the first.
        objectives: 1 (loss), or 2 (loss and latency).

    Raises:
        RunError: the journal is damaged in the middle; a torn last line is cut off instead.
        InputError: Optuna cannot use the storage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = open_storage(storage)
    try:
        study = optuna.load_study(study_name=name, storage=store, sampler=sampler)  # which writes nothing
    except KeyError:
        study = optuna.create_study(
            study_name=name, storage=store, sampler=sampler, directions=["minimize"] * objectives
        )
    if len(study.directions) != objectives:
        raise RunError(f"study {name!r} has {len(study.directions)} objectives, this run has {objectives}")
    return study


def open_storage(storage: str | Path | BaseStorage) -> BaseStorage:
    """The storage of a study; see `open_study`."""
    if isinstance(storage, BaseStorage):
        return storage
    if isinstance(storage, str) and "://" in storage:
        shown = without_passwords(storage, storage)
        if HIDDEN in storage:
            raise InputError(f"storage: the password of {shown} is not kept; give the whole URL again with --storage")
        try:
            return optuna.storages.get_storage(storage)
        except Exception as error:  # of any database driver
            reason = without_passwords(str(error), storage)
            raise InputError(f"storage: Optuna cannot use {shown!r}: {reason}") from None  # it would show the URL
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    mend_journal(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:
        raise RunError(
            f"{path} is damaged and cannot be read as an Optuna journal: {error}. Put a copy of it back, or delete the "
            "run directory to start over"
        ) from error


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
