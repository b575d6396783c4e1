"""What the steps of a run work with: the request, its folder, its study, and what each step has left so far."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from nas.core.arch import Arch
from nas.core.errors import RunError
from nas.core.files import write_text
from nas.evaluation.data import Data, load_data
from nas.evaluation.evaluators import Asked, Evaluator, Progress, epochs_of, key_of, load_asked
from nas.evaluation.runs import epoch_seconds, teacher_for
from nas.search.archs import CLASSES
from nas.search.executors import Running, load_executor
from nas.search.fitting import context_of, lattice_of
from nas.search.limits import Limit
from nas.search.predictor import AUTO, NONE, Prior
from nas.search.request import Request
from nas.search.resolved import Named, Resolved, Say, resolve_request, table_begun_with
from nas.search.samplers import load_sampler
from nas.search.samplers._context import Context as SamplerContext
from nas.search.scoring import CandidateScorer, Features
from nas.search.storage import JOURNAL
from nas.search.study import close_study, distributions_of, has_study, note_versions, open_study
from nas.search.timing import Allotment, Deadline, Pace
from nas.search.trials import so_far
from nas.search.workers import Plan, Stage
from nas.tables.table import Table

RECORDS = "steps.json"
PREPARE = "prepare"  # the step that evaluators get ready in
REQUEST = "request.yaml"
BEGUN_WITH = "request"  # the study's copy of it, for a run that goes on in another folder
FEATURES = "features.jsonl"
FOLDER = "{RUN}"  # stands for the run's folder in what evaluators have prepared
CANDIDATES = "candidates"  # checkpoints of those in training
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

    def __init__(self, named: Named, deadline: Deadline, log: Say, progress: Progress) -> None:
        self.named, self.deadline, self.log, self.progress = named, deadline, log, progress
        self.folder = named.request.run_dir
        self._found: Resolved | None = None
        self._study: optuna.Study | None = None
        self._epoch_seconds: dict[str, float] = {}  # by arch
        stored = Request.read(self.folder / REQUEST) if (self.folder / REQUEST).is_file() else None
        if stored is None:
            _require_no_training(self.folder)
            if named.request.storage is not None:  # before anything is measured for it
                stored = self._begun_elsewhere(named.request.storage)
        if stored is not None:
            named.request.require_same(stored)
            if named.request.storage is None and not (self.folder / JOURNAL).is_file():
                _require_no_results(self.folder, str(self.folder / JOURNAL))  # before an empty one is made
            self._study = self._study or self._open()
            if "table_hash" in self._study.user_attrs:
                self._take_up(self._study.user_attrs)
            else:
                _require_no_results(self.folder, f"study {named.request.name!r} in the storage")
        self._records = _read_records(self.folder / RECORDS) if self.begun else {}

    def close(self) -> None:
        """Let go of the study."""
        if self._study is not None:
            close_study(self._study)

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
        records = map(so_far, self.study.get_trials(deepcopy=False))
        return Pace(record for record in records if record is not None)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """What gives candidates their value: of several rungs the last."""
        return load_asked(self.request.evaluator[-1])

    @functools.cached_property
    def data(self) -> Data:
        """The images."""
        request, size = self.request, self.found.space.input_shape
        return load_data(request.dataset, size, seed=request.seed, limit=request.limit)

    @property
    def wanted_repeats(self) -> int:
        """How many further scores each finalist is to get: none where no training stands behind them."""
        return self.request.repeats if self.evaluator.trains else 0

    @functools.cached_property
    def allotment(self) -> Allotment:
        """How the time that is left when it is first asked for is divided among the steps."""
        return Allotment(
            self.request,
            self.deadline,
            self.pace,
            measured=not self.found.not_this_machine,
            repeats=self.wanted_repeats,
            epoch=self.epoch_seconds,
        )

    def epoch_seconds(self, candidate_seconds: float, arch: Arch | None = None) -> float:
        """About how long an epoch of the winner's training takes.

        Args:
            candidate_seconds: that the winner took as a candidate. Where candidates are not trained in epochs, or the
                winner is trained otherwise than they are, it is tried out instead.
            arch: of the winner; None for the slowest that fits.
        """
        request, epochs = self.request, epochs_of(self.evaluator)
        if epochs is not None and not request.final_recipe and request.final_teacher is None:
            return candidate_seconds / epochs
        if arch is None:
            fits = self.found.fits
            arch = lattice_of(self.found.space).arch(fits.largest() or fits.closest())
        if arch.id not in self._epoch_seconds:
            self.progress(0, 1, None, f"trying out how long an epoch of {arch.id} takes")
            self._epoch_seconds[arch.id] = epoch_seconds(
                arch,
                self.data,
                request.final_recipe,
                teacher=teacher_for(self.data, request.final_teacher, request.final_teacher_weights),
                device=request.device,
                threads=request.final_threads,
            )
        return self._epoch_seconds[arch.id]

    def _begun_elsewhere(self, storage: str) -> Request | None:
        """The request of a run whose study is in this storage and whose folder is another one: that of a machine that
        died, for instance. The study is left open then.
        """
        if not has_study(self.named.request.name, storage):
            return None
        self._study = self._open()
        known = self._study.user_attrs.get(BEGUN_WITH)
        if known is None:
            return None  # `begin` refuses its trials
        self.log(
            f"study {self.named.request.name!r} was begun in another folder, and goes on in {self.folder}: its trials "
            "are there; what else that folder held is made again"
        )
        return Request(**known, storage=storage)

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
        study.set_user_attr(BEGUN_WITH, self.named.request.model_dump(mode="json", exclude={"storage", "out"}))
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

    def remove_checkpoints(self) -> None:
        """Once no candidate is in training, its checkpoints go, those of failed ones among them."""
        shutil.rmtree(self.folder / CANDIDATES, ignore_errors=True)

    def prepared(self, asked: Asked) -> Mapping[str, Any]:
        """What an evaluator of the request prepared for the search."""
        record = self._records.get(PREPARE, {"output": {"prepared": {}}})
        kept = json.dumps(record["output"]["prepared"].get(key_of(asked), {}))
        found: dict[str, Any] = json.loads(kept.replace(FOLDER, json.dumps(str(self.folder.resolve()))[1:-1]))
        return found

    def in_folder(self, prepared: Mapping[str, Any]) -> dict[str, Any]:
        """Plain data with `FOLDER` for the run's folder, which may lie elsewhere when it goes on."""
        found: dict[str, Any] = json.loads(
            json.dumps(prepared).replace(json.dumps(str(self.folder.resolve()))[1:-1], FOLDER)
        )
        return found

    def pool(self, on_stages: Callable[[tuple[Stage, ...]], None]) -> Running:
        """Workers that score candidates, and say what they are at."""
        request = self.request
        scorers = tuple(scorer_of(self, asked) for asked in request.evaluator)
        plan = Plan(request.workers, request.cpus_per_worker, request.gpus_per_worker, request.worker_minutes)
        return load_executor(request.executor)(scorers, plan, request.device, on_stages)


def known_of(run: Context) -> SamplerContext:
    """What a sampler of the request is told: what fits, and its features; both are kept in the run's folder."""
    found, request = run.found, run.request
    found.fits.keep(run.folder)
    objectives = 2 if request.objective == "front" else 1
    context = context_of(found.space, found.estimator, found.fits, objectives, request.start == "presets")
    context = replace(context, rungs=len(request.evaluator))
    if not request.features and request.prior in (AUTO, NONE):
        return context
    scorers = {name: scorer_of(run, asked) for asked in request.features for name in asked}
    features, lattice = Features(scorers, request.seed, run.folder / FEATURES), lattice_of(found.space)
    prior = None if request.prior in (AUTO, NONE) else Prior(request.prior)

    def known(paths: np.ndarray) -> np.ndarray:
        archs = [lattice.arch(path) for path in paths]
        scores = features(archs)
        return scores if prior is None else np.column_stack([scores, prior.losses_of(archs)])

    return replace(context, features=known, features_are_free=not scorers)


def sampler_of(run: Context) -> BaseSampler:
    """The request's sampler."""
    request = run.request
    return load_sampler(request.sampler, request.seed, distributions_of(run.found.space.choices), known_of(run))


def scorer_of(run: Context, asked: Asked) -> CandidateScorer:
    """What scores the candidates of a request with one of its evaluators or features."""
    request, size = run.request, run.found.space.input_shape
    return CandidateScorer(
        load_asked(asked),
        request.dataset,
        size,
        request.seed,
        request.device,
        request.limit,
        run.prepared(asked),
        run.folder.resolve() / CANDIDATES / key_of(asked),
    )


def _require_no_results(folder: Path, study: str) -> None:
    """Raise where a run has left something that its study, which is gone, is behind: it would be written over."""
    if left := [name for name in (RECORDS, "trials.csv", "result.json") if (folder / name).is_file()]:
        raise RunError(
            f"{folder} holds {', '.join(left)}, but {study} is gone or empty, and with it the trials behind them. Put "
            "it back; or start over in another folder (another name, or out), or after moving this one away"
        )


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
    known, records = {"inputs", "output"}, found.items() if isinstance(found, dict) else ()
    return {name: record for name, record in records if isinstance(record, dict) and known <= set(record)}


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _hashes(tables: Mapping[str, Table]) -> dict[str, str]:
    return {name: table.hash for name, table in tables.items()}
