"""How good a score is known to be: what `nas judge` found of it on the shipped truth.

The figures come with the package; `benchmarks/truth/scores.py` makes them. They are of networks of `hybrid-32` on
Fashion-MNIST, trained for minutes: of another space, data set or training they are what there is to go by.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.core.errors import InputError
from nas.evaluation import truth
from nas.evaluation.evaluators import Asked, read_asked

FILE = truth.SHIPPED / f"{truth.DEFAULT}.judged.json"
WHERE = "in a band of like MACs on Fashion-MNIST networks (nas judge)"
LEARNED = 20  # trainings behind the figure of a model
LEAST = 20  # networks of the band; of fewer, a figure tells nothing


def read(file: Path = FILE) -> Mapping[str, Any]:
    """What `nas.search.verdicts.figures` found, of scores and of sets of them; nothing where there is no such file."""
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def told(
    evaluators: Sequence[Asked], features: Sequence[Asked], sampler: str, prior: str = "none", file: Path = FILE
) -> list[str]:
    """How well the scores of a search are known to rank, a line each; nothing of what was not judged.

    Args:
        evaluators: that candidates are compared by, in order.
        features: that the sampler learns from.
        sampler: of the search; only `guided` has a model.
        prior: trainings that it learns from, too.
        file: of the figures.
    """
    found = read(file)
    if not found.get("band_marked") or found["networks_band"] < LEAST:  # nothing is said of a wide range of sizes
        return []
    lines = [line for asked in evaluators for each in found["scores"] if (line := _line_of(asked, each))]
    if sampler == "guided":
        beside = [repr(asked) for asked in features] + ([f"prior {prior}"] if prior != "none" else [])
        lines += _lines_of_model(beside, found["predictors"])
    return lines


def _line_of(asked: Asked, figures: Mapping[str, Any]) -> str | None:
    if figures["of"] or _asked(figures["name"]) != (asked,):
        return None
    return _line(figures["name"], figures)


def _lines_of_model(beside: Sequence[str], predictors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the model with these features; where it was not judged with them, of the model without."""
    mine = [each for each in predictors if each["labels"] == LEARNED and each["from"].startswith("encoding")]
    with_features = [each for each in mine if sorted(map(_key, each["of"])) == sorted(beside)]
    for each in with_features or [each for each in mine if not each["of"]]:
        scores = f" and {', '.join(each['of'])}" if each["of"] else ""
        line = _line(f"the model of guided, after {LEARNED} trainings, from choices{scores},", each)
        return [line] if line else []
    return []


def _key(name: str) -> str:
    """An evaluator with all its settings, or the name of what is none."""
    return "".join(map(repr, _asked(name))) or name


def _line(name: str, figures: Mapping[str, Any]) -> str | None:
    values = [figures[f"kendall{key}_band"] for key in ("", "_low", "_high")]
    if None in values:
        return None
    value, low, high = (f"{value:.2f}".replace("0.", ".", 1) for value in values)
    return f"{name} ranks with tau {value} ({low} to {high}) {WHERE}"


@functools.cache
def _asked(name: str) -> tuple[Asked, ...]:
    """An evaluator with all its settings; none where there is no such evaluator here."""
    try:
        return read_asked(name)
    except InputError:
        return ()
