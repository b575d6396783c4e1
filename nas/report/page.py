"""The report of a finished run: one HTML file that holds all it shows, Plotly's script included, and loads nothing.

Models of other libraries that were measured stand in the run's `points.json`, where there is one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nas.core.files import write_text
from nas.core.units import show_count, show_seconds, to_ms
from nas.evaluation.evaluators import title_of
from nas.metrics import load_metric
from nas.report import plots
from nas.report.explore import component, look_into, templates
from nas.report.front import front_data
from nas.report.runs import Run, read_run

PLOT_OPTIONS = {"responsive": True, "displaylogo": False, "displayModeBar": False}


def figures(run: Run) -> dict[str, go.Figure]:
    """Every plot of the report by name; `budgets` and `effects` are there only if the run has such."""
    winner, budget = run.result["winner"], run.latency_budget_ms
    drawn = {
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
    environment = templates()
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
        explorer=component(look_into([run])),
        budget_ms=run.latency_budget_ms,
        accuracies=bool(run.trials.loc[run.trials["state"] == "evaluated", "val_accuracy"].notna().all()),
        front=front_data(run.trials).to_dict("records"),
        published=published(run).to_dict("records"),
        points=run.points,
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
