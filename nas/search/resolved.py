"""From a request to what a search works with: table, space, limits; everything is checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latency_tables
import search_spaces
from nas import __version__
from nas.core import parts
from nas.core.arch import Arch
from nas.core.errors import InputError, RunError, TableError
from nas.core.space import Space
from nas.evaluation.data import Data, load_data
from nas.evaluation.devices import pick_device
from nas.evaluation.evaluators import Progress
from nas.evaluation.recipes import read_recipe
from nas.evaluation.runs import teacher_for
from nas.evaluation.training import check_fit
from nas.metrics import load_metric
from nas.profiling import profiler
from nas.profiling.backends import load_backend
from nas.profiling.job import CHAINS, IN_SITU
from nas.profiling.machine import this_machine
from nas.search.budgets import Budget
from nas.search.doubts import noisy
from nas.search.feasible import FeasibleSet
from nas.search.fitting import feasible_set
from nas.search.limits import Estimator, Limit, Survey, resolve
from nas.search.overview import summary, told
from nas.search.predictor import AUTO, NONE, Prior, prior_of
from nas.search.request import Request
from nas.search.timing import PROFILE_SHARE
from nas.tables.calibration import networks_for
from nas.tables.table import Table

NETWORKS = 12  # behind the calibration of a table that a search makes for itself: no interval, but minutes less
TWINS = ("device", "cpu", "runtime", "precision", "threads")  # header fields that a table and its twin share
ON_THE_SPOT = 16  # rows that a table may lack and that are measured before a search
Say = Callable[[str], None]


@dataclass(frozen=True)
class Resolved:
    """A request with everything it names.

    Attributes:
        request: with its space, table, folder and device filled in.
        space: with the classes of the data set.
        estimator: the tables and the limits.
        survey: the sample of the space behind quantiles.
        smallest: the lowest predicted latency in ms, and an arch that reaches it.
        here: the tables that were measured on this machine, by the name that limits have for them.
    """

    request: Request
    space: Space
    estimator: Estimator
    survey: Survey
    smallest: tuple[float, Arch]
    here: tuple[str | None, ...]

    @functools.cached_property
    def fits(self) -> FeasibleSet:
        """What keeps the limits; its tables come from the run's folder where an earlier process kept them."""
        return feasible_set(self.space, self.estimator, self.request.run_dir)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What `nas.search.overview` says of that in short."""
        return summary(self.fits, self.estimator, self.request.seed)

    @property
    def not_this_machine(self) -> bool:
        """Whether the request's table was measured elsewhere."""
        return None not in self.here

    def versions(self) -> dict[str, str]:
        """What scores and latencies depend on besides the request: the versions of nas, torch and the runtimes here."""
        found = {"nas": __version__, "torch": importlib.metadata.version("torch")}
        for name in self.here:
            table = self.estimator.table if name is None else self.estimator.tables[name]
            found[table.header.runtime] = load_backend(table.header.runtime).version()
        return found

    def notes(self) -> list[str]:
        """What the saved request says of the run, for people."""
        limits = [f"{limit.asked} is {limit.title}" for limit in self.estimator.limits]
        return [*limits, f"table hash {self.estimator.table.hash}"]


@dataclass(frozen=True)
class Named:
    """A request with what its names stand for; nothing is measured for it.

    Attributes:
        request: with its space, folder and device filled in, and of its table the runtime and threads.
        space: with the classes of the data set.
        budgets: as asked for.
        table: the request's, None where it names none.
        tables: the tables that budgets name, by that name.
        data: what tells a data set from another: its fingerprint, its classes, the images in its parts.
    """

    request: Request
    space: Space
    budgets: tuple[Budget, ...]
    table: Table | None
    tables: Mapping[str, Table]
    data: Mapping[str, Any]

    @property
    def own_table(self) -> Path:
        """Where a run keeps rows that it measures for itself: this machine's, or a copy named after its source."""
        copied = "" if self.table is None else f"-{self.table.hash[:8]}"
        return self.request.run_dir / f"table{copied}.csv"


def name_request(request: Request, log: Say) -> Named:
    """Find everything that a request names, and measure nothing.

    Raises:
        InputError: a name is unknown, or does not fit.
    """
    device = str(pick_device(request.device))
    table = None if request.table is None else _table(request.table, request.level)
    space, data = _space(request, table, log)
    prior = prior_of(request.prior, space.name) if request.sampler == "guided" else NONE
    if prior != NONE and request.prior == AUTO:
        log(
            f"guided learns from trainings that come with nas, too: {Prior(prior).trainings} networks of this space "
            f"({prior}); prior: none leaves them out"
        )
    budgets = tuple(map(Budget.parse, request.budgets))
    names = dict.fromkeys(budget.table for budget in budgets if budget.table is not None)
    tables = {name: Table.read(latency_tables.find(name)) for name in names}
    side = space.input_shape[-1]
    filled = request.with_(space=space.name, fix=dict(space.held), prior=prior)
    filled = filled.with_(side=None if side == search_spaces.load(space.name).input_shape[-1] else side)
    filled = filled.with_(out=str(request.run_dir), device=device)
    if table is not None:
        filled = filled.with_(runtime=table.header.runtime, threads=table.header.threads)
    check_fit(
        data, read_recipe(request.final_recipe), teacher_for(data, request.final_teacher, request.final_teacher_weights)
    )
    facts: dict[str, Any] = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
    facts |= {"classes": data.classes, "fingerprint": data.fingerprint}
    return Named(filled, space, budgets, table, tables, facts)


def resolve_request(named: Named, table: Table, log: Say, limits: tuple[Limit, ...] | None = None) -> Resolved:
    """Check that tables fit, and turn budgets into limits.

    Args:
        named: the request.
        table: its table, with every row of the space.
        log: is told of the limits and what they leave.
        limits: those that a run was begun with; None to take them from the budgets.

    Raises:
        BudgetError: a budget cannot be met.
        TableError: a table does not fit.
        MissingLatency: a table lacks rows of the space.
        MeasureError: this machine lacks a table's runtime.
    """
    space = named.space
    for each in (table, *named.tables.values()):
        each.require(space)
        _require_calibrated(each, space, named.request)
    survey = Survey(space, named.request.seed)
    if limits is None:
        limits = resolve(named.budgets, survey, table, named.tables)
    header = table.header
    filled = named.request.with_(table=table.where, runtime=header.runtime, threads=header.threads)
    least = load_metric("latency_ms").smallest(space, table)
    here = _measured_here([(None, table), *named.tables.items()])
    found = Resolved(filled, space, Estimator(table, limits, named.tables), survey, least, here)
    _tell(found, log)
    return found


def _table(name: str, level: str | None) -> Table:
    """A table, or its twin of the level asked for, which lies beside it: `NAME.csv` and `NAME-op.csv`.

    Raises:
        TableError: there is no such twin, naming the command that makes it, or it was measured on something else.
    """
    table = Table.read(latency_tables.find(name))
    if level in (None, table.header.level):
        return table
    path = latency_tables.find(name)
    twin = path.with_name(f"{path.stem.removesuffix('-op')}{'-op' if level == 'op' else ''}.csv")
    if not twin.is_file():
        header = table.header
        raise TableError(
            f"level: {path} is a table of {header.level} rows, and there is no {twin.name} beside it; make it: "
            f"nas profile SPACE --runtime {header.runtime} --threads {header.threads} --precision {header.precision} "
            f"--level {level} --table {twin}"
        )
    found = Table.read(twin)
    if found.header.level != level:
        raise TableError(f"level: {twin} is a table of {found.header.level} rows, not of {level} rows")
    for field in TWINS:
        mine, other = getattr(table.header, field), getattr(found.header, field)
        if mine != other:
            raise TableError(
                f"level: {twin} is no twin of {path}: its {field} is {other!r}, not {mine!r}; name the table of "
                f"{level} rows that you mean with --table"
            )
    return found


def _space(request: Request, table: Table | None, log: Say) -> tuple[Space, Data]:
    """The space asked for, or the table's, with the classes of the data set, and that."""
    name, side = request.space, request.side
    if name is None:
        if table is None or not table.spaces:
            raise InputError("space: neither a space nor a table is named; name one of them (nas spaces, nas tables)")
        if len(table.spaces) > 1:
            names = ", ".join(table.header.spaces)
            raise InputError(f"space: {table.where} holds the rows of several spaces, name one of them: {names}")
        name, side = table.spaces[0].name, side or table.spaces[0].input_shape[-1]
    space = parts.load(name, side, request.fix)
    data = load_data(request.dataset, space.input_shape, seed=request.seed, limit=request.limit)
    for text in data.notes:
        log(text)
    classes = data.classes
    if classes == space.classes:
        return space, data
    log(f"{request.dataset} has {classes} classes, space {space.name} has {space.classes}: searching it with {classes}")
    return dataclasses.replace(space, classes=classes), data


def _networks(budgets: Sequence[Budget]) -> int:
    """How many networks calibrate a table that a search makes for itself: as many as its confidences need."""
    needed = [networks_for(budget.confidence) for budget in budgets if budget.confidence and budget.table is None]
    return max([NETWORKS, *needed])


def complete_table(named: Named, log: Say, progress: Progress) -> Table:
    """The request's table, or one that this machine is profiled into; a few rows that it lacks are measured.

    Only on the table's own machine, and into a copy: a classifier for another number of classes is one row.

    Raises:
        MeasureError: this machine cannot be profiled.
    """
    request, space, table, path = named.request, named.space, named.table, named.own_table
    if table is None:
        if not path.is_file():
            log(f"profiling this machine: the rows of {space.name} on {request.runtime}, {request.threads} thread(s)")
        settings: dict[str, Any] = {"path": path, "runtime": request.runtime, "threads": request.threads}
        settings |= {"level": request.level or "block", "networks": _networks(named.budgets), "seed": request.seed}
        if request.minutes is not None:
            minutes = PROFILE_SHARE * request.minutes
            if profiler.plan(profiler.job_of(space, **settings)).seconds > 60 * minutes:
                settings["budget_minutes"] = minutes
        # a noisy machine is accepted: the table and the result say so, and finalists are measured anyway
        return profiler.profile(space, **settings, accept_noise=True, progress=progress)
    header = table.header
    lacking = table.missing(space.rows() if header.level == "block" else space.op_rows())
    if (
        not 0 < len(lacking) <= ON_THE_SPOT
        or not this_machine(header.runtime).measured(header)
        or header.method not in (CHAINS, IN_SITU)
    ):
        return table
    if not path.is_file():
        table.write(path)
    return profiler.profile(
        space,
        path=path,
        runtime=header.runtime,
        threads=header.threads,
        level=header.level,
        precision=header.precision,
        seed=request.seed,
        rows=lacking,
        accept_noise=True,
        progress=progress,
    )


def table_begun_with(named: Named, hash: str) -> Table:
    """The table that a run was begun with, told by its hash: the request's, or the run's own. Nothing is measured.

    Raises:
        RunError: neither is that table any more.
    """
    own = Table.read(named.own_table) if named.own_table.is_file() else None
    for table in (named.table, own):
        if table is not None and table.hash == hash:
            return table
    found = named.table or own
    if found is None:
        raise RunError(
            f"the run in {named.request.run_dir} was begun with a table that this command does not name, and there is "
            f"no {named.own_table}. Name it (--table; its hash was {hash}), or give the new request another name"
        )
    path = named.request.run_dir / "table.csv"
    begun = f", name the run's own (--table {path})" if named.table is not None and path.is_file() else ""
    raise RunError(
        f"table {found.where} is not the one this run was begun with (its hash was {hash}, now {found.hash}), so "
        f"predictions would not compare. Put it back{begun}, or give the new request another name"
    )


def _require_calibrated(table: Table, space: Space, request: Request) -> None:
    if space.input_shape not in table.calibrations and not request.allow_uncalibrated:
        size = "x".join(map(str, space.input_shape))
        raise TableError(
            f"{table.where} is not calibrated for input {size}: no whole networks of that size were measured with it, "
            "so nobody knows how far its predictions are off. Measure them with: "
            f"nas profile {search_spaces.spelled(space)} --table {table.where}; or set allow_uncalibrated"
        )


def _measured_here(tables: Sequence[tuple[str | None, Table]]) -> tuple[str | None, ...]:
    """The tables of this machine; their runtimes must be installed, since finalists will be measured with them."""
    here = [(name, table) for name, table in tables if this_machine(table.header.runtime).measured(table.header)]
    for _, table in here:
        load_backend(table.header.runtime).require()
    return tuple(name for name, _ in here)


def _tell(found: Resolved, log: Say) -> None:
    table, limits = found.estimator.table, found.estimator.limits
    if found.not_this_machine:
        log(
            f"NOT THIS MACHINE: {table.where} was measured on {table.header.cpu}. Its predictions steer the search, "
            "nothing is measured here, and whether a network fits is decided by prediction alone"
        )
    elif (version := load_backend(table.header.runtime).version()) != table.header.runtime_version:
        log(
            f"{table.where} was measured with {table.header.runtime} {table.header.runtime_version}, finalists will be "
            f"with {version}"
        )
    for warning in noisy(table, found.space):
        log(f"WARNING: {warning}")
    for limit in limits:
        log(f"budget {limit.asked}: {limit.title}")
    for line in told(found.summary):
        log(line)
