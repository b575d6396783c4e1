"""The best candidates are timed on this machine until enough of them keep their budgets; kept in the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

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
    """Measures finalists; a measurement is taken once in the life of a study."""

    name = "measure"
    after = "search"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {"search": run.output("search"), "finalists": run.request.finalists, "here": run.found.here}

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        finalists = measured(run, lambda finalist: _tell(run, finalist))
        write_archs(run.folder, (each.arch for each in finalists))
        require_fit(finalists, run.found.estimator.limits)
        return {"finalists": [{"number": each.number, "arch": each.arch.id, "fits": each.fits} for each in finalists]}


def measured(run: Context, on_measured: Callable[[Finalist], None] = lambda finalist: None) -> list[Finalist]:
    """The finalists with their measurements, until as many fit as are wanted; none is measured twice."""
    wanted, finalists = run.request.finalists, list[Finalist]()
    for finalist in _candidates(run):
        fitting = sum(each.fits for each in finalists)
        if fitting == wanted:
            break
        run.progress(fitting, wanted, None, f"measuring {finalist.arch.id}")
        finalists.append(with_measurements(finalist, run.study, run.found.estimator, run.found.here, measure_arch))
        on_measured(finalists[-1])
    return finalists


def _tell(run: Context, finalist: Finalist) -> None:
    run.log(f"{finalist}{'' if finalist.fits else ': over the budget when measured'}")


def _candidates(run: Context) -> list[Finalist]:
    """Whom to measure, in this order, until enough of them fit.

    The candidates of lowest loss; or as many as are wanted spread evenly along the front, the most accurate among them.
    """
    count, trials = run.request.finalists, trials_frame(run.study, run.found.estimator.table.hash)
    if run.request.objective == "front":
        front = front_data(trials)
        places = len(front) - 1 - np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int)
        chosen = front.iloc[sorted(set(places.tolist()))]
    else:
        chosen = trials[trials["state"] == "evaluated"].sort_values(["val_loss", "number"]).head(MEASURED * count)
    by_number = {trial.number: trial for trial in run.study.get_trials(deepcopy=False)}
    picked = [by_number[number] for number in chosen["number"]]
    records = [record_of(trial) for trial in picked]
    return [
        Finalist(trial.number, run.found.space.arch(trial.params), record)
        for trial, record in zip(picked, records, strict=True)
        if record is not None
    ]


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


STEP = Measure()
