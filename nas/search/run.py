"""A whole search: from a request to a run directory with a trained, measured, exported network and a report.

A run is a list of steps (`nas.search.steps`). Each is done once in the life of a run, and again when what it reads has
changed. Whatever kills the process, the same command continues after the last step that was finished: trials and scores
are in the study, training has its checkpoint, files appear whole or not at all. What a run rests on is compared before
anything is done: a command that is refused changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from nas.core.files import FULL, lock, writing
from nas.evaluation.devices import cpu_threads
from nas.evaluation.evaluators import Progress
from nas.search.context import REQUEST, Context
from nas.search.request import Request
from nas.search.resolved import Say, name_request
from nas.search.steps import Step, load_steps
from nas.search.storage import JOURNAL
from nas.search.timing import Deadline

clock = time.monotonic


def run_search(request: Request, *, log: Say = print, progress: Progress | None = None) -> Path:
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
    steps, run_dir, deadline = load_steps(), request.run_dir, Deadline(request.minutes, clock)
    with contextlib.ExitStack() as held:
        held.enter_context(lock(run_dir / "lock", run_dir))
        if request.storage is None or "://" not in request.storage:
            journal = request.storage or run_dir / JOURNAL
            held.enter_context(lock(f"{journal}.owner", journal))
        held.enter_context(writing(run_dir, FULL))
        held.enter_context(cpu_threads(1))  # the cores belong to the workers
        run = Context(name_request(_with_its_sampler(request), log), deadline, log, progress or _silent)
        held.callback(run.close)
        carry_out(steps, run)
    return run_dir


def _with_its_sampler(request: Request) -> Request:
    """The request with the sampler and the prior that its run was begun with, where it names none: another version has
    other defaults.
    """
    stored = request.run_dir / REQUEST
    if not stored.is_file():
        return request
    begun = Request.read(stored).begun_with()
    return request.with_(**{name: value for name, value in begun.items() if name not in request.model_fields_set})


def _silent(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
    pass


def carry_out(steps: Sequence[Step], run: Context) -> None:
    """Do the steps that are due, in order."""
    begun = run.begun
    if is_finished(steps, run):
        run.log(f"the run in {run.folder} is finished; raise `trials` to go on. Writing its report again")
        steps = [step for step in steps if step.every_time]
    elif begun:
        run.keep_request()
        run.note_versions()
    for step in steps:
        if step.every_time or step.is_due(run):
            inputs = step.inputs(run)
            output = step.carry_out(run)
            if not step.every_time:
                run.keep(step, inputs, output)
            if not begun and run.begun:
                run.note_versions()
                begun = True


def is_finished(steps: Sequence[Step], run: Context) -> bool:
    """Whether nothing is left to do but what is done every time."""
    if run.was_finished_before_steps():
        return True
    return run.begun and not any(step.is_due(run) for step in steps if not step.every_time)
