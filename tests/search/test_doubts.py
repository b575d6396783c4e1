"""What a result leaves in doubt, against hand calculations."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from nas.evaluation.data import DataRequest, in_memory
from nas.evaluation.evaluators import load_evaluator
from nas.search.doubts import SURE, at_least, chance_of, constant, doubts
from nas.search.finalists import Ranking
from nas.search.request import Request


def split(*counts: int) -> SimpleNamespace:
    """A split with so many images of each class."""

    class Counted(SimpleNamespace):
        def __len__(self) -> int:
            return sum(counts)

    return Counted(classes=len(counts), class_counts=counts)


def exactly(right: int, images: int, level: Fraction) -> float:
    terms = (comb(images, k) * level**k * (1 - level) ** (images - k) for k in range(right, images + 1))
    return float(sum(terms))


@pytest.mark.parametrize(
    ("right", "images", "level"), [(3, 10, "1/10"), (50, 360, "1/10"), (1, 7, "1/2"), (0, 5, "1/3")]
)
def test_the_luck_of_guessing_is_binomial(right, images, level):
    assert at_least(right, images, float(Fraction(level))) == pytest.approx(exactly(right, images, Fraction(level)))


def test_no_number_of_images_overflows():
    assert at_least(5_000, 50_000, 0.1) == pytest.approx(0.5, abs=0.01)  # the median of the right answers
    assert at_least(1_000_000, 2_000_000, 0.001) == 0.0


def test_whoever_names_one_class_is_no_better_than_chance():
    uneven = split(70, 20, 10)
    assert chance_of(0.7, uneven).level == 0.7
    assert not chance_of(0.7, uneven).beyond
    assert not chance_of(0.34, split(34, 33, 33)).beyond
    assert chance_of(0.9, uneven).beyond  # 90 or more of 100 at 0.7: 2e-6


def test_luck_shrinks_with_images_and_grows_with_tries():
    assert exactly(14, 100, Fraction(1, 10)) > SURE > exactly(140, 1000, Fraction(1, 10))
    assert not chance_of(0.14, split(*[10] * 10)).beyond
    assert chance_of(0.14, split(*[100] * 10)).beyond
    by_luck = exactly(19, 100, Fraction(1, 10))  # 0.5 %
    assert by_luck < SURE < 60 * by_luck
    assert chance_of(0.19, split(*[10] * 10)).beyond
    assert not chance_of(0.19, split(*[10] * 10), tries=60).beyond


def test_a_split_that_does_not_say_its_classes_is_judged_by_their_number():
    unknown = split(5, 5)
    unknown.class_counts = None
    assert chance_of(0.5, unknown).level == 0.5


def small_data(images: int, classes: int = 2):
    request = DataRequest("made-up", None, (1, 4, 4), 0, 0.2, None)
    pixels = torch.arange(images * 16, dtype=torch.int64).remainder(251).to(torch.uint8).view(images, 1, 4, 4)
    labels = torch.arange(images) % classes
    return in_memory(request, classes, (pixels, labels), (pixels, labels), mirrors=True)


@pytest.fixture
def said():
    """What is said of a search on so many images (a fifth of them to validate on)."""

    def say(images=6400, *, epochs=4, final=40, test=0.9, losses=(1.0, 2.0, 3.0), accuracies=(0.5, 0.9), sigma=None):
        request, evaluator = Request(final_epochs=final), load_evaluator("short", epochs=epochs)
        training, ranking = SimpleNamespace(test_accuracy=test, epochs=final), Ranking("", None, sigma)
        return doubts(request, small_data(images), evaluator, "val_loss", losses, accuracies, ranking, training)

    return say


def test_a_sound_search_leaves_no_doubt(said):
    assert said() == []
    assert said(sigma=0.5) == []
    assert said(test=None) == []


def test_a_winner_at_chance_level_is_said_so(said):
    (line,) = said(test=0.5)
    assert line.startswith("The winner is no better than chance: 50.0% of 6,400 images are right")
    assert "gets 50.0%" in line


def test_candidates_at_chance_level_are_said_so(said):
    (line,) = said(accuracies=(0.5, 0.51, 0.49))
    assert line.startswith("No candidate is better than chance: at best 51.0%")


def test_too_few_steps_name_the_epochs_that_are_needed(said):
    # 320 images to train on: 10 steps of 32 an epoch for candidates, 5 of 64 for the winner
    candidates, winner = said(400, epochs=9, final=59)
    assert "for 9 epochs of 10 steps" in candidates
    assert "raise epochs to 10," in candidates
    assert "for 59 epochs of 5 steps" in winner
    assert "raise final_epochs to 60," in winner
    assert said(400, epochs=10, final=60) == []


def test_candidates_that_differ_less_than_their_trainings_are_said_so(said):
    # losses 1, 2, 3: standard deviation 1; of the networks themselves sqrt(1 - sigma^2)
    (line,) = said(sigma=0.8)  # leaves 0.6
    assert line.startswith("Candidates differ less than their trainings do")
    assert "varies by 1 (standard deviation), two trainings of one network by 0.8, which leaves 0.6" in line
    assert said(sigma=0.7) == []  # leaves 0.714
    assert "leaves 0 to" in said(sigma=1.5)[0]


def test_a_rung_that_says_the_same_of_everyone_is_told():
    trials = pd.DataFrame({"state": ["stopped"] * 3 + ["evaluated"], "rung.0.value": [2.0] * 4, "rung.1.value": 1.0})
    (line,) = constant(["naswot", "short"], trials)
    assert line.startswith("All 4 candidates have the same value of naswot, 2, so nothing chose who went on")
    assert constant(["naswot", "short"], trials.assign(**{"rung.0.value": [1.0, 2.0, 2.0, 2.0]})) == []
    assert constant([], trials) == []
