"""A whole search: from a request to a run directory with a trained, measured, exported network and a report.

Every step is done once in the life of a run. Whatever kills the process, the same command continues after the last step
that was finished: trials and scores are in the study, training has its checkpoint, files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.samplers import BaseSampler

from nas.core.arch import Arch
from nas.core.errors import RunError
from nas.core.files import FULL, lock, write_text, writing
from nas.core.units import show_seconds
from nas.evaluation.checkpoint import write_weights
from nas.evaluation.data import load_data
from nas.evaluation.evaluators import load_evaluator
from nas.evaluation.recipe import Recipe
from nas.evaluation.runs import write_history
from nas.evaluation.training import TrainResult, train
from nas.networks.building import build, input_shape_of
from nas.networks.export import export_onnx
from nas.profiling import profiler
from nas.report.front import front_data
from nas.report.page import write_report
from nas.search import engine
from nas.search.archs import CLASSES, write_archs, write_front
from nas.search.finalists import Finalist, Measured, rank, require_fit, with_measurements, with_repeats
from nas.search.fitting import context_of, feasible_set
from nas.search.ledger import Ledger
from nas.search.limits import Limit
from nas.search.request import Request
from nas.search.resolved import Log, Progress, Resolved, require_same_table, resolve_request
from nas.search.results import result_data, trained_before
from nas.search.samplers import load_sampler
from nas.search.scoring import TrainingScorer
from nas.search.study import JOURNAL, distributions_of, open_study, remembered
from nas.search.timing import Allotment, Deadline, Pace, RepeatsWatch, Watch, final_epochs
from nas.search.trials import record_of, trials_frame
from nas.search.workers import Pool
from nas.tables.table import Table

MEASURED = 4  # candidates measured at most for each finalist wanted: a prediction may fit where its network does not
FINISHED_BY = (
    "trials",
    "finalists",
    "repeats",
    "final_epochs",
    "minutes",
)  # what decides whether a run has anything left to do

clock = time.monotonic


def run_search(request: Request, *, log: Log = print, progress: Progress | None = None) -> Path:
    """Carry out a request, or continue it; a finished run only gets its report again.

    Args:
        request: what is asked for.
        log: called with every line worth telling.
        progress: called with (done, total, seconds left or None, text) while something takes long.

    Returns:
        The run directory.

    Raises:
        InputError: the request cannot be met; nothing was trained.
        RunError: another process has the run, it was begun with another request, evaluations fail one after the
            other, or no finalist keeps its budget when measured.
    """
    show, deadline = progress or _silent, Deadline(request.minutes, clock)
    run_dir = request.run_dir
    with lock(run_dir / "lock", run_dir), writing(run_dir, FULL), _threads(1):  # the cores belong to the workers
        found, study = _begin(resolve_request(request, log, show))
        if _is_finished(study, found.request, run_dir):
            log(f"the run in {run_dir} is finished; raise `trials` to go on. Writing its report again")
        else:
            pace = Pace(record for record in map(record_of, study.get_trials(deepcopy=False)) if record is not None)
            allotment = Allotment(found.request, deadline, pace, measured=not found.not_this_machine)
            _search(found, study, pace, allotment, log, show)
            _finish(found, study, pace, allotment, log, show)
        log(f"report: {write_report(run_dir)}")
    return run_dir


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads. Several on cores that others use wait for each other: up to 100 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _silent(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
    pass


def _begin(found: Resolved) -> tuple[Resolved, optuna.Study]:
    """Make the run's study or find it, and save the request; a run that goes on keeps the limits it was begun with."""
    request, path = found.request, found.request.run_dir / "request.yaml"
    stored = Request.read(path) if path.exists() else None
    if stored is not None:
        request.require_same(stored)
    study = open_study(
        request.name,
        request.storage or request.run_dir / JOURNAL,
        None,
        objectives=2 if request.objective == "front" else 1,
    )
    if stored is None and study.get_trials(deepcopy=False):
        raise RunError(
            f"study {request.name!r} has trials already, but {request.run_dir} is no run of it: give the request "
            "another name, or name the folder of that run as `out`"
        )
    require_same_table(found, remembered(study, "table_hash", lambda: found.estimator.table.hash))
    remembered(study, CLASSES, lambda: found.space.classes)
    limits = remembered(study, "budgets", lambda: [limit.as_data() for limit in found.estimator.limits])
    found = found.with_limits(tuple(Limit(**limit) for limit in limits))
    write_text(path, request.to_yaml(found.notes()))
    return found, study


def _is_finished(study: optuna.Study, request: Request, run_dir: Path) -> bool:
    """Whether everything asked for is there, and no finalist was measured on a disturbed machine."""
    finished = study.user_attrs.get("finished")
    if finished is None or not (run_dir / "result.json").is_file():
        return False
    if any(finished.get(name) != getattr(request, name) for name in FINISHED_BY):
        return False
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    return not any(finalist.get("measured_disturbed") for finalist in result["finalists"])


def _scorer(found: Resolved) -> TrainingScorer:
    request = found.request
    evaluator = load_evaluator(request.evaluator, epochs=request.epochs)
    size = found.space.input_shape
    return TrainingScorer(evaluator, request.dataset, size, request.seed, request.device, request.limit)


def _sampler(found: Resolved) -> BaseSampler:
    """The request's sampler, told what fits; the set's tables of counts are kept in the run's folder."""
    request = found.request
    fits = feasible_set(found.space, found.estimator, request.run_dir)
    objectives = 2 if request.objective == "front" else 1
    context = context_of(found.space, found.estimator, fits, objectives, request.start == "presets")
    return load_sampler(request.sampler, request.seed, distributions_of(found.space.choices), context)


def _search(
    found: Resolved, study: optuna.Study, pace: Pace, allotment: Allotment, log: Log, progress: Progress
) -> None:
    """Run the study until enough candidates are evaluated, and write what it found."""
    request = found.request
    study.sampler = _sampler(found)
    ledger = Ledger(study, distributions_of(found.space.choices))
    before = sum(record.state == "evaluated" for _, record in ledger.past())
    if before:
        log(f"continuing after {before} of {request.trials} evaluated candidates")
    watch = Watch(request, pace, progress, log)
    watch.begin(before)
    try:
        with Pool(_scorer(found), request.workers, watch.training) as pool:
            search = engine.Engine(
                ledger,
                found.space,
                found.estimator,
                pool,
                trials=request.trials,
                seed=request.seed,
                on_trial=watch.trial,
                is_over=allotment.is_over,
            )
            short = search.run()
    finally:
        trials = trials_frame(study, found.estimator.table.hash)
        write_text(request.run_dir / "trials.csv", trials.to_csv(index=False))
    if short:
        log(short)
    if not (trials["state"] == "evaluated").any():
        raise RunError(short)
    write_front(request.run_dir, front_data(trials), study, found.space)


def _finish(
    found: Resolved, study: optuna.Study, pace: Pace, allotment: Allotment, log: Log, progress: Progress
) -> None:
    """Measure the best, train them again, train the winner longer, and write everything."""
    request, run_dir = found.request, found.request.run_dir
    trials = trials_frame(study, found.estimator.table.hash)
    finalists: list[Finalist] = []
    for finalist in _finalists(found, study, trials):
        fitting = sum(each.fits for each in finalists)
        seconds = (finalist.record.seconds or 0.0) / request.epochs
        if fitting == request.finalists or (fitting and not allotment.has_time_to_measure(seconds)):
            break
        progress(fitting, request.finalists, None, f"measuring {finalist.arch.id}")
        begun = clock()
        finalists.append(with_measurements(finalist, study, found.estimator, found.here, _measure, _weigh))
        allotment.measured(clock() - begun)
        log(f"{finalists[-1]}{'' if finalists[-1].fits else ': over the budget when measured'}")
    write_archs(run_dir, (finalist.arch for finalist in finalists))
    require_fit(finalists, found.estimator.limits)
    fitting_seconds = [finalist.record.seconds or 0.0 for finalist in finalists if finalist.fits]
    repeats = allotment.repeats(fitting_seconds)
    watch = RepeatsWatch(request, pace, repeats * len(fitting_seconds), progress, log)
    finalists = _repeated(found, study, finalists, repeats, watch)
    ranking = rank([finalist for finalist in finalists if finalist.fits])
    winner = min((finalist for finalist in finalists if finalist.fits), key=lambda finalist: finalist.mean_loss)
    log(f"the winner is {winner}; {ranking.text}")
    write_text(run_dir / "best.json", winner.arch.to_json() + "\n")
    epochs = final_epochs(study, request, winner, allotment)
    training = trained_before(found, study, winner, epochs) or _train_winner(found, winner.arch, epochs, progress)
    result = result_data(found, study, trials, finalists, winner, ranking, training)
    for warning in result["warnings"]:
        log(f"WARNING: {warning}")
    write_text(run_dir / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    study.set_user_attr("finished", {name: getattr(request, name) for name in FINISHED_BY})
    _checkpoint(found, winner.arch, epochs).unlink(missing_ok=True)


def _finalists(found: Resolved, study: optuna.Study, trials: pd.DataFrame) -> list[Finalist]:
    """Whom to measure, in this order, until enough of them fit.

    The candidates of lowest loss; or as many as are wanted spread evenly along the front, the most accurate among them.
    """
    count = found.request.finalists
    if found.request.objective == "front":
        front = front_data(trials)
        places = len(front) - 1 - np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int)
        chosen = front.iloc[sorted(set(places.tolist()))]
    else:
        chosen = trials[trials["state"] == "evaluated"].sort_values(["val_loss", "number"]).head(MEASURED * count)
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    picked = [by_number[number] for number in chosen["number"]]
    records = [record_of(trial) for trial in picked]
    return [
        Finalist(trial.number, found.space.arch(trial.params), record)
        for trial, record in zip(picked, records, strict=True)
        if record is not None
    ]


def _measure(arch: Arch, table: Table) -> Measured:
    """Time an arch the way the table's networks were timed."""
    header = table.header
    return profiler.measure(
        arch,
        runtime=header.runtime,
        threads=header.threads,
        precision=header.precision,
        variant=header.variant,
        sentinel_us=header.sentinel_us,
    )


def _weigh(arch: Arch, table: Table) -> int:
    """Peak memory of an arch, measured the way that of the table's networks was."""
    header = table.header
    return profiler.measure_memory(
        arch,
        runtime=header.runtime,
        threads=header.threads,
        precision=header.precision,
        variant=header.variant,
    )


def _repeated(
    found: Resolved, study: optuna.Study, finalists: list[Finalist], repeats: int, watch: RepeatsWatch
) -> list[Finalist]:
    with Pool(_scorer(found), found.request.workers, watch.training) as pool:
        return with_repeats(finalists, study, pool, repeats, watch.trained)


def _checkpoint(found: Resolved, arch: Arch, epochs: int) -> Path:
    return found.request.run_dir / f"checkpoint-{arch.id}-{epochs}.pt"


def _train_winner(found: Resolved, arch: Arch, epochs: int, progress: Progress) -> TrainResult:
    """Train the winner with a long schedule; weights, ONNX file and history are written."""
    request, run_dir = found.request, found.request.run_dir
    data = load_data(request.dataset, found.space.input_shape, seed=request.seed, limit=request.limit)
    recipe = Recipe(epochs=epochs)
    model = build(arch, seed=request.seed, drop_path=recipe.drop_path)

    def show(epoch: Mapping[str, Any]) -> None:
        done = int(epoch["epoch"])
        left = (recipe.epochs - done) * float(epoch["seconds"])
        text = f"training the winner, epoch {done} of {epochs}, loss {epoch['train_loss']:.3f}"
        progress(done, epochs, left, text)

    progress(0, epochs, None, f"training the winner for {epochs} epochs")
    with _threads(request.final_threads):
        result = train(
            model,
            data,
            recipe,
            device=request.device,
            seed=request.seed,
            checkpoint=_checkpoint(found, arch, epochs),
            on_epoch=show,
            test=True,
        )
    model.cpu()
    write_weights(run_dir / "best.pt", model)
    export_onnx(model, [input_shape_of(arch)], run_dir / "best.onnx")
    write_history(result.history, run_dir / "training.csv")
    progress(recipe.epochs, recipe.epochs, 0, f"trained the winner in {show_seconds(result.seconds)}")
    return result
