"""The finalists that fit are trained again with other seeds, and the winner is chosen; kept in the study.

Finalists of an evaluator that does not train are not: the same score again says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas.search.context import Context
from nas.search.finalists import Finalist, rank, with_repeats
from nas.search.steps import Step
from nas.search.steps.measure import measured_finalists
from nas.search.timing import RepeatsWatch

KEPT = ("values", "losses", "accuracies")  # of a finalist


class Repeat(Step):
    """Trains finalists again; a training is done once in the life of a study."""

    name = "repeat"
    after = "measure"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        asked = {"repeats": run.request.repeats, "minutes": run.request.minutes}
        return asked | {"measure": run.output("measure")}

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        finalists = measured_finalists(run)
        seconds = [each.record.seconds or 0.0 for each in finalists if each.fits]
        repeats = run.allotment.repeats(seconds)
        watch = RepeatsWatch(run.request, run.pace, repeats * len(seconds), run.progress, run.log)
        with run.pool(watch.training) as pool:
            finalists = with_repeats(finalists, run.study, pool, repeats, watch.trained)
        run.remove_checkpoints()
        winner = winner_of(finalists)
        ranking = rank([each for each in finalists if each.fits], run.evaluator.trains)
        run.log(f"the winner is {winner}; {ranking.text}")
        scores = {str(each.number): {name: getattr(each, name) for name in KEPT} for each in finalists}
        return {"winner": winner.arch.id, "scores": scores}


def finalists_of(run: Context) -> list[Finalist]:
    """The finalists with their measurements and trainings, as this step left them."""
    scores = run.output(Repeat.name)["scores"]
    finalists = [(each, scores[str(each.number)]) for each in measured_finalists(run)]
    return [
        replace(
            each,
            values=tuple(kept.get("values", kept["losses"])),  # an earlier version knew no others
            losses=tuple(kept["losses"]),
            accuracies=tuple(kept["accuracies"]),
        )
        for each, kept in finalists
    ]


def winner_of(finalists: Sequence[Finalist]) -> Finalist:
    """Of those that fit, the one of lowest mean value."""
    return min((finalist for finalist in finalists if finalist.fits), key=lambda finalist: finalist.mean_value)


STEP = Repeat()
