"""What a finished search leaves in its run directory, as data: `result.json` and the tables beside it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nas import __version__
from nas.core.arch import Arch, calls_of
from nas.core.units import to_ms
from nas.evaluation.evaluators import titles_of
from nas.metrics import MB
from nas.networks.building import cost_of
from nas.report import facts, schema
from nas.search import known
from nas.search.doubts import constant, disturbed, doubts, noisy, shortened, winners_chance
from nas.search.finalists import Finalist, rank
from nas.search.fitting import lattice_of
from nas.search.resolved import Resolved
from nas.search.study import version_changes
from nas.search.trials import record_of, trials_frame

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from nas.search.context import Context


@dataclass(frozen=True)
class Figures:
    """What the winner's training reached; see `TrainResult`."""

    epochs: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    seconds: float


def result_data(
    run: Context,
    finalists: Sequence[Finalist],
    winner: Finalist,
    training: Figures,
    onnx: Mapping[str, Any] | None,
    belief: Mapping[str, Any] | None,
) -> schema.Result:
    """The content of `result.json`; latencies in ms, times of blocks in microseconds, accuracies as fractions.

    Args:
        run: with what was tried.
        finalists: the best, measured and trained again.
        winner: the one of them that was trained to the end.
        training: figures of that training.
        onnx: on how many images the winner's file was compared, and how far it was off; None where it was not.
        belief: of a model fitted to the candidates, see `nas.search.belief`; None where they are too few.
    """
    found, study = run.found, run.study
    trials = trials_frame(study, found.estimator.table.hash)
    counts = trials["state"].value_counts().to_dict()
    request, score = found.request, winner.record.score
    ranking = rank([finalist for finalist in finalists if finalist.fits], run.evaluator.trains)
    chance = winners_chance(run.data, training)
    evaluated = trials[trials["state"] == "evaluated"]
    values, accuracies = evaluated["value"].tolist(), evaluated["val_accuracy"].dropna().tolist()
    warnings = doubts(request, run.data, run.evaluator, score, values, accuracies, ranking, training)
    warnings += [*disturbed(finalists), *noisy(found.estimator.table, found.space)]
    rungs = rungs_data(titles_of(request.evaluator), study) if len(request.evaluator) > 1 else []
    warnings += constant([rung["title"] for rung in rungs], trials)
    if request.minutes is not None:
        begun = rungs[0]["scored"] if rungs else len(values)
        warnings += shortened(request, begun, finalists, run.wanted_repeats, training)
    data = {
        "schema": schema.VERSION,
        "name": request.name,
        "space": found.space.name,
        "objective": request.objective,
        "score": score,
        "warnings": warnings,
        "budgets": [
            limit.as_data() | {"used": used} for limit, used in zip(found.estimator.limits, winner.used, strict=True)
        ],
        "counts": {"proposed": len(trials)} | {state: int(counts.get(state, 0)) for state in schema.STATES},
        **({"rungs": rungs} if rungs else {}),
        "finalists": [finalist_data(finalist, found) for finalist in finalists],
        "winner": finalist_data(winner, found)
        | {
            "training": asdict(training) | {"chance": None if chance is None else chance.as_data()},
            "onnx": None if onnx is None else dict(onnx),
            "blocks": facts.estimate(winner.arch, found.estimator.table)["blocks"],
            "architecture": facts.architecture(winner.arch),
        },
        "reference": _reference(found),
        "ranking": {
            "text": ranking.text,
            "pairs_sure": ranking.pairs_sure,
            "noise_sigma": ranking.noise_sigma,
            "known": known.told(request.evaluator, request.features, request.sampler, request.prior),
        },
        "published": facts.published_beside(found.space, found.estimator.table),
        "begun_with": _begun_with(found, trials),
        "feasible": {key: found.summary[key] for key in schema.Feasible.__annotations__},
        "belief": None if belief is None else dict(belief),
        "smallest": {"predicted_ms": found.smallest[0], "arch": found.smallest[1].id},
        "provenance": _provenance(found, study),
    }
    return schema.check_result(data, "result.json as this run would write it")


def rungs_data(titles: Sequence[str], study: optuna.Study) -> list[schema.RungUse]:
    """What became of the candidates of each rung; `titles` names these."""
    records = [record for record in map(record_of, study.get_trials(deepcopy=False)) if record is not None]
    own = [record for record in records if record.state != "duplicate" and record.rungs]
    found: list[schema.RungUse] = []
    for place, title in enumerate(titles):
        here = [record.rungs[place] for record in own if len(record.rungs) > place]
        seconds = sum(rung.seconds or 0.0 for rung in here)
        found.append(
            {
                "title": title,
                "score": here[0].score if here else "",
                "scored": len(here),
                "by_chance": sum(rung.by_chance for rung in here),
                "stopped": sum(record.state == "stopped" and len(record.rungs) == place + 1 for record in own),
                "seconds": seconds,
                "seconds_each": seconds / len(here) if here else 0.0,
            }
        )
    return found


def finalist_data(finalist: Finalist, found: Resolved) -> dict[str, Any]:
    """A finalist as `result.json` holds it."""
    record, estimate = finalist.record, found.estimator.estimate(finalist.arch)
    latency, timing = estimate.latency, finalist.timing

    def ms(us: float | None) -> float | None:
        return None if us is None else to_ms(us)

    return {
        "arch": finalist.arch.id,
        "number": finalist.number,
        "predicted_ms": ms(record.predicted_us),
        "measured_ms": None if timing is None else ms(timing.us),
        "measured_spread_ms": None if timing is None else ms(timing.spread_us),
        "measured_noise": None if timing is None else timing.text,
        "measured_disturbed": None if timing is None else timing.disturbed,
        "unmeasured_percent": 100 * latency.unmeasured_us / latency.total_us,
        "memory_mb": None if estimate.memory_bytes is None else estimate.memory_bytes / MB,
        "measured_memory_mb": None if finalist.memory_bytes is None else finalist.memory_bytes / MB,
        "params": record.params,
        "macs": record.macs,
        "values": list(finalist.values),
        "val_losses": list(finalist.losses),
        "val_accuracies": list(finalist.accuracies),
        "fits": finalist.fits,
    }


def _begun_with(found: Resolved, trials: pd.DataFrame) -> dict[str, int]:
    """The trial of each published network that fits, where the sampler begins with these."""
    if (found.request.sampler, found.request.start) != ("guided", "presets"):
        return {}
    lattice, trial_of = lattice_of(found.space), dict(zip(trials["arch"][::-1], trials["number"][::-1], strict=True))
    archs = {name: lattice.arch(path).id for name, path in lattice.presets().items() if found.fits.fits(path)}
    return {name: int(trial_of[arch]) for name, arch in archs.items() if arch in trial_of}


def _reference(found: Resolved) -> dict[str, Any]:
    """The network of median latency, to see the winner beside."""
    arch: Arch = found.survey.median(found.estimator.table)
    cost = cost_of(arch)
    predicted = found.estimator.table.price(calls_of(arch)).total_us
    return {"name": "median of the space", "predicted_ms": to_ms(predicted), "params": cost.params, "macs": cost.macs}


def _provenance(found: Resolved, study: optuna.Study) -> dict[str, Any]:
    table = found.estimator.table
    header, size = table.header, found.space.input_shape
    started = min(trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start)
    packages = ("torch", "optuna", "timm", "numpy")
    return {
        "table": found.request.table,
        "table_hash": table.hash,
        "device": header.device,
        "cpu": header.cpu,
        "runtime": f"{header.runtime} {header.runtime_version}",
        "runtime_here": _runtime_here(found),
        "threads": header.threads,
        "precision": header.precision,
        "calibration": str(calibration) if (calibration := table.calibrations.get(size)) else None,
        "table_mape_percent": table.mape_percent,
        "card": None if table.card is None else str(table.card),
        "not_this_machine": found.not_this_machine,
        "dataset": found.request.dataset,
        "seed": found.request.seed,
        "versions": {"nas": __version__} | {name: importlib.metadata.version(name) for name in packages},
        "version_changes": version_changes(study),
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.time() - started.timestamp(),  # from the first trial on, interruptions included
    }


def _runtime_here(found: Resolved) -> str | None:
    """What finalists are measured with, None where they are not."""
    if found.not_this_machine:
        return None
    runtime = found.estimator.table.header.runtime
    return f"{runtime} {found.versions()[runtime]}"
