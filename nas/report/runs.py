"""A finished run as it lies in its folder: `request.yaml`, `trials.csv`, `training.csv` and `result.json`, checked."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nas.core import parts
from nas.core.arch import Arch
from nas.core.errors import NasError, RunError, without_passwords
from nas.core.space import Space
from nas.report import plots
from nas.report.front import evaluated_trials, read_trials
from nas.report.points import FILE, beside, read_points
from nas.report.schema import Result, read_result

NEEDED_FILES = ("request.yaml", "trials.csv", "training.csv", "result.json")


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its request as text, and what it found."""

    path: Path
    request: str
    result: Result
    trials: pd.DataFrame
    training: pd.DataFrame

    @property
    def latency_budget_ms(self) -> float | None:
        """The budget on the latency that the trials' `predicted_ms` speaks of, if there is one."""
        table = self.result["provenance"]["table"]
        budgets = (budget for budget in self.result["budgets"] if budget["metric"] == "latency_ms")
        return next((budget["limit"] for budget in budgets if budget["table"] in (None, table)), None)

    @functools.cached_property
    def points(self) -> list[dict[str, Any]]:
        """The models of other libraries in the run's `points.json`, the fastest first, each with `elsewhere`: why it
        does not compare with the run's latencies, or nothing.
        """
        path, origin = self.path / FILE, self.result["provenance"]
        known = read_points(path) if path.is_file() else []
        like = (origin["runtime"], origin["precision"], origin["threads"], origin["device"])
        found = [point | {"elsewhere": beside(point, *like)} for point in known]
        return sorted(found, key=lambda point: float(point["measured_ms"]))

    @functools.cached_property
    def asked(self) -> dict[str, Any]:
        """The request as data; nothing of one that cannot be read."""
        try:
            found = yaml.safe_load(self.request)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @functools.cached_property
    def space(self) -> Space | None:
        """The space of the search, with the classes of its data; None where this version does not know it, or the run
        has no `best.json`.
        """
        try:
            classes = Arch.from_json((self.path / "best.json").read_text(encoding="utf-8")).classes
            whole = parts.load(self.result["space"], self.asked.get("side"), self.asked.get("fix"))
        except (OSError, NasError):
            return None
        return dataclasses.replace(whole, classes=classes)

    @functools.cached_property
    def archs(self) -> dict[int, Arch]:
        """The archs of trials by number, laid from their parameters; without those that this version lays otherwise."""
        space, found = self.space, {}
        if space is None or not {f"param.{name}" for name in space.choices} <= set(self.trials):
            return {}
        values = {name: {str(value): value for value in choice.values} for name, choice in space.choices.items()}
        for row in self.trials[self.trials["arch"] != ""].to_dict("records"):
            texts = {name: _text(row[f"param.{name}"]) for name in values}
            if all(text in values[name] for name, text in texts.items()):
                try:
                    arch = space.arch({name: values[name][text] for name, text in texts.items()})
                except NasError:
                    continue
                if arch.id == row["arch"]:
                    found[int(row["number"])] = arch
        return found


def _text(value: Any) -> str:
    """A parameter as it is written; a column of whole numbers with gaps holds floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_run(run_dir: Path | str) -> Run:
    """Read and check a finished run.

    Raises:
        RunError: the directory or a file is missing (naming the command that makes it), or a file's content is wrong.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise RunError(f"no run directory {path}. A search makes one: nas search REQUEST.yaml")
    lacking = [name for name in NEEDED_FILES if not (path / name).is_file()]
    if lacking:
        request = "REQUEST.yaml" if "request.yaml" in lacking else path / "request.yaml"
        raise RunError(f"the run in {path} is not finished: no {', '.join(lacking)}. Finish it: nas search {request}")
    run = Run(
        path=path,
        request=without_passwords((path / "request.yaml").read_text(encoding="utf-8", errors="backslashreplace")),
        result=read_result(path / "result.json"),
        trials=read_trials(path / "trials.csv"),
        training=_read_training(path / "training.csv"),
    )
    _check_same_study(run)
    return run


def _read_training(path: Path) -> pd.DataFrame:
    """Read the epochs; only columns that no plot needs may have gaps."""
    try:
        frame = pd.read_csv(path)
        needed = plots.training_data(frame)[["epoch", "train_loss", "val_loss", "val_accuracy_percent"]]
    except ValueError as error:  # what pandas raises on a file it cannot parse, and our own InputError
        raise RunError(f"{path}: {error}") from error
    if needed.empty:
        raise RunError(f"{path}: holds no epoch")
    for name in needed:
        if not np.isfinite(needed[name]).all():
            raise RunError(f"{path}: an epoch has no finite {name}")
    return frame


def _check_same_study(run: Run) -> None:
    """Every finalist must be an evaluated trial of the same arch."""
    evaluated = evaluated_trials(run.trials, "predicted_ms", "value")
    archs = dict(zip(evaluated["number"], evaluated["arch"], strict=True))
    for finalist in (*run.result["finalists"], run.result["winner"]):
        number, arch = finalist["number"], finalist["arch"]
        if archs.get(number) != arch:
            raise RunError(
                f"{run.path}: result.json names arch {arch} as trial {number}, but trials.csv has no such evaluated "
                f"trial. They are of different searches; make them anew: nas search {run.path / 'request.yaml'}"
            )
