"""A finished run in optuna-dashboard: a copy of its study that speaks of figures by their names.

It is made from what the run has written, in memory, so nothing that is done in the browser reaches the run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.core.errors import InputError, RunError
from nas.core.files import scratch
from nas.evaluation.evaluators import title_of
from nas.report.front import front_data
from nas.report.runs import Run, read_run
from nas.search.study import distributions_of

STATES = {"evaluated": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "infeasible": TrialState.PRUNED}
SHOWN = ("arch", "state", "reason", "predicted_ms", "params", "macs", "val_accuracy")
FILES = ("report.html", "best.onnx", "best.json")
REMEDY = "nas dashboard needs optuna-dashboard: pip install 'millinas[dashboard]'"


def study_of(run: Run) -> optuna.Study:
    """The trials of a run with flat attributes: each figure of `trials.csv` by its name, `measured_ms` of finalists.

    A candidate over a budget or stopped at a rung counts as pruned; one proposed twice is left out.

    Raises:
        RunError: this version does not know the space of the run, so its parameters cannot be told.
    """
    space = run.space
    if space is None:
        raise RunError(f"{run.path}: this version does not know its space, {run.result['space']}, or best.json is gone")
    front = run.asked.get("objective") == "front"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=InMemoryStorage(), study_name=run.result["name"], directions=["minimize"] * (2 if front else 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([title_of(run.result["score"]), *(["predicted latency (ms)"] if front else [])])
    measured = {each["number"]: each["measured_ms"] for each in run.result["finalists"]}
    for row in run.trials.to_dict("records"):
        arch = run.archs.get(int(row["number"]))
        if row["state"] == "duplicate" or (arch is None and row["state"] in STATES):
            continue
        params = {} if arch is None else space.params_of(arch)
        study.add_trial(_trial(row, params, distributions_of(space.choices), front, measured.get(int(row["number"]))))
    for key, value in _about(run).items():
        study.set_user_attr(key, value)
    return study


def _trial(
    row: Mapping[Any, Any], params: dict[str, Any], known: dict[str, Any], front: bool, measured: float | None
) -> FrozenTrial:
    state = STATES.get(row["state"], TrialState.FAIL)
    values = [float(row["value"]), *([float(row["predicted_ms"])] if front else [])]
    attributes = {"trial": int(row["number"])} | {name: row[name] for name in SHOWN if row[name] == row[name]}
    if measured is not None:
        attributes["measured_ms"] = measured
    return create_trial(
        state=state,
        values=values if state is TrialState.COMPLETE else None,
        params={name: params[name] for name in known if name in params},
        distributions={name: known[name] for name in known if name in params},
        user_attrs=attributes,
    )


def _about(run: Run) -> dict[str, Any]:
    source, winner = run.result["provenance"], run.result["winner"]
    limits = [f"{each['asked']} (limit {each['limit']:.6g})" for each in run.result["budgets"]]
    table = {"table": source["table"], "table_hash": source["table_hash"]}
    return table | {"budgets": limits, "winner": winner["number"], "winner_arch": winner["arch"]}


def note_of(run: Run) -> str:
    """What the dashboard says of the study, in Markdown: budgets, table, winner, front."""
    about = _about(run)
    budgets = "\n".join(f"- {each}" for each in about["budgets"]) or "- none"
    lines = "\n".join(
        f"| {row['number']} | {row['predicted_ms']:.4g} | {row['value']:.4g} |"
        for row in front_data(run.trials).to_dict("records")
    )
    score = title_of(run.result["score"])
    return (
        f"Winner: trial {about['winner']}, arch {about['winner_arch']}.\n\nBudgets:\n\n{budgets}\n\nLatencies are "
        f"predicted from {about['table']} (SHA-256 {about['table_hash'][:12]}).\n\n| trial on the front | predicted "
        f"ms | {score} |\n|---|---|---|\n{lines}\n\nTrials have numbers of their own in this copy: see `trial`."
    )


def serve(run_dir: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8080) -> None:
    """Show a finished run until it is interrupted, with its report and network as artifacts.

    Raises:
        RunError: the run is not finished or cannot be shown, or the port is taken.
        InputError: optuna-dashboard is not installed.
    """
    try:
        import optuna_dashboard  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(REMEDY) from error
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    run = read_run(Path(run_dir))
    study = study_of(run)
    with scratch("dashboard") as folder:
        kept = FileSystemArtifactStore(folder)
        for name in FILES:
            if (run.path / name).is_file():
                upload_artifact(artifact_store=kept, file_path=str(run.path / name), study_or_trial=study)
        optuna_dashboard.save_note(study, note_of(run))
        try:
            optuna_dashboard.run_server(study._storage, host, port, artifact_store=kept)
        except OSError as error:
            raise RunError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
