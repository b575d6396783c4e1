"""What a model fitted to the candidates of a study believes: how well it predicts, what it likes, which choices matter.

The model is the linear part of `nas.search.surrogate`, whatever sampler proposed the candidates, so that the network it
likes best is found exactly among all that fit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.study import Study

from nas.search.lattice import ArchLattice, Path
from nas.search.samplers._context import Context, History
from nas.search.surrogate import Surrogate

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
