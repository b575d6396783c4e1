"""The study: candidates proposed, priced and scored until there are enough; leaves `trials.csv` and `front.csv`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nas.core.errors import RunError
from nas.core.files import write_text
from nas.report.front import front_data
from nas.search import engine
from nas.search.archs import write_front
from nas.search.context import Context
from nas.search.ledger import Ledger
from nas.search.steps import Step
from nas.search.study import distributions_of
from nas.search.trials import trials_frame


class Search(Step):
    """Runs the study; more trials than before go on after the last."""

    name = "search"
    after = "profile"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {"trials": run.request.trials, "table": run.found.estimator.table.hash}

    def is_intact(self, run: Context) -> bool:
        there = all((run.folder / name).is_file() for name in ("trials.csv", "front.csv"))
        return there and len(run.study.get_trials(deepcopy=False)) == run.output(self.name)["trials"]

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        found, request = run.found, run.request
        ledger = Ledger(run.study, distributions_of(found.space.choices))
        before = sum(record.state == "evaluated" for _, record in ledger.past())
        if before:
            run.log(f"continuing after {before} of {request.trials} evaluated candidates")
        try:
            with run.pool() as pool:
                search = engine.Engine(
                    ledger,
                    found.space,
                    found.estimator,
                    pool,
                    trials=request.trials,
                    seed=request.seed,
                    on_trial=_Teller(run, before),
                )
                short = search.run()
        finally:
            trials = trials_frame(run.study, found.estimator.table.hash)
            write_text(run.folder / "trials.csv", trials.to_csv(index=False))
        if short:
            run.log(short)
        evaluated = int((trials["state"] == "evaluated").sum())
        if not evaluated:
            raise RunError(short)
        write_front(run.folder, front_data(trials), run.study, found.space)
        return {"trials": len(trials), "evaluated": evaluated}


class _Teller:
    """Says where a search stands after each trial."""

    def __init__(self, run: Context, before: int) -> None:
        self.run, self.before, self.begun = run, before, time.monotonic()

    def __call__(self, now: engine.Progress) -> None:
        done, wanted = now.counts["evaluated"], now.trials
        each = (time.monotonic() - self.begun) / (done - self.before) if done > self.before else None
        left = None if each is None else each * (wanted - done)
        best = f", best loss {now.best_loss:.4f}" if now.best_loss is not None else ""
        self.run.progress(done, wanted, left, f"{done} candidates evaluated{best}")
        if now.record.state == "failed":
            self.run.log(f"trial {now.number} failed: {now.record.reason}")


STEP = Search()
