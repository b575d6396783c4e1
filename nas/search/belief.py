"""What a model fitted to the candidates of a study believes: how well it predicts, what it likes, which choices matter.

The model is the linear part of `nas.search.surrogate`, whatever sampler proposed the candidates, so that the network it
likes best is found exactly among all that fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.study import Study

from nas.core.arch import Arch, calls_of
from nas.core.errors import BudgetError
from nas.core.units import US_PER_MS
from nas.search.lattice import ArchLattice, Path
from nas.search.samplers._context import Context, History
from nas.search.surrogate import Surrogate
from nas.tables.table import Table

LEAST = 10  # candidates that a model is fitted to
DEVIATIONS = 1.96  # of a 95 % interval
RAREST = 0.02  # share of what fits that has a choice whose effect is told


def belief_of(context: Context, study: Study) -> dict[str, Any] | None:
    """What the model believes, as `result.json` holds it; None for fewer than `LEAST` candidates with a loss.

    Args:
        context: the feasible set and its features.
        study: the candidates.
    """
    history = History.of(context, study)
    lattice = context.feasible.lattice
    assert isinstance(lattice, ArchLattice)
    if len(history.paths) < LEAST:
        return None
    model = Surrogate(context.encoder(np.array(history.paths)), history.values[:, 0], curved=False)
    scores = [-score for score in context.encoder.scores(model.linear())]
    trained = history.paths[int(np.argmin(history.values[:, 0]))]
    best = next(iter(context.feasible.best(scores)), trained)
    mean, cover = model.joint(context.encoder(np.array([best, trained])))
    deviations = np.sqrt(np.maximum(np.diag(cover), 0.0))
    numbers = {context.path_of(study, trial): trial.number for trial in reversed(study.get_trials(deepcopy=False))}

    def liked(path: Path, place: int) -> dict[str, Any]:
        assert context.latency is not None
        return {
            "arch": lattice.arch(path).id,
            "number": numbers.get(path),
            **_interval("expected", float(mean[place]), float(deviations[place])),
            "predicted_ms": float(context.latency(np.array([path]))[0]),
            "choices": lattice.params_of(path),
        }

    apart = max(float(cover[0, 0] + cover[1, 1] - 2 * cover[0, 1]), 0.0)
    behind = _interval("behind", float(mean[1] - mean[0]), math.sqrt(apart))
    return {
        "candidates": len(history.paths),
        "rank_correlation": model.correlation if math.isfinite(model.correlation) else None,
        "best": liked(best, 0),
        "best_trained": liked(trained, 1),
        "behind": behind["behind"],
        "behind_low": behind["low"],
        "behind_high": behind["high"],
        "effects": effects(context, model),
    }


def believed_front(
    archs: Sequence[Arch], losses: Sequence[float] | np.ndarray, table: Table, limits_ms: Sequence[float]
) -> pd.DataFrame:
    """For each latency, the network that a model fitted to these trainings expects most of among all within it; exact.

    The model is the linear one of `belief_of`, so what it likes best is found over the whole space.

    Args:
        archs: networks of one space that were trained, two at least.
        losses: of them, smaller is better; (n,)
        table: prices the space.
        limits_ms: latencies; one below the fastest network is left out.

    Returns:
        Rows `limit_ms`, `predicted_ms`, `expected` (loss, by the model), `arch` (an `Arch`), `trained` (whether it is
        one of `archs`); a network that is the best within several limits stands there once, with the first of them.

    Raises:
        InputError: networks of several spaces.
        MissingLatency: the table lacks rows of the space.
    """
    from nas.search.budgets import Budget
    from nas.search.fitting import feasible_set
    from nas.search.limits import Estimator, Survey, resolve
    from nas.search.predictor import encoded_in, everything_of, space_of

    space = space_of(archs)
    table.require(space)
    context = everything_of(space)
    model = Surrogate(encoded_in(space, archs), np.asarray(losses, float), curved=False)
    scores = [-score for score in context.encoder.scores(model.linear())]
    lattice, survey = context.feasible.lattice, Survey(space, 0)
    found: dict[Path, float] = {}
    assert isinstance(lattice, ArchLattice)
    for limit in sorted(limits_ms):
        budget = Budget.parse(f"latency_ms<={float(limit)!r}")
        try:
            fits = feasible_set(space, Estimator(table, resolve([budget], survey, table, {}), {}))
        except BudgetError:
            continue
        found.setdefault(fits.best(scores)[0], limit)
    paths = list(found)
    if not paths:
        return pd.DataFrame(columns=["limit_ms", "predicted_ms", "expected", "arch", "trained"])
    known, liked = set(archs), [lattice.arch(path) for path in paths]
    return pd.DataFrame(
        {
            "limit_ms": list(found.values()),
            "predicted_ms": [table.price(calls_of(arch)).total_us / US_PER_MS for arch in liked],
            "expected": model.mean(context.encoder(np.array(paths))),
            "arch": liked,
            "trained": [arch in known for arch in liked],
        }
    )


def effects(context: Context, model: Surrogate) -> list[dict[str, Any]]:
    """The expected loss of networks with a choice, less that of all that fit, over even draws of both.

    Returns:
        For each value of each parameter that is neither rare nor everywhere: its share of the draws, the effect, and
        a 95 % interval of the model, in the order of parameters.
    """
    params = [context.feasible.lattice.params_of(tuple(path)) for path in context.reference.tolist()]
    mean, cover = model.joint(context.encoder(context.reference))
    found = []
    for name in params[0]:
        for value in sorted({item[name] for item in params}, key=lambda value: (str(type(value)), value)):
            have = np.array([item[name] == value for item in params])
            if not RAREST <= have.mean() < 1:
                continue
            weights = have / have.sum() - 1 / len(have)
            deviation = math.sqrt(max(float(weights @ cover @ weights), 0.0))
            found.append(
                {
                    "choice": name,
                    "value": value,
                    "share": float(have.mean()),
                    **_interval("effect", float(weights @ mean), deviation),
                }
            )
    return found


def _interval(name: str, value: float, deviation: float) -> dict[str, float]:
    return {name: value, "low": value - DEVIATIONS * deviation, "high": value + DEVIATIONS * deviation}
