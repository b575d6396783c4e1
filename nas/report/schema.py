"""What a finished run holds as data, for who writes and who reads it: `result.json`, and the columns of `trials.csv`.

Latencies are in ms, times of blocks in us, accuracies and shares are fractions. What is `NotRequired` is absent from
results of earlier versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from nas.core.errors import RunError
from nas.evaluation.evaluators import LOSS

VERSION = 1  # of `result.json`
State = Literal["evaluated", "stopped", "infeasible", "duplicate", "failed"]
"""What became of a trial: scored; stopped at an earlier rung than the last; over a budget, so never scored; the arch of
an earlier trial; without a score.
"""
STATES: tuple[State, ...] = get_args(State)

TEXT = ("state", "reason", "score", "cost", "started", "arch", "table_hash")
WHOLE = ("number", "params", "macs", "duplicate_of", "seed")
REAL = ("predicted_ms", "predicted_low_ms", "predicted_high_ms", "value", "val_loss", "val_accuracy", "seconds")
TRIAL_COLUMNS = (*TEXT, *WHOLE, *REAL)
"""Columns of `trials.csv`; the parameters of the space stand in further ones, `param.*`. Candidates are compared by
`value`, `score` is the name of that. Where there are several rungs, `rung.N.value`, `.score`, `.seconds`, `.cost` and
`.by_chance` say what a candidate reached at each, the first being 0.
"""
LATER = ("value", "score", "cost")
"""Those that `trials.csv` of version 0.1 lacks: its values are losses."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Budget(TypedDict):
    """A resolved upper bound, and what was asked for."""

    metric: str
    limit: PositiveFloat
    asked: str
    table: str | None
    quantile_of: NotRequired[str | None]
    confidence: NotRequired[Fraction | None]
    used: NotRequired[PositiveFloat | None]


class Counts(TypedDict):
    """Trials by what became of them."""

    proposed: NonNegativeInt
    evaluated: NonNegativeInt
    stopped: NotRequired[NonNegativeInt]
    infeasible: NonNegativeInt
    duplicate: NonNegativeInt
    failed: NonNegativeInt


class Candidate(TypedDict):
    """One of the best few, after its repeated runs."""

    arch: str
    number: NonNegativeInt
    predicted_ms: PositiveFloat
    measured_spread_ms: NotRequired[FiniteFloat | None]
    measured_noise: NotRequired[str | None]
    measured_disturbed: NotRequired[bool | None]
    measured_memory_mb: NotRequired[FiniteFloat | None]
    unmeasured_percent: NotRequired[FiniteFloat]
    memory_mb: NotRequired[PositiveFloat | None]
    params: NonNegativeInt
    macs: NonNegativeInt
    values: Annotated[list[FiniteFloat], Field(min_length=1)]
    val_losses: list[FiniteFloat]
    val_accuracies: list[Fraction]
    fits: bool


class Finalist(Candidate):
    """A candidate beside its measurement, null where it could not be measured."""

    measured_ms: PositiveFloat | None


class Chance(TypedDict):
    """The winner's accuracy on the test images beside what guessing reaches."""

    accuracy: Fraction
    images: NonNegativeInt
    level: Fraction
    beyond: bool


class Training(TypedDict):
    """The winner's longer training."""

    epochs: NonNegativeInt
    val_accuracy: Fraction
    val_loss: NotRequired[FiniteFloat]
    test_accuracy: NotRequired[Fraction | None]
    seconds: NotRequired[FiniteFloat | None]
    chance: NotRequired[Chance | None]


class Onnx(TypedDict):
    """How far the ONNX file's outputs are off PyTorch's on validation images, over the largest output."""

    images: NonNegativeInt
    difference: FiniteFloat


class Block(TypedDict):
    """One block of the winner and its part of the predicted latency."""

    stage: str
    block: Annotated[str, Field(pattern=r"\S")]
    inputs: str
    us: FiniteFloat
    share: Fraction


class StageRow(TypedDict):
    """One line of the winner's architecture."""

    stage: str
    blocks: str


class Winner(Candidate):
    """The finalist that was trained to the end; always measured."""

    measured_ms: PositiveFloat | None
    training: Training
    onnx: NotRequired[Onnx | None]
    blocks: Annotated[list[Block], Field(min_length=1)]
    architecture: Annotated[list[StageRow], Field(min_length=1)]


class Reference(TypedDict):
    """A network beside the winner: a preset, or the median of the space."""

    name: str
    predicted_ms: PositiveFloat
    params: NonNegativeInt
    macs: NonNegativeInt


class Ranking(TypedDict):
    """How sure the order of the finalists is; `known` says how well the scores of the search rank elsewhere."""

    text: str
    known: NotRequired[list[str]]
    pairs_sure: NotRequired[FiniteFloat | None]
    noise_sigma: NotRequired[FiniteFloat | None]


class Liked(TypedDict):
    """A network and what a fitted model expects of it, with a 95 % interval."""

    arch: str
    number: NonNegativeInt | None
    expected: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    predicted_ms: PositiveFloat
    choices: dict[str, Any]


class Effect(TypedDict):
    """How much better or worse networks with a choice are expected to be than the mean of what fits."""

    choice: str
    value: Any
    share: Fraction
    effect: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Belief(TypedDict):
    """What a linear model fitted to the candidates' losses says; none of it is trained or measured.

    `rank_correlation` is Spearman's, of losses predicted each without its own candidate; `best` is the best of the
    fitted model among all networks that fit, `best_trained` the trained one of lowest loss, `behind` what the model
    expects between the two.
    """

    candidates: NonNegativeInt
    rank_correlation: FiniteFloat | None
    best: Liked
    best_trained: Liked
    behind: FiniteFloat
    behind_low: FiniteFloat
    behind_high: FiniteFloat
    effects: list[Effect]


class Smallest(TypedDict):
    """The lowest latency that the space can reach."""

    predicted_ms: PositiveFloat
    arch: str


class BudgetUse(TypedDict):
    """How a budget narrows the space: the share that keeps it alone, null where it is no sum over blocks, and whether
    it keeps out what the others let in.
    """

    asked: str
    limit: PositiveFloat
    unit: str
    share: Fraction | None
    binds: bool


class StageUse(TypedDict):
    """The median time of a stage among the networks that fit, and what more time would buy in it alone."""

    stage: str
    median_ms: FiniteFloat
    macs_gained: FiniteFloat


class Feasible(TypedDict):
    """What the budgets leave of the space; see `nas.search.overview.summary`."""

    space: str
    archs: int
    fit: FiniteFloat
    fit_at_least: FiniteFloat
    fit_at_most: FiniteFloat
    share: Fraction
    lost_to_rounding: Fraction
    smallest_ms: PositiveFloat
    median_ms: PositiveFloat
    largest_ms: PositiveFloat
    published: dict[str, bool]
    budgets: list[BudgetUse]
    more_ms: PositiveFloat
    stages: list[StageUse]


class Preset(TypedDict):
    """A published network of the run's image size, on its table: `top1` is of ImageNet, with recipes of its authors."""

    name: str
    top1: Fraction
    source: str
    recipe: str
    predicted_ms: PositiveFloat
    low_ms: FiniteFloat | None
    high_ms: PositiveFloat | None
    params: NonNegativeInt
    macs: NonNegativeInt


class Provenance(TypedDict):
    """Where the numbers come from."""

    table: str | None
    table_hash: str | None
    device: str
    cpu: str
    runtime: str
    threads: NonNegativeInt
    precision: str
    calibration: NotRequired[str | None]
    runtime_here: NotRequired[str | None]
    version_changes: NotRequired[list[str]]
    table_mape_percent: NotRequired[FiniteFloat | None]
    card: NotRequired[str | None]
    not_this_machine: bool
    dataset: NotRequired[str]
    seed: int
    versions: dict[str, str]
    started: str
    seconds: FiniteFloat


class RungUse(TypedDict):
    """What became of the candidates of one of several evaluators.

    `scored` have a score of it, `by_chance` of them were sent there by chance alone, `stopped` went no further. Seconds
    are those of one worker, `seconds` of all together.
    """

    title: str
    score: str
    scored: NonNegativeInt
    by_chance: NonNegativeInt
    stopped: NonNegativeInt
    seconds: FiniteFloat
    seconds_each: FiniteFloat


class Result(TypedDict):
    """`result.json`; `begun_with` has the trial of each published network that the sampler began with."""

    schema: Literal[1]
    name: str
    space: str
    objective: Literal["accuracy", "front"]
    score: str
    warnings: NotRequired[list[str]]
    budgets: list[Budget]
    counts: Counts
    rungs: NotRequired[list[RungUse]]
    finalists: Annotated[list[Finalist], Field(min_length=1)]
    winner: Winner
    reference: NotRequired[Reference | None]
    ranking: Ranking
    belief: NotRequired[Belief | None]
    smallest: NotRequired[Smallest | None]
    feasible: NotRequired[Feasible]
    published: NotRequired[list[Preset]]
    begun_with: NotRequired[dict[str, NonNegativeInt]]
    provenance: Provenance


def check_result(data: Any, where: str) -> Result:
    """What is about to be written as a `result.json`, checked.

    Args:
        data: plain data.
        where: it comes from, in messages.

    Raises:
        RunError: something is missing, wrong, or not in the schema, naming it.
    """
    try:
        found = TypeAdapter(Result).validate_python(data)
    except ValidationError as error:
        raise _wrong(error, where) from error
    if unknown := _unknown(data, found):  # which a reader would leave out
        raise RunError(f"{where}: not in the schema: {', '.join(unknown)}")
    return found


def _unknown(data: Any, found: Any, place: str = "") -> list[str]:
    """The keys of `data`, however deep, that `found` lacks."""
    if isinstance(data, dict):
        pairs = [(f"{place}.{key}".lstrip("."), value, key) for key, value in data.items()]
        return [
            one for name, value, key in pairs for one in (_unknown(value, found[key], name) if key in found else [name])
        ]
    if isinstance(data, list):
        return [one for index, value in enumerate(data) for one in _unknown(value, found[index], f"{place}[{index}]")]
    return []


def read_result(path: Path) -> Result:
    """A `result.json`; raises as `check_result`, also where it is no JSON."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: Invalid JSON: {error}") from error
    if isinstance(data, dict) and "score" not in data:
        data = _of_version_0_1(data)
    try:
        return TypeAdapter(Result).validate_python(data)
    except ValidationError as error:
        raise _wrong(error, str(path)) from error


def _of_version_0_1(data: dict[str, Any]) -> dict[str, Any]:
    """A result of version 0.1, which knew no other values than losses, as this one has it."""

    def valued(candidate: Any) -> Any:
        known = isinstance(candidate, dict) and "val_losses" in candidate
        return candidate | {"values": candidate["val_losses"]} if known else candidate

    listed = data.get("finalists")
    finalists = [valued(each) for each in listed] if isinstance(listed, list) else listed
    return data | {"score": LOSS, "winner": valued(data.get("winner")), "finalists": finalists}


def _wrong(error: ValidationError, where: str) -> RunError:
    first = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return RunError(f"{where}: {place + ': ' if place else ''}{first['msg']}{more}")
