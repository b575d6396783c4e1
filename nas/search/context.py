"""What the steps of a run work with: the request, its folder, its study, and what each step has left so far."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.samplers import BaseSampler

from nas.core.errors import RunError
from nas.core.files import write_text
from nas.evaluation.evaluators import load_evaluator
from nas.search.archs import CLASSES
from nas.search.fitting import context_of
from nas.search.limits import Limit
from nas.search.request import Request
from nas.search.resolved import Log, Named, Progress, Resolved, resolve_request, table_begun_with
from nas.search.samplers import load_sampler
from nas.search.samplers._context import Context as SamplerContext
from nas.search.scoring import TrainingScorer
from nas.search.study import JOURNAL, distributions_of, note_versions, open_study
from nas.search.timing import Allotment, Deadline, Pace
from nas.search.trials import record_of
from nas.search.workers import Pool, Stage
from nas.tables.table import Table

RECORDS = "steps.json"
REQUEST = "request.yaml"
FINISHED_BY = (
    "trials",
    "finalists",
    "repeats",
    "final_epochs",
    "minutes",
)  # what version 0.1 kept of a finished request


class HasName(Protocol):
    """A step, as far as its record goes."""

    @property
    def name(self) -> str: ...


class Context:
    """A run at work. Made from a request, it compares that with the run in the folder, and changes nothing there.

    Args:
        named: the request.
        deadline: when this command has to end.
        log: called with every line worth telling.
        progress: called with (done, total, seconds left or None, text) while something takes long.

    Attributes:
        request: with everything filled in that is known yet.
        folder: of the run.
        deadline: when this command has to end.
        begun: whether there is a run already: its table, limits and data are fixed.

    Raises:
        RunError: the run there was begun with another request, table or data; or what is there is no run.
    """

    def __init__(self, named: Named, deadline: Deadline, log: Log, progress: Progress) -> None:
        self.named, self.deadline, self.log, self.progress = named, deadline, log, progress
        self.folder = named.request.run_dir
        self._found: Resolved | None = None
        self._study: optuna.Study | None = None
        stored = Request.read(self.folder / REQUEST) if (self.folder / REQUEST).is_file() else None
        if stored is None:
            _require_no_training(self.folder)
        else:
            named.request.require_same(stored)
            self._study = self._open()
            if "table_hash" in self._study.user_attrs:  # else it ended before it was begun, or its study is gone
                self._take_up(self._study.user_attrs)
        self._records = _read_records(self.folder / RECORDS) if self.begun else {}

    @property
    def begun(self) -> bool:
        return self._found is not None

    @property
    def found(self) -> Resolved:
        """The request with its tables and limits, once the run has begun."""
        assert self._found is not None, "the run has not begun"
        return self._found

    @property
    def study(self) -> optuna.Study:
        """The study, once the run has begun."""
        assert self._study is not None, "the run has not begun"
        return self._study

    @property
    def request(self) -> Request:
        return self.named.request if self._found is None else self._found.request

    @functools.cached_property
    def pace(self) -> Pace:
        """How long candidates take, by those that the study has."""
        records = map(record_of, self.study.get_trials(deepcopy=False))
        return Pace(record for record in records if record is not None)

    @functools.cached_property
    def allotment(self) -> Allotment:
        """How the time that is left when it is first asked for is divided among the steps."""
        return Allotment(self.request, self.deadline, self.pace, measured=not self.found.not_this_machine)

    def _open(self) -> optuna.Study:
        request = self.named.request
        return open_study(
            request.name,
            request.storage or self.folder / JOURNAL,
            None,
            objectives=2 if request.objective == "front" else 1,
        )

    def _take_up(self, known: Mapping[str, Any]) -> None:
        """Go on with the tables, data and limits that the run was begun with."""
        table = table_begun_with(self.named, known["table_hash"])
        for now, begun, what in (
            (_hashes(self.named.tables), known.get("tables", {}), "table"),
            (dict(self.named.data), known.get("data", {}), f"{self.named.request.dataset}:"),
        ):
            differing = [
                f"{what} {name} ({begun[name]} there, {now[name]} now)" for name in begun if now[name] != begun[name]
            ]
            if differing:
                raise RunError(
                    f"the run in {self.folder} was begun with other content: {', '.join(differing)}. Put it back as it "
                    "was, or give the new request another name"
                )
        limits = tuple(Limit(**limit) for limit in known["budgets"])
        self._found = resolve_request(self.named, table, self.log, limits)

    def begin(self, table: Table) -> None:
        """Fix what the run rests on from now on: its tables, data and limits.

        Raises:
            NasError: the request cannot be met; there is no run then. See `resolve_request`.
            RunError: the study is that of another run.
        """
        found = resolve_request(self.named, table, self.log)
        study = self._study or self._open()
        if study.get_trials(deepcopy=False):
            raise RunError(
                f"study {self.request.name!r} has trials already, but {self.folder} is no run of it: give the request "
                "another name, or name the folder of that run as `out`"
            )
        study.set_user_attr("budgets", [limit.as_data() for limit in found.estimator.limits])
        study.set_user_attr("tables", _hashes(found.estimator.tables))
        study.set_user_attr("data", dict(self.named.data))
        study.set_user_attr(CLASSES, found.space.classes)
        study.set_user_attr("table_hash", table.hash)
        self._found, self._study = found, study
        self.keep_request()

    def keep_request(self) -> None:
        """Save the request as it is now: what may change in a run that goes on has changed."""
        write_text(self.folder / REQUEST, self.request.to_yaml(self.found.notes()))

    def note_versions(self) -> None:
        """Keep with the study which versions go on from here, and say which are others than before."""
        changed = note_versions(self.study, self.found.versions())
        if changed:
            self.log(f"OTHER VERSIONS than this run was begun with: {changed}. Scores and latencies may not compare")

    def output(self, step: str) -> dict[str, Any]:
        """What a step that is done has left, as plain data."""
        return dict(self._records[step]["output"])

    def is_kept(self, step: HasName, inputs: Mapping[str, Any]) -> bool:
        """Whether a step was done with these inputs."""
        record = self._records.get(step.name)
        return record is not None and record["inputs"] == _digest(inputs)

    def keep(self, step: HasName, inputs: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Note that a step is done; what it leaves must be on disk by now."""
        self._records[step.name] = {"inputs": _digest(inputs), "output": dict(output)}
        write_text(self.folder / RECORDS, json.dumps(self._records, indent=2, allow_nan=False) + "\n")

    def was_finished_before_steps(self) -> bool:
        """Whether version 0.1, which kept no records of steps, finished this very request."""
        if self._records or not self.begun or not (self.folder / "result.json").is_file():
            return False
        finished = self.study.user_attrs.get("finished")
        return finished is not None and all(finished.get(name) == getattr(self.request, name) for name in FINISHED_BY)

    def pool(self, on_stages: Callable[[tuple[Stage, ...]], None]) -> Pool:
        """Processes that score candidates, and say what they are at."""
        return Pool(scorer_of(self.found), self.request.workers, on_stages)


def known_of(found: Resolved) -> SamplerContext:
    """What a sampler of the request is told, above all what fits; the tables of that are kept in the run's folder."""
    request = found.request
    found.fits.keep(request.run_dir)
    objectives = 2 if request.objective == "front" else 1
    return context_of(found.space, found.estimator, found.fits, objectives, request.start == "presets")


def sampler_of(found: Resolved) -> BaseSampler:
    """The request's sampler."""
    request = found.request
    distributions = distributions_of(found.space.choices)
    return load_sampler(request.sampler, request.seed, distributions, known_of(found))


def scorer_of(found: Resolved) -> TrainingScorer:
    """What scores the candidates of a request."""
    request = found.request
    evaluator = load_evaluator(request.evaluator, epochs=request.epochs)
    size = found.space.input_shape
    return TrainingScorer(evaluator, request.dataset, size, request.seed, request.device, request.limit)


def _require_no_training(folder: Path) -> None:
    for name in ("result.json", "weights.pt", "checkpoint.pt"):
        if (folder / name).is_file():
            raise RunError(
                f"{folder} holds {name}, but no {REQUEST}: it is no run of a search; choose another folder (out)"
            )


def _read_records(path: Path) -> dict[str, Any]:
    """The records; where the file is missing or damaged, none: the steps are done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = {"inputs", "output"}
    return {name: record for name, record in found.items() if isinstance(record, dict) and known <= set(record)}


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _hashes(tables: Mapping[str, Table]) -> dict[str, str]:
    return {name: table.hash for name, table in tables.items()}
