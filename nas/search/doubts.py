"""What a reader must know before trusting a result: said in the log, `result.json`, the report and by the command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import search_spaces
from nas.core.space import Space
from nas.evaluation.data import Data, Split
from nas.evaluation.evaluators import Evaluator, epochs_of, title_of
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import read_recipe
from nas.search.finalists import Finalist, Ranking
from nas.search.request import Request
from nas.tables.table import Table

if TYPE_CHECKING:
    import pandas as pd

SURE = 0.01  # probability that a network which guesses comes so far by luck
CANDIDATE_STEPS = 100  # with fewer, candidates differ by how fast they start: digits, hybrid space
WINNER_STEPS = 300  # of the shortest training that brought a winner on digits to 99 %
OF_TRAININGS = {
    "Candidates trained": ("to be told apart", "epochs"),
    "The winner trained": ("to learn what it can", "final_epochs"),
}


class Trained(Protocol):
    """What a training reached, as `TrainResult` says it."""

    @property
    def epochs(self) -> int: ...

    @property
    def test_accuracy(self) -> float | None: ...


@dataclass(frozen=True)
class Chance:
    """An accuracy beside that of guessing.

    Attributes:
        accuracy: share of right answers, 0..1.
        images: how many were asked.
        level: what guessing reaches: one over the classes, or the share of the largest class.
        beyond: whether luck explains the accuracy with a probability below `SURE`.
    """

    accuracy: float
    images: int
    level: float
    beyond: bool

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.1%} of {self.images:,} images are right, and whoever always names the largest class, or "
            f"guesses, gets {self.level:.1%}"
        )

    def as_data(self) -> dict[str, Any]:
        """Plain data, as results keep it."""
        return asdict(self)


def chance_of(accuracy: float, split: Split, tries: int = 1) -> Chance:
    """Judge an accuracy on a split, the best of `tries`, by the exact binomial distribution of right guesses."""
    images, counts = len(split), split.class_counts
    level = max(1 / split.classes, max(counts) / images if counts else 0.0)
    luck = tries * at_least(round(accuracy * images), images, level)
    return Chance(accuracy, images, level, luck < SURE)


def at_least(right: int, images: int, level: float) -> float:
    """Probability of that many or more right answers, each of which is right with the probability `level`."""
    if right <= 0 or level >= 1:
        return 1.0
    k = np.arange(right, images + 1)
    factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, images + 1)))))
    logs = factorial[images] - factorial[k] - factorial[images - k]
    logs += k * math.log(level) + (images - k) * math.log1p(-level)
    return min(float(np.exp(logs).sum()), 1.0)


def winners_chance(data: Data, training: Trained) -> Chance | None:
    """The winner's accuracy on the test images beside that of guessing; None where it has none."""
    return None if training.test_accuracy is None else chance_of(training.test_accuracy, data.test)


def doubts(
    request: Request,
    data: Data,
    evaluator: Evaluator,
    score: str,
    values: Sequence[float],
    accuracies: Sequence[float],
    ranking: Ranking,
    training: Trained,
) -> list[str]:
    """What the scores and trainings of a search leave in doubt, a sentence or two each; nothing where all is sound.

    Args:
        request: of the search.
        data: its images.
        evaluator: of its candidates.
        score: the name of their values.
        values, accuracies: of the evaluated candidates; no accuracies where the evaluator gives none.
        ranking: of the finalists, whose repeats show how far trainings of one network lie apart.
        training: the winner's.
    """
    found = []
    chance = winners_chance(data, training)
    if chance is not None and not chance.beyond:
        found.append(
            f"The winner is no better than chance: {chance} on the test split. Its latency is right, its accuracy says "
            "nothing. Look at its training, or search with more epochs, final_epochs or images"
        )
    best = chance_of(max(accuracies), data.val, len(accuracies)) if accuracies else None
    if best is not None and not best.beyond:
        found.append(
            f"No candidate is better than chance: at best {best} on the validation split. So nothing chose among them; "
            "give their training more epochs or images"
        )
    found += _too_short(request, data, evaluator, training.epochs)
    found += _alike(score, values, ranking.noise_sigma)
    return found


def _too_short(request: Request, data: Data, evaluator: Evaluator, final_epochs: int) -> list[str]:
    """Trainings with too few steps to tell anything."""
    trainings = [("The winner trained", read_recipe(request.final_recipe), final_epochs, WINNER_STEPS)]
    if isinstance(recipe := getattr(evaluator, "recipe", None), Recipe) and (epochs := epochs_of(evaluator)):
        trainings.insert(0, ("Candidates trained", recipe, epochs, CANDIDATE_STEPS))
    found = []
    for whose, recipe, epochs, least in trainings:
        why, name = OF_TRAININGS[whose]
        each = max(len(data.train) // recipe.batch_size, 1)
        if epochs * each < least:
            found.append(
                f"{whose} for {epochs} epoch{'s' if epochs > 1 else ''} of {each} step{'s' if each > 1 else ''}, and "
                f"the recipe needs {least} steps or more {why}: raise {name} to {math.ceil(least / each)}, or give "
                "more images"
            )
    return found


def _alike(score: str, values: Sequence[float], sigma: float | None) -> list[str]:
    """Whether candidates differ not at all, or less than two trainings of one of them do."""
    if len(values) < 3:
        return []
    title = title_of(score)
    if len(set(values)) == 1:
        return [
            f"All {len(values)} candidates have the same {title}, {values[0]:.6g}, so nothing chose among them. Look "
            "at the evaluator"
        ]
    if sigma is None:
        return []
    seen = float(np.std(values, ddof=1))
    own = math.sqrt(max(seen**2 - sigma**2, 0.0))  # of the networks themselves: variances add
    if own >= sigma:
        return []
    return [
        f"Candidates differ less than their trainings do: the {title} of {len(values)} candidates varies by "
        f"{seen:.3g} (standard deviation), two trainings of one network by {sigma:.3g}, which leaves {own:.3g} to the "
        "networks themselves. So chance had the larger part in choosing; more epochs or images tell them apart"
    ]


def constant(rungs: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """Rungs whose values are all the same, so that the order of proposals chose who went on."""
    found = []
    for place, title in enumerate(rungs[:-1]):
        own = trials[trials["state"] != "duplicate"]
        values = own[f"rung.{place}.value"].dropna() if f"rung.{place}.value" in own else own["value"][:0]
        if len(values) > 2 and values.nunique() == 1:
            found.append(
                f"All {len(values)} candidates have the same value of {title}, {values.iloc[0]:.6g}, so nothing chose "
                "who went on from there. Leave it out, or look at the evaluator"
            )
    return found


def disturbed(finalists: Sequence[Finalist]) -> list[str]:
    """Measurements of finalists on a disturbed machine."""
    return [
        f"The latency of trial {each.number} (arch {each.arch.id}) is that of a {each.timing.text}. The same command "
        "measures it again"
        for each in finalists
        if each.timing is not None and each.timing.disturbed
    ]


def noisy(table: Table, space: Space) -> list[str]:
    """A table that was written although its machine was disturbed, and how to profile again."""
    header = table.header
    if not header.noisy:
        return []
    noise = f"{header.noise:.0%} of samples in slow spells"
    return [
        f"The latencies of {table.where} were measured on a noisy machine ({noise}), so predictions may be off by more "
        "than its card says. On a quiet machine, profile into a new table, and give the search it and another name: "
        f"nas profile {search_spaces.spelled(space)} --runtime {header.runtime} --threads {header.threads} --precision "
        f"{header.precision} --level {header.level} --table FILE"
    ]


def shortened(
    request: Request, evaluated: int, finalists: Sequence[Finalist], wanted_repeats: int, training: Trained
) -> list[str]:
    """What a search left out to end in time."""
    repeats = min((len(each.values) - 1 for each in finalists if each.fits), default=0)
    wanted = min(request.finalists, evaluated)
    parts = [
        f"{done} of {asked} {what}"
        for done, asked, what in (
            (evaluated, request.trials, "candidates"),
            (sum(each.fits for each in finalists), wanted, "finalists that fit"),
            (repeats, wanted_repeats, "repeats of each"),
            (training.epochs, request.final_epochs, "epochs of the winner"),
        )
        if done < asked
    ]
    if not parts:
        return []
    return [f"To end in {request.minutes:g} minutes, the search made {', '.join(parts)}. Raise minutes to go on"]
