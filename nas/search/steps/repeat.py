"""The finalists that fit are trained again with other seeds, and the winner is chosen; kept in the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas.search.context import Context
from nas.search.finalists import Finalist, rank, with_repeats
from nas.search.steps import Step
from nas.search.steps.measure import measured
from nas.search.workers import Outcome


class Repeat(Step):
    """Trains finalists again; a training is done once in the life of a study."""

    name = "repeat"
    after = "measure"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {"measure": run.output("measure"), "repeats": run.request.repeats}

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        finalists = _repeated(run)
        winner, ranking = winner_of(finalists), rank([each for each in finalists if each.fits])
        run.log(f"the winner is {winner}; {ranking.text}")
        scores = {str(each.number): {"losses": each.losses, "accuracies": each.accuracies} for each in finalists}
        return {"winner": winner.arch.id, "scores": scores}


def _repeated(run: Context) -> list[Finalist]:
    finalists = measured(run)
    total, done = run.request.repeats * sum(finalist.fits for finalist in finalists), 0

    def show(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        run.progress(done, total, None, "training the finalists again")
        if outcome.score is None:
            run.log(f"a repeated training failed: {outcome.reason}")

    with run.pool() as pool:
        return with_repeats(finalists, run.study, pool, run.request.repeats, show)


def finalists_of(run: Context) -> list[Finalist]:
    """The finalists with their measurements and trainings, as this step left them."""
    scores = run.output(Repeat.name)["scores"]
    finalists = [(each, scores[str(each.number)]) for each in measured(run)]
    return [
        replace(each, losses=tuple(kept["losses"]), accuracies=tuple(kept["accuracies"])) for each, kept in finalists
    ]


def winner_of(finalists: Sequence[Finalist]) -> Finalist:
    """Of those that fit, the one of lowest mean loss."""
    return min((finalist for finalist in finalists if finalist.fits), key=lambda finalist: finalist.mean_loss)


STEP = Repeat()
