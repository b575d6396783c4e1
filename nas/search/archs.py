"""The architectures of a run, by name: `runs/NAME@31` is that of trial 31, `runs/NAME` the winner's."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import search_spaces
from nas.core import parts
from nas.core.arch import Arch
from nas.core.errors import HIDDEN, InputError, NasError, RunError
from nas.core.files import write_text
from nas.networks import building

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from nas.core.space import Space
    from nas.search.request import Request

FOLDER = "archs"  # of a run: one file for each arch of the front and each finalist
CLASSES = "classes"  # name of the study's attribute that holds those of the data set


def load_arch(name: str | os.PathLike[str]) -> Arch:
    """An arch from a preset name, a JSON file, a run (`runs/NAME`, its winner) or a trial of one (`runs/NAME@31`).

    Raises:
        InputError: for an unknown preset, naming the closest ones; a file that is no arch, saying where; no such run,
            no such trial, naming the range, or one that has no arch.
        RunError: the study of that run cannot be read.
    """
    text = str(name)
    if text in search_spaces.presets() or Path(text).suffix == ".json" or Path(text).is_file():
        return building.load_arch(name)
    folder, at, number = text.rpartition("@")
    if at and not Path(text).is_dir():
        run = _run(Path(folder), text)
        if not re.fullmatch("[0-9]{1,9}", number):
            raise InputError(f"{text}: expected the number of a trial after the @, as in {folder}@31, got {number!r}")
        return _of_trial(run, int(number))
    if Path(text).is_dir() or len(Path(text).parts) > 1:
        return _winner(_run(Path(text), text))
    return building.load_arch(name)


def _run(folder: Path, name: str) -> Path:
    """The folder of a run."""
    if not folder.is_dir():
        near = sorted(path.parent.name for path in folder.parent.glob("*/request.yaml"))
        known = f"; in {folder.parent} there are: {', '.join(near)}" if near else ""
        raise InputError(f"{name}: no such run, there is no folder {folder}{known}")
    if not (folder / "request.yaml").is_file():
        trained = f"; the network trained there is {folder / 'arch.json'}" if (folder / "arch.json").is_file() else ""
        raise InputError(f"{name}: {folder} is no run of nas search, it holds no request.yaml{trained}")
    return folder


def _winner(run: Path) -> Arch:
    if not (run / "best.json").is_file():
        raise InputError(
            f"{run}: this run has no winner yet. Finish it: nas search {run / 'request.yaml'}; or name one of its "
            f"trials, such as {run}@0"
        )
    return building.load_arch(run / "best.json")


def _of_trial(run: Path, number: int) -> Arch:
    """The arch of a trial: from its file, else from the study, which needs no trial to be finished."""
    if (path := _file_of(run, number)) is not None:
        return building.load_arch(path)
    from nas.search.request import Request
    from nas.search.trials import record_of

    request = Request.read(run / "request.yaml")
    study = _study(run, request)
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    if number not in trials:
        span = f"they are 0 to {max(trials)}" if trials else "it has none"
        raise InputError(f"{run}@{number}: no such trial in the run in {run}, {span}")
    record, params = record_of(trials[number]), trials[number].params
    space = _space(run, request, study)
    if set(params) != set(space.choices) or (record is not None and not record.arch):
        why = f" ({record.reason})" if record is not None and record.reason else ""
        raise InputError(f"{run}@{number}: trial {number} has no architecture{why}; name another of 0 to {max(trials)}")
    try:
        arch = space.arch(params)
    except NasError as error:
        raise InputError(f"{run}@{number}: trial {number} has no architecture: {error}") from error
    if record is not None and record.arch != arch.id:
        raise RunError(
            f"{run}@{number}: the parameters of trial {number} give arch {arch.id} in this version, and were arch "
            f"{record.arch}: space {space.name} is not the one this run was begun with. Use the version of its "
            "provenance (nas report)"
        )
    return arch


def _file_of(run: Path, number: int) -> Path | None:
    """The file of a trial's arch, where the run has one."""
    if not (run / "trials.csv").is_file():
        return None
    with (run / "trials.csv").open(encoding="utf-8", newline="") as file:
        ids = [row.get("arch") for row in csv.DictReader(file) if row.get("number") == str(number)]
    path = run / FOLDER / f"{ids[0] if ids else ''}.json"
    return path if path.is_file() else None


def _study(run: Path, request: Request) -> optuna.Study:
    """The study of a run, only to be read: another process may be at work on it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from nas.search.storage import JOURNAL

    database = request.storage is not None and "://" in request.storage
    path = run / JOURNAL if request.storage is None else Path(request.storage)
    if not database and not path.is_file():
        raise InputError(f"{run}: this run has no trials yet, there is no {path}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage: Any = request.storage if database else JournalStorage(JournalFileBackend(str(path)))
        return optuna.load_study(study_name=request.name, storage=storage)
    except Exception as error:  # of any database driver, or of a damaged journal
        where = "the database of its storage" if database else path
        hidden = " (its password is not kept)" if database and HIDDEN in str(request.storage) else ""
        raise RunError(
            f"{run}: its trials cannot be read from {where}{hidden}: {type(error).__name__}. Those of its front and "
            f"its finalists have files in {run / FOLDER}"
        ) from error


def _space(run: Path, request: Request, study: optuna.Study) -> Space:
    """The space of a run, with the classes of its data set."""
    if request.space is None:
        raise RunError(f"{run / 'request.yaml'}: names no space")
    space = parts.load(request.space, request.side, request.fix)
    classes = study.user_attrs.get(CLASSES)
    if classes is None:  # a run of an earlier version
        from nas.evaluation.data import load_data

        classes = load_data(request.dataset, space.input_shape, seed=request.seed, limit=request.limit).classes
    return dataclasses.replace(space, classes=classes)


def write_archs(run: Path, archs: Iterable[Arch]) -> None:
    """Write a file for each arch that has none in the folder of a run."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    for arch in archs:
        path = run / FOLDER / f"{arch.id}.json"
        if not path.is_file():
            write_text(path, arch.to_json() + "\n")


def write_front(run: Path, front: pd.DataFrame, study: optuna.Study, space: Space) -> None:
    """Write `front.csv`, with the file of each network beside it: `arch_file`, from the folder of the run."""
    params = {trial.number: trial.params for trial in study.get_trials(deepcopy=False)}
    write_archs(run, (space.arch(params[number]) for number in front["number"]))
    named = front.assign(arch_file=[f"{FOLDER}/{arch}.json" for arch in front["arch"]])
    write_text(run / "front.csv", named.to_csv(index=False))
