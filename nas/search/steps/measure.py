"""The best candidates are timed on this machine until enough of them keep their budgets; kept in the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from nas.core.arch import Arch
from nas.profiling import profiler
from nas.report.front import front_data
from nas.search.archs import write_archs
from nas.search.context import Context
from nas.search.finalists import Finalist, Measured, require_fit, with_measurements
from nas.search.steps import Step
from nas.search.trials import record_of, trials_frame
from nas.tables.table import Table

MEASURED = 4  # candidates measured at most for each finalist wanted: a prediction may fit where its network does not


class Measure(Step):
    """Measures finalists; a measurement is taken once in the life of a study, and again while it is a disturbed one."""

    name = "measure"
    after = "search"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        asked = {"finalists": run.request.finalists, "minutes": run.request.minutes}
        return asked | {"search": run.output("search"), "here": run.found.here}

    def is_intact(self, run: Context) -> bool:
        kept = run.output(self.name)["finalists"]
        return not any(each["timing"] is not None and each["timing"]["disturbed"] for each in kept)

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        found, allotment, clock = run.found, run.allotment, run.deadline.clock
        wanted, finalists = run.request.finalists, list[Finalist]()
        for finalist in _candidates(run):
            fitting = sum(each.fits for each in finalists)
            seconds = finalist.record.seconds or 0.0
            if fitting == wanted or (fitting and not allotment.has_time_to_measure(seconds, finalist.arch)):
                break
            run.progress(fitting, wanted, None, f"measuring {finalist.arch.id}")
            begun = clock()
            measured = with_measurements(finalist, run.study, found.estimator, found.here, measure_arch, weigh_arch)
            finalists.append(measured)
            allotment.measured(clock() - begun)
            run.log(f"{measured}{'' if measured.fits else ': over the budget when measured'}")
        write_archs(run.folder, (each.arch for each in finalists))
        require_fit(finalists, found.estimator.limits)
        return {"finalists": [each.as_data() for each in finalists]}


def measured_finalists(run: Context) -> list[Finalist]:
    """The finalists as this step left them."""
    trials = {trial.number: trial for trial in run.study.get_trials(deepcopy=False)}
    finalists = [(each, trials[each["number"]]) for each in run.output(Measure.name)["finalists"]]
    return [_finalist(run, trial).with_data(each) for each, trial in finalists]


def _finalist(run: Context, trial: FrozenTrial) -> Finalist:
    record = record_of(trial)
    assert record is not None, "only what was evaluated becomes a finalist"
    return Finalist(trial.number, run.found.space.arch(trial.params), record)


def _candidates(run: Context) -> list[Finalist]:
    """Whom to measure, in this order, until enough of them fit.

    The candidates of lowest value; or as many as are wanted spread evenly along the front, the best score among them.
    """
    count, trials = run.request.finalists, trials_frame(run.study, run.found.estimator.table.hash)
    if run.request.objective == "front":
        front = front_data(trials)
        places = len(front) - 1 - np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int)
        chosen = front.iloc[sorted(set(places.tolist()))]
    else:
        chosen = trials[trials["state"] == "evaluated"].sort_values(["value", "number"]).head(MEASURED * count)
    by_number = {trial.number: trial for trial in run.study.get_trials(deepcopy=False)}
    return [_finalist(run, by_number[number]) for number in chosen["number"]]


def measure_arch(arch: Arch, table: Table) -> Measured:
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


def weigh_arch(arch: Arch, table: Table) -> int:
    """Peak memory of an arch, measured the way that of the table's networks was."""
    header = table.header
    return profiler.measure_memory(
        arch,
        runtime=header.runtime,
        threads=header.threads,
        precision=header.precision,
        variant=header.variant,
    )


STEP = Measure()
