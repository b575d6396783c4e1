"""The report of a finished run: one HTML file that holds all it shows, Plotly's script included, and loads nothing.

A run directory holds `request.yaml`, `trials.csv`, `training.csv` and `result.json`; `read_run` checks all of them
against `nas.report.schema`. Models of other libraries that were measured stand in `points.json`, where there is one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nas.core.errors import RunError, without_passwords
from nas.core.files import write_text
from nas.core.units import show_count, show_seconds, to_ms
from nas.evaluation.evaluators import title_of
from nas.metrics import load_metric
from nas.report import plots
from nas.report.front import evaluated_trials, front_data, read_trials
from nas.report.points import FILE, beside, read_points
from nas.report.schema import Result, read_result

NEEDED_FILES = ("request.yaml", "trials.csv", "training.csv", "result.json")
PLOT_OPTIONS = {"responsive": True, "displaylogo": False, "displayModeBar": False}


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its request as text, and what it found."""

    path: Path
    request: str
    result: Result
    trials: pd.DataFrame
    training: pd.DataFrame

    @property
    def latency_budget_ms(self) -> float | None:
        """The budget on the latency that the trials' `predicted_ms` speaks of, if there is one."""
        table = self.result["provenance"]["table"]
        budgets = (budget for budget in self.result["budgets"] if budget["metric"] == "latency_ms")
        return next((budget["limit"] for budget in budgets if budget["table"] in (None, table)), None)


def read_run(run_dir: Path | str) -> Run:
    """Read and check a finished run.

    Raises:
        RunError: the directory or a file is missing (naming the command that makes it), or a file's content is wrong.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise RunError(f"no run directory {path}. A search makes one: nas search REQUEST.yaml")
    lacking = [name for name in NEEDED_FILES if not (path / name).is_file()]
    if lacking:
        request = "REQUEST.yaml" if "request.yaml" in lacking else path / "request.yaml"
        raise RunError(f"the run in {path} is not finished: no {', '.join(lacking)}. Finish it: nas search {request}")
    run = Run(
        path=path,
        request=without_passwords((path / "request.yaml").read_text(encoding="utf-8", errors="backslashreplace")),
        result=read_result(path / "result.json"),
        trials=read_trials(path / "trials.csv"),
        training=_read_training(path / "training.csv"),
    )
    _check_same_study(run)
    return run


def _read_training(path: Path) -> pd.DataFrame:
    """Read the epochs; only columns that no plot needs may have gaps."""
    try:
        frame = pd.read_csv(path)
        needed = plots.training_data(frame)[["epoch", "train_loss", "val_loss", "val_accuracy_percent"]]
    except ValueError as error:  # what pandas raises on a file it cannot parse, and our own InputError
        raise RunError(f"{path}: {error}") from error
    if needed.empty:
        raise RunError(f"{path}: holds no epoch")
    for name in needed:
        if not np.isfinite(needed[name]).all():
            raise RunError(f"{path}: an epoch has no finite {name}")
    return frame


def _check_same_study(run: Run) -> None:
    """Every finalist must be an evaluated trial of the same arch."""
    evaluated = evaluated_trials(run.trials, "predicted_ms", "value")
    archs = dict(zip(evaluated["number"], evaluated["arch"], strict=True))
    for finalist in (*run.result["finalists"], run.result["winner"]):
        number, arch = finalist["number"], finalist["arch"]
        if archs.get(number) != arch:
            raise RunError(
                f"{run.path}: result.json names arch {arch} as trial {number}, but trials.csv has no such evaluated "
                f"trial. They are of different searches; make them anew: nas search {run.path / 'request.yaml'}"
            )


def figures(run: Run) -> dict[str, go.Figure]:
    """Every plot of the report by name; `budgets` and `effects` are there only if the run has such."""
    winner, budget = run.result["winner"], run.latency_budget_ms
    drawn = {
        "front": plots.plot_candidates(
            plots.candidates_data(run.trials),
            budget,
            winner["arch"],
            published=published(run),
            points=[point for point in points(run) if not point["elsewhere"]],
        ),
        "progress": plots.plot_progress(plots.progress_data(run.trials)),
        "blocks": plots.plot_blocks(plots.blocks_data(winner["blocks"])),
        "agreement": plots.plot_agreement(agreement(run), budget, winner["arch"]),
        "training": plots.plot_training(plots.training_data(run.training)),
    }
    if run.result["budgets"]:
        drawn["budgets"] = plots.plot_budgets(budgets(run))
    if belief := run.result.get("belief"):
        drawn["effects"] = plots.plot_effects(plots.effects_data(belief["effects"]), run.result["score"])
    return drawn


def published(run: Run) -> pd.DataFrame:
    """The published networks of the run's image size on its table; none in runs of earlier versions."""
    return plots.published_data(run.result.get("published", []))


def points(run: Run) -> list[dict[str, Any]]:
    """The models of other libraries in the run's `points.json`, the fastest first, each with `elsewhere`: why it does
    not compare with the run's latencies, or nothing.
    """
    path, origin = run.path / FILE, run.result["provenance"]
    known = read_points(path) if path.is_file() else []
    like = (origin["runtime"], origin["precision"], origin["threads"], origin["device"])
    found = [point | {"elsewhere": beside(point, *like)} for point in known]
    return sorted(found, key=lambda point: float(point["measured_ms"]))


def budgets(run: Run) -> pd.DataFrame:
    """Each budget's use by the winner."""
    return plots.budgets_data(run.result["budgets"], run.result["winner"], run.result["provenance"]["table"])


def agreement(run: Run) -> pd.DataFrame:
    """Predicted beside measured latency of the finalists, with the intervals that the trials carry."""
    return plots.agreement_data(run.result["finalists"], run.trials)


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a finished run's directory, at once or not at all, and return its path.

    Raises:
        RunError: as `read_run` does, or the report cannot be written.
    """
    run = read_run(run_dir)
    target = run.path / "report.html"
    write_text(target, render(run))
    return target


def render(run: Run) -> str:
    """The report as HTML. The template escapes every text; only Plotly's script and figures are taken as they are."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=lambda ms: "not measured" if ms is None else plots.show_ms(ms),
        us=lambda us: plots.show_ms(to_ms(us)),
        count=show_count,
        metric=lambda name: load_metric(name).title,
        title=title_of,
        seconds=show_seconds,
        percent=_percent,
        mean=_mean,
        repeats=_repeats,
    )
    return environment.get_template("report.html").render(
        run=run,
        result=run.result,
        plots={name: _plot_html(name, figure) for name, figure in figures(run).items()},
        plotly=Markup(get_plotlyjs()),
        budget_ms=run.latency_budget_ms,
        accuracies=bool(run.trials.loc[run.trials["state"] == "evaluated", "val_accuracy"].notna().all()),
        front=front_data(run.trials).to_dict("records"),
        published=published(run).to_dict("records"),
        points=points(run),
        agreement=agreement(run).to_dict("records"),
        interval=_interval(run),
        binding=_binding(run),
    )


def _plot_html(name: str, figure: go.Figure) -> Markup:
    html = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", config=PLOT_OPTIONS)
    return Markup(html)


def _interval(run: Run) -> tuple[float, float] | None:
    """Low and high end of the winner's predicted latency in ms, where its trial carries them."""
    row = run.trials[run.trials["number"] == run.result["winner"]["number"]].iloc[0]
    low, high = row["predicted_low_ms"], row["predicted_high_ms"]
    return None if pd.isna(low) or pd.isna(high) else (float(low), float(high))


def _binding(run: Run) -> dict[Hashable, Any] | None:
    """The row of the budget that the winner fills most."""
    data = budgets(run)
    return None if data.empty else data[data["binds"]].to_dict("records")[0]


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def _repeats(values: Sequence[float]) -> Sequence[float]:
    """Without the training that chose the finalists, which chance has favoured; that where it is the only one."""
    return values[1:] or values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
