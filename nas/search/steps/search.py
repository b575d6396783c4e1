"""The study: candidates proposed, priced and scored until there are enough; leaves `trials.csv` and `front.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.core.errors import RunError
from nas.core.files import write_text
from nas.report.front import front_data
from nas.search import engine, known
from nas.search.archs import write_front
from nas.search.context import Context, sampler_of
from nas.search.ledger import Ledger
from nas.search.steps import Step
from nas.search.study import distributions_of
from nas.search.timing import Watch
from nas.search.trials import trials_frame


class Search(Step):
    """Runs the study; more trials than before go on after the last."""

    name = "search"
    after = "prepare"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {"trials": run.request.trials, "minutes": run.request.minutes, "table": run.found.estimator.table.hash}

    def is_intact(self, run: Context) -> bool:
        there = all((run.folder / name).is_file() for name in ("trials.csv", "front.csv"))
        finished = sum(trial.state.is_finished() for trial in run.study.get_trials(deepcopy=False))
        return there and finished == run.output(self.name)["trials"]

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        found, request = run.found, run.request
        for line in known.told(request.evaluator, request.features, request.sampler, request.prior):
            run.log(line)
        run.study.sampler = sampler_of(run)
        ledger = Ledger(run.study, distributions_of(found.space.choices))
        watch = Watch(request, run.pace, run.progress, run.log)
        try:
            with run.pool(watch.training) as pool:
                search = engine.Engine(
                    ledger,
                    found.space,
                    found.estimator,
                    pool,
                    trials=request.trials,
                    seed=request.seed,
                    rungs=len(request.evaluator),
                    front=request.objective == "front",
                    on_trial=watch.trial,
                    on_rung=watch.rung,
                    is_over=run.allotment.is_over,
                )
                if search.scored[0]:
                    run.log(f"continuing after {search.scored[0]} of {request.trials} evaluated candidates")
                watch.begin(search.scored)
                short = search.run()
        finally:
            trials = trials_frame(run.study, found.estimator.table.hash)
            write_text(run.folder / "trials.csv", trials.to_csv(index=False))
        run.remove_checkpoints()
        if short:
            run.log(short)
        evaluated = int((trials["state"] == "evaluated").sum())
        if not evaluated:
            raise RunError(short)
        write_front(run.folder, front_data(trials), run.study, found.space)
        return {"trials": len(trials), "evaluated": evaluated}


STEP = Search()
