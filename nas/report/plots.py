"""Plots of a finished run: every plot is a table first (`*_data`, tested by value), then a Plotly figure (`plot_*`).

All figures share one template: no title (the page around them has headings), units on the axes, the legend above, the
colours of Okabe and Ito, which stay apart in every common form of colour blindness, and symbols that differ besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nas.core.errors import InputError
from nas.core.units import US_PER_MS, show_count, to_ms
from nas.evaluation.evaluators import title_of
from nas.metrics import load_metric, names
from nas.report.front import HIGHER_IS_BETTER, evaluated_trials, front_data
from nas.report.schema import STATES

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#1f2933", "#8a94a0"
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, GREY)
STATE_STYLES = {
    "evaluated": {"color": BLUE, "symbol": "circle"},
    "stopped": {"color": SKY, "symbol": "circle-open"},
    "infeasible": {"color": RED, "symbol": "x-thin"},
    "duplicate": {"color": GREY, "symbol": "line-ns"},
    "failed": {"color": BLACK, "symbol": "triangle-up"},
}
SHORTLIST_STYLES: dict[str, dict[str, Any]] = {
    "front": {"color": BLUE, "symbol": "circle"},
    "dominated": {"color": GREY, "symbol": "circle-open"},
    "over budget": {"color": RED, "symbol": "x-thin", "line": {"color": RED, "width": 1.5}},
    "not known": {"color": BLACK, "symbol": "triangle-up-open"},
}
WINNER_STYLE = {"color": GREEN, "symbol": "star", "size": 17, "line": {"color": "white", "width": 1}}
BEST_LINE = {"color": ORANGE, "width": 2}
BUDGET_LINE = {"color": RED, "width": 2, "dash": "dash"}
AXIS = {
    **{"automargin": True, "showline": True, "ticks": "outside", "zeroline": False, "title": {"standoff": 8}},
    **{"gridcolor": "#e7ebef", "linecolor": "#b4bcc5", "tickcolor": "#b4bcc5"},
}
ERROR_BAR = {"type": "data", "thickness": 1.5, "width": 5}
LEGEND = {"orientation": "h", "traceorder": "normal", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif", "size": 14, "color": BLACK},
        "colorway": list(COLORS),
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 13}},
        "legend": LEGEND,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)
AXIS_TITLES = {
    "predicted_ms": "predicted latency (ms)",
    "params": "parameters",
    "macs": "multiply-adds (MACs)",
    "val_loss": title_of("val_loss"),
    "val_accuracy": "validation accuracy (fraction)",
}
BAND_PERCENT = 5.0
TICK = 42  # letters of a line beside an axis


def candidates_data(trials: pd.DataFrame, cost: str = "predicted_ms", score: str = "value") -> pd.DataFrame:
    """Evaluated, stopped and infeasible trials with their cost and score; `on_front` marks the non-dominated ones.

    Only an evaluated trial has a score.
    """
    evaluated_trials(trials, cost, score)
    rows = (
        trials[trials["state"].isin(["evaluated", "stopped", "infeasible"])]
        .sort_values("number")
        .reset_index(drop=True)
    )
    columns = dict.fromkeys(
        ["number", "arch", "state", "reason", cost, score, "score", "predicted_ms", "params", "macs"]
    )
    front = front_data(trials, cost, score)["number"]
    return rows[list(columns)].assign(on_front=rows["number"].isin(front))


def plot_candidates(
    data: pd.DataFrame,
    budget: float | None = None,
    winner: str | None = None,
    cost: str = "predicted_ms",
    score: str = "value",
    published: pd.DataFrame | None = None,
    points: Iterable[Mapping[str, Any]] = (),
) -> go.Figure:
    """Cost against score, with the front and the budget (in the unit of `cost`); in a strip below, what exceeded it.

    `published` (see `published_data`) stands in grey on an axis of its own: its accuracies are of other images.
    `points` (see `nas.report.points`) are dotted lines at their measured latency, since their score is not known.
    """
    figure = _figure_with_strip(data, 420)
    evaluated = data[data["state"] == "evaluated"]
    front = data[data["on_front"]].sort_values(cost)
    _markers(figure, evaluated[~evaluated["on_front"]], cost, score, "evaluated", STATE_STYLES["evaluated"])
    figure.add_scatter(x=front[cost], y=front[score], name="front", mode="lines+markers", marker_size=10)
    figure.data[-1].update(line={**BEST_LINE, "shape": "hv"}, hovertext=_hover(front), hoverinfo="text")
    if winner is not None:
        _markers(figure, evaluated[evaluated["arch"] == winner], cost, score, "winner", WINNER_STYLE)
    _strip(figure, data, cost)
    if published is not None:
        _add_published(figure, published, cost, np.append(data[cost], [] if budget is None else budget), score)
    if budget is not None:
        text = f"budget {_amount('latency_ms' if cost == 'predicted_ms' else cost, budget)}"
        figure.add_shape(type="line", x0=budget, x1=budget, y0=0, y1=1, yref="paper", line=BUDGET_LINE)
        figure.layout.shapes[-1].update(name=text, showlegend=True)
    for point in points if cost == "predicted_ms" else ():
        ms = point["measured_ms"]
        figure.add_shape(type="line", x0=ms, x1=ms, y0=0, y1=1, yref="paper", line={"color": GREY, "dash": "dot"})
        figure.layout.shapes[-1].update(name=f"{escape(point['name'])}, measured {show_ms(ms)}", showlegend=True)
    figure.update_yaxes(
        title_text=_title_of_values(data) if score == "value" else AXIS_TITLES.get(score, score), row=1, col=1
    )
    _spread(figure, data[cost])
    return _title_last_x(figure, AXIS_TITLES.get(cost, cost))


def published_data(networks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Published networks of a result, with `top1_percent`."""
    columns = ["name", "top1", "source", "recipe", "predicted_ms", "low_ms", "high_ms", "params", "macs"]
    data = _frame(networks, "published network", columns)
    return data.assign(top1_percent=100 * data["top1"].astype(float))


def _add_published(
    figure: go.Figure, published: pd.DataFrame, cost: str, costs: np.ndarray, score: str, room: float = 1.25
) -> None:
    """Published networks on a right axis, better in the direction of the left one; those far from `costs` are counted,
    since the others would be squeezed.
    """
    near = published[published[cost].between(np.nanmin(costs) / room, np.nanmax(costs) * room)]
    if near.empty:
        return
    more = len(published) - len(near)
    name = "published, by ImageNet top-1" + (f" ({more} more are out of view)" if more else "")
    figure.add_scatter(x=near[cost], y=near["top1_percent"], name=name, mode="markers", xaxis="x", yaxis="y9")
    figure.data[-1].update(hovertext=_about_published(near), hoverinfo="text")
    figure.data[-1].update(marker={"color": GREY, "symbol": "circle-open", "size": 8})
    direction = None if score in HIGHER_IS_BETTER else "reversed"
    figure.layout.yaxis9 = {
        **AXIS,
        **{"overlaying": "y", "side": "right", "anchor": "x", "showgrid": False, "autorange": direction or True},
        "title": {"text": "published ImageNet top-1 (%)", "font": {"color": GREY}, "standoff": 8},
    }


def _about_published(rows: pd.DataFrame) -> list[str]:
    return [
        f"<b>{escape(row['name'])}</b><br>{row['top1_percent']:.1f} % of ImageNet ({escape(row['source'])})<br>"
        f"{_said_latency(row)}<br>{show_count(row['params'])} parameters<br>"
        f"{show_count(row['macs'])} MACs" + (f"<br>{escape(row['recipe'])}" if row["recipe"] else "")
        for row in rows.to_dict("records")
    ]


def _said_latency(row: Mapping[Any, Any]) -> str:
    measured = row.get("measured_ms")
    if measured is None or measured != measured:
        return f"predicted {show_ms(row['predicted_ms'])}"
    return f"measured {show_ms(measured)}"


def shortlist_data(networks: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of `nas.shortlist` that have both an accuracy and a latency, with `top1_percent`."""
    data = networks if isinstance(networks, pd.DataFrame) else pd.DataFrame([dict(row) for row in networks])
    drawn = data[data["top1"].notna() & (data["predicted_ms"].notna() | data["measured_ms"].notna())]
    drawn = drawn.reset_index(drop=True)
    drawn["latency_ms"] = drawn["measured_ms"].astype(float).fillna(drawn["predicted_ms"].astype(float))
    return drawn.assign(top1_percent=100 * drawn["top1"].astype(float))


def plot_shortlist(data: pd.DataFrame) -> go.Figure:
    """Published accuracy over predicted latency with its 90 % interval, and the front; side by side for each table."""
    tables = list(dict.fromkeys(data["table"]))
    titles = [escape(str(name)) for name in tables] if len(tables) > 1 else None
    figure = make_subplots(rows=1, cols=max(1, len(tables)), shared_yaxes=True, subplot_titles=titles)
    figure.update_layout(template=TEMPLATE, height=520, margin_t=60, legend_y=1.08)
    for column, table in enumerate(tables, start=1):
        rows = data[data["table"] == table]
        for mark, style in SHORTLIST_STYLES.items():
            _published(figure, rows[rows["mark"] == mark].sort_values("latency_ms"), mark, style, column)
    title = AXIS_TITLES["predicted_ms"]
    if data["measured_ms"].notna().any():
        title += "; of other models (squares) measured"
    figure.update_xaxes(title_text=title, matches="x")
    figure.update_yaxes(title_text="published ImageNet top-1 (%)", col=1)
    if len(data):
        _spread(figure, data["latency_ms"])
    return figure


def _published(figure: go.Figure, rows: pd.DataFrame, mark: str, style: Mapping[str, Any], column: int) -> None:
    """Published networks of one mark."""
    figure.add_scatter(x=rows["latency_ms"], y=rows["top1_percent"], name=mark, row=1, col=column)
    if rows["measured_ms"].notna().any():
        usual = style.get("symbol", "circle")
        style = {**style, "symbol": ["square" if each == each else usual for each in rows["measured_ms"].astype(float)]}
    figure.data[-1].update(
        mode="markers", marker={"size": 9, **style}, hovertext=_about_published(rows), hoverinfo="text"
    )
    figure.data[-1].update(legendgroup=mark, showlegend=column == 1)
    figure.data[-1].error_x = {
        "array": rows["high_ms"].astype(float) - rows["predicted_ms"].astype(float),
        "arrayminus": rows["predicted_ms"].astype(float) - rows["low_ms"].astype(float),
        "symmetric": False,
        "color": style["color"],
        **ERROR_BAR,
    }
    if mark == "front":
        figure.data[-1].update(mode="lines+markers+text", line={**BEST_LINE, "shape": "hv"}, text=rows["name"])
        figure.data[-1].update(textposition="top left", textfont={"size": 10})


def progress_data(trials: pd.DataFrame) -> pd.DataFrame:
    """All trials in their order, with the lowest value reached so far (missing until one is evaluated)."""
    evaluated_trials(trials, "value")
    rows = trials.sort_values("number").reset_index(drop=True)
    value = rows["value"].where(rows["state"] == "evaluated")
    columns = ["number", "arch", "state", "reason", "score", "predicted_ms", "params", "macs", "seconds"]
    return rows[columns].assign(value=value, best_value=value.cummin().ffill())


def plot_progress(data: pd.DataFrame) -> go.Figure:
    """The value of each trial and the best so far; in a strip below, the trials that were not evaluated."""
    figure = _figure_with_strip(data, 420)
    _markers(figure, data[data["state"] == "evaluated"], "number", "value", "evaluated", STATE_STYLES["evaluated"])
    best = data.dropna(subset="best_value")
    figure.add_scatter(x=best["number"], y=best["best_value"], name="best so far", mode="lines", hoverinfo="skip")
    figure.data[-1].update(line={**BEST_LINE, "shape": "hv"})
    _strip(figure, data, "number")
    figure.update_yaxes(title_text=_title_of_values(data), row=1, col=1)
    return _title_last_x(figure, "trial")


def blocks_data(blocks: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """The blocks of one network in order, each with where its time begins within its stage.

    Args:
        blocks: mappings with `stage`, `block` (its kind, then its settings), `inputs` (shapes), `us`, `share`.
    """
    data = _frame(blocks, "block", ["stage", "block", "inputs", "us", "share"])
    by_stage = data.groupby("stage", sort=False)["us"]
    return data.assign(
        kind=data["block"].str.split().str[0],
        start_us=by_stage.cumsum() - data["us"],
        stage_us=by_stage.transform("sum"),
    )


def plot_blocks(data: pd.DataFrame) -> go.Figure:
    """One bar a stage, stacked of its blocks in their order; colour tells the kind of block."""
    stages = data.drop_duplicates("stage")
    names = {stage: f"stage {stage}" if stage.isdigit() else escape(stage) for stage in stages["stage"]}
    figure = _figure(90 + 44 * len(stages))
    for kind, rows in data.groupby("kind", sort=False):
        figure.add_bar(
            x=rows["us"] / US_PER_MS,
            base=rows["start_us"] / US_PER_MS,
            y=rows["stage"].map(names),
            name=escape(str(kind)),
            orientation="h",
            marker={"line": {"color": "white", "width": 1.5}},
            hovertext=[
                f"<b>{escape(row['block'])}</b><br>{names[row['stage']]}, inputs {escape(row['inputs'])}"
                f"<br>{show_ms(to_ms(row['us']))}, {row['share']:.1%} of the network"
                for row in rows.to_dict("records")
            ],
            hoverinfo="text",
        )
    figure.add_scatter(
        x=stages["stage_us"] / US_PER_MS,
        y=stages["stage"].map(names),
        text=[f" {show_ms(to_ms(us))}" for us in stages["stage_us"]],
        mode="text",
        textposition="middle right",
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.update_layout(barmode="overlay", bargap=0.3)
    figure.update_xaxes(title_text="predicted latency (ms)", range=[0, stages["stage_us"].max() / US_PER_MS * 1.3])
    return figure.update_yaxes(categoryorder="array", categoryarray=list(names.values())[::-1], showgrid=False)


def agreement_data(finalists: Iterable[Mapping[str, object]], trials: pd.DataFrame | None = None) -> pd.DataFrame:
    """Predicted and measured latency of each finalist; `error_percent` is positive where the prediction is too high.

    A finalist that could not be measured has no `measured_ms` and no error. With `trials`, the intervals of the
    predictions (`predicted_low_ms`, `predicted_high_ms`) are added where the trials have them.
    """
    data = _frame(finalists, "finalist", ["arch", "number", "predicted_ms", "measured_ms", "params"])
    data = data.assign(**{name: data.get(name, np.nan) for name in ("measured_spread_ms", "macs")})
    for name in ("measured_ms", "measured_spread_ms"):
        data[name] = data[name].astype(float)
    interval = ["predicted_low_ms", "predicted_high_ms"]
    if trials is None:
        data[interval] = np.nan
    else:
        data = data.merge(trials[["number", *interval]].astype({"number": "int64"}), on="number", how="left")
    columns = ["arch", "number", "predicted_ms", *interval, "measured_ms", "measured_spread_ms", "params", "macs"]
    return data[columns].assign(error_percent=100 * (data["predicted_ms"] / data["measured_ms"] - 1))


def plot_agreement(data: pd.DataFrame, budget_ms: float | None = None, winner: str | None = None) -> go.Figure:
    """Predicted against measured latency, with the line where they agree and a band of 5 % around it."""
    data = data.dropna(subset="measured_ms")
    figure = _figure(420)
    if data.empty:
        return figure.add_annotation(text="no finalist was measured", showarrow=False, font_size=14)
    shown = data[["predicted_ms", "predicted_low_ms", "predicted_high_ms", "measured_ms"]].to_numpy(dtype=float)
    near = [budget_ms] if budget_ms is not None and budget_ms < 1.25 * np.nanmax(shown) else []  # else points squeeze
    ends = _ends(np.append(shown, near))
    for sign, fill in ((-1, None), (1, "tonexty")):
        y = ends * (1 + sign * BAND_PERCENT / 100)
        figure.add_scatter(x=ends, y=y, mode="lines", line={"width": 0}, fill=fill, fillcolor="rgba(0, 158, 115, 0.15)")
        figure.data[-1].update(hoverinfo="skip", name=f"within {BAND_PERCENT:g} %", showlegend=fill is not None)
    figure.add_scatter(x=ends, y=ends, mode="lines", line_color=GREEN, name="equal", hoverinfo="skip")
    for budget in near:
        figure.add_scatter(x=ends, y=[budget, budget], mode="lines", name=f"budget {show_ms(budget)}")
        figure.data[-1].update(line=BUDGET_LINE, hoverinfo="skip")
    won = data["arch"] == winner
    for name, rows, style in (
        ("finalists", data[~won], {**STATE_STYLES["evaluated"], "size": 11}),
        ("winner", data[won], WINNER_STYLE),
    ):
        _markers(figure, rows, "predicted_ms", "measured_ms", name, style)
        above = rows["predicted_high_ms"] - rows["predicted_ms"]
        below = rows["predicted_ms"] - rows["predicted_low_ms"]
        figure.data[-1].error_x = {"array": above, "arrayminus": below, "symmetric": False, **ERROR_BAR}
        figure.data[-1].error_y = {"array": rows["measured_spread_ms"], **ERROR_BAR}
    figure.update_xaxes(title_text=AXIS_TITLES["predicted_ms"], range=list(ends))
    return figure.update_yaxes(title_text="measured latency (ms)", range=list(ends))


def budgets_data(
    budgets: Iterable[Mapping[str, Any]], winner: Mapping[str, Any], table: str | None = None
) -> pd.DataFrame:
    """How much of each budget the winner uses, in percent; latency both predicted and measured. `binds` is the fullest.

    `table` is the one that the winner's `predicted_ms` speaks of. A budget on the latency of another table must
    carry the winner's latency there as `used` (else `InputError`).
    """
    rows: list[dict[str, object]] = []
    for position, budget in enumerate(budgets):
        load_metric(budget["metric"])
        for kind, used in _uses(budget, winner, table, f"budgets[{position}]"):
            rows.append({"kind": kind, "used": used, **{name: budget[name] for name in ("metric", "limit", "table")}})
    data = pd.DataFrame(rows, columns=["metric", "table", "limit", "kind", "used"])
    data["percent"] = 100 * data["used"] / data["limit"]
    return data.assign(binds=data["percent"] == data["percent"].max())


def plot_budgets(data: pd.DataFrame) -> go.Figure:
    """One bar for each budget's use by the winner, and the line at 100 % that no bar may cross."""
    data = data.assign(label=_budget_labels(data))
    figure = _figure(90 + sum(16 + 16 * (label.count("<br>") + 1) for label in data["label"]))
    for kind, color in (("predicted", BLUE), ("measured", ORANGE), ("counted", SKY)):
        rows = data[data["kind"] == kind]
        figure.add_bar(x=rows["percent"], y=rows["label"], name=kind, orientation="h", marker_color=color)
        figure.data[-1].text = [f"{percent:.1f} %" for percent in rows["percent"]]
    figure.update_traces(textposition="auto", textangle=0, cliponaxis=False, hoverinfo="text")
    figure.add_vline(x=100, line=BUDGET_LINE)
    figure.update_layout(barmode="overlay", bargap=0.3, showlegend=False)
    figure.update_xaxes(title_text="use of the budget (%)", range=[0, max(112.0, data["percent"].max() * 1.12)])
    return figure.update_yaxes(categoryorder="array", categoryarray=data["label"][::-1], showgrid=False)


def effects_data(effects: Iterable[Mapping[str, Any]], most: int = 24) -> pd.DataFrame:
    """The choices that matter most by a fitted model, the largest effect first, each with its interval.

    Args:
        effects: mappings with `choice`, `value`, `share`, `effect`, `low`, `high`.
        most: how many are kept.
    """
    data = _frame(effects, "effect", ["choice", "value", "share", "effect", "low", "high"])
    order = data["effect"].abs().sort_values(ascending=False, kind="stable").index[:most]
    data = data.loc[order].reset_index(drop=True)
    labels = [f"{escape(str(row['choice']))} = {escape(str(row['value']))}" for row in data.to_dict("records")]
    return data.assign(label=labels, is_sure=(data["low"] > 0) | (data["high"] < 0))


def plot_effects(data: pd.DataFrame, score: str = "val_loss") -> go.Figure:
    """One line a choice: its expected effect on the score and the 95 % interval; grey where that holds zero."""
    figure = _figure(110 + 22 * len(data))
    for sure, name, color in ((True, "effect", BLUE), (False, "interval holds zero", GREY)):
        rows = data[data["is_sure"] == sure]
        if rows.empty:
            continue
        text = [
            f"{row['label']}<br>{row['effect']:+.3g} ({row['low']:+.3g} to {row['high']:+.3g})<br>"
            f"in {100 * row['share']:.0f} % of what fits"
            for row in rows.to_dict("records")
        ]
        figure.add_scatter(x=rows["effect"], y=rows["label"], mode="markers", name=name, marker={"size": 9})
        figure.data[-1].update(marker_color=color, hovertext=text, hoverinfo="text")
        figure.data[-1].error_x = {
            "array": rows["high"] - rows["effect"],
            "arrayminus": rows["effect"] - rows["low"],
            "symmetric": False,
            **ERROR_BAR,
        }
    figure.add_vline(x=0, line={"color": BLACK, "width": 1})
    figure.update_xaxes(title_text=f"expected effect on {AXIS_TITLES.get(score, score)} (lower is better)")
    return figure.update_yaxes(categoryorder="array", categoryarray=data["label"][::-1])


def training_data(training: pd.DataFrame) -> pd.DataFrame:
    """The epochs of a training run in their order, accuracy in percent; `lr` stays missing where it is not known."""
    lacking = [name for name in ("epoch", "train_loss", "val_loss", "val_accuracy") if name not in training]
    if lacking:
        raise InputError(f"the training history lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}")
    data: pd.DataFrame = training[["epoch", "train_loss", "val_loss"]].apply(pd.to_numeric)
    data["val_accuracy_percent"] = 100 * pd.to_numeric(training["val_accuracy"])
    data["lr"] = pd.to_numeric(training["lr"]) if "lr" in training else np.nan
    return data.sort_values("epoch").reset_index(drop=True)


def plot_training(data: pd.DataFrame) -> go.Figure:
    """Loss above, validation accuracy below, over epochs."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.5])
    figure.update_layout(template=TEMPLATE, height=460)
    rates = ["" if np.isnan(lr) else f"<br>learning rate {lr:.3g}" for lr in data["lr"]]
    for name, label, row, color in (
        ("train_loss", "training loss", 1, SKY),
        ("val_loss", "validation loss", 1, BLUE),
        ("val_accuracy_percent", "validation accuracy", 2, GREEN),
    ):
        unit = " %" if row == 2 else ""
        text = [
            f"epoch {e}<br>{label} {v:.4g}{unit}{lr}" for e, v, lr in zip(data["epoch"], data[name], rates, strict=True)
        ]
        figure.add_scatter(x=data["epoch"], y=data[name], name=label, hovertext=text, hoverinfo="text", row=row, col=1)
        figure.data[-1].update(line={"color": color, "width": 2, "dash": "dot" if name == "train_loss" else "solid"})
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="accuracy (%)", row=2, col=1)
    return _title_last_x(figure, "epoch")


def ranked_data(networks: Iterable[Mapping[str, Any]], scores: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Networks whose accuracy is known, a row for each score of each: `arch`, `set`, `macs`, `accuracy`, `value`.

    Args:
        networks: mappings with `arch`, `set`, `macs` and `accuracy`, a fraction.
        scores: values of each score in the same order; NaN where a network has none, which leaves it out.
    """
    data = _frame(networks, "network", ["arch", "set", "macs", "accuracy"])
    rows = [data.assign(score=name, value=np.asarray(values, float)) for name, values in scores.items()]
    return pd.concat(rows, ignore_index=True).dropna(subset="value").reset_index(drop=True)


def plot_ranked(data: pd.DataFrame) -> go.Figure:
    """Accuracy against each score, with the band of like MACs in another colour."""
    names = list(dict.fromkeys(data["score"]))
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03)
    figure.update_layout(template=TEMPLATE, height=360)
    for column, name in enumerate(names, 1):
        for part, color, symbol in (("broad", GREY, "circle-open"), ("band", BLUE, "circle")):
            rows = data[(data["score"] == name) & (data["set"] == part)]
            text = [
                f"arch {escape(str(row['arch']))}<br>{show_count(row['macs'])} MACs<br>{row['accuracy']:.2%}"
                for row in rows.to_dict("records")
            ]
            figure.add_scatter(x=rows["value"], y=100 * rows["accuracy"], mode="markers", name=part, row=1, col=column)
            figure.data[-1].update(marker={"color": color, "symbol": symbol, "size": 8}, showlegend=column == 1)
            figure.data[-1].update(hovertext=text, hoverinfo="text", legendgroup=part)
        figure.update_xaxes(title_text=escape(name), row=1, col=column)
    return figure.update_yaxes(title_text="test accuracy (%)", row=1, col=1)


def taus_data(scores: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Kendall's tau of scores over all networks and in the band, each with its interval; one row for each of both.

    Args:
        scores: as `nas judge --json` has them in `scores` or `predictors`; the latter have no name, but what they learn
            from and the number of `labels`. Those without a figure are left out.
    """
    rows = []
    for each in scores:
        of = f" of {', '.join(each['of'])}" if each.get("of") else ""
        name = each["name"] + of if "name" in each else each["from"] + of
        for part in ("", "_band"):
            value, low, high = (each[f"kendall{key}{part}"] for key in ("", "_low", "_high"))
            if value is not None:
                found = {"name": name, "part": "band" if part else "all", "tau": value, "low": low, "high": high}
                rows.append(found | {"labels": each.get("labels")})
    return pd.DataFrame(rows, columns=["name", "part", "labels", "tau", "low", "high"])


def plot_taus(data: pd.DataFrame, ceiling: Mapping[str, float | None]) -> go.Figure:
    """A line for each score with its tau and interval, over all and in the band, and what a perfect score reaches.

    Args:
        data: see `taus_data`.
        ceiling: as `nas judge --json` has it.
    """
    names = list(dict.fromkeys(data["name"]))
    figure = _figure(120 + 34 * len(names))
    for part, color, shift in (("all", GREY, 0.14), ("band", BLUE, -0.14)):
        rows = data[data["part"] == part]
        figure.add_scatter(
            x=rows["tau"], y=[names.index(name) + shift for name in rows["name"]], mode="markers", name=part
        )
        figure.data[-1].update(marker={"color": color, "size": 9}, hoverinfo="x+name")
        figure.data[-1].error_x = _interval(rows)
        most = ceiling.get("kendall" if part == "all" else "kendall_band")
        if most is not None:
            figure.add_vline(x=most, line={"color": color, "dash": "dot", "width": 2})
    figure.add_vline(x=0, line={"color": BLACK, "width": 1})
    figure.update_xaxes(title_text="Kendall's tau with test accuracy (dotted: a perfect score)")
    figure.update_xaxes(title_standoff=8, title_font={"size": 13})
    ticks = ["<br>".join(map(escape, wrap(name, TICK))) for name in names]
    return figure.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, range=[len(names) - 0.5, -0.5])


def plot_learned(data: pd.DataFrame, ceiling: Mapping[str, float | None]) -> go.Figure:
    """Tau of the model of `guided` against how many trainings it has learned from, over all and in the band.

    Args:
        data: see `taus_data`, of `predictors`.
        ceiling: as `nas judge --json` has it.
    """
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    figure.update_layout(template=TEMPLATE, height=420)
    colors = dict(zip(dict.fromkeys(data["name"]), COLORS * 4, strict=False))
    for column, part in enumerate(("all", "band"), 1):
        for name, rows in data[data["part"] == part].groupby("name", sort=False):
            figure.add_scatter(x=rows["labels"], y=rows["tau"], name=escape(str(name)), row=1, col=column)
            figure.data[-1].update(line_color=colors[name], mode="lines+markers", error_y=_interval(rows))
            figure.data[-1].update(showlegend=column == 1, legendgroup=str(name))
        most = ceiling.get("kendall" if part == "all" else "kendall_band")
        if most is not None:
            figure.add_hline(y=most, line={"color": BLACK, "dash": "dot", "width": 2}, row=1, col=column)
        figure.update_xaxes(title_text=f"trainings learned from; {part}", row=1, col=column)
    return figure.update_yaxes(title_text="Kendall's tau", row=1, col=1)


def _interval(rows: pd.DataFrame) -> dict[str, Any]:
    ends = {"array": rows["high"] - rows["tau"], "arrayminus": rows["tau"] - rows["low"]}
    return {**ends, "symmetric": False, **ERROR_BAR}


def reached_data(searches: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """What searches have reached after how long: the mean over seeds of each method, at the moments of all its seeds.

    Args:
        searches: mappings with `method`, `seed`, `seconds` (after each training, rising) and `accuracy` (a fraction, of
            what the search would choose then).

    Returns:
        Rows with `method`, `seconds`, `accuracy`, and the least and most of the seeds as `low` and `high`; from when
        every seed has a network to when the first one ends.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for each in searches:
        by_method.setdefault(each["method"], []).append(each)
    rows = []
    for method, runs in by_method.items():
        begun, ended = max(run["seconds"][0] for run in runs), min(run["seconds"][-1] for run in runs)
        moments = sorted({at for run in runs for at in run["seconds"] if begun <= at <= ended} | {begun})
        for at in moments:
            now = [run["accuracy"][int(np.searchsorted(run["seconds"], at, side="right")) - 1] for run in runs]
            found = {"method": method, "seconds": at, "accuracy": float(np.mean(now))}
            rows.append(found | {"low": min(now), "high": max(now)})
    return pd.DataFrame(rows, columns=["method", "seconds", "accuracy", "low", "high"])


def plot_reached(data: pd.DataFrame) -> go.Figure:
    """The accuracy that searches have reached on average, against minutes on one core."""
    figure = _figure(420)
    for method, rows in data.groupby("method", sort=False):
        figure.add_scatter(x=rows["seconds"] / 60, y=100 * rows["accuracy"], name=escape(str(method)), mode="lines")
        figure.data[-1].update(line={"shape": "hv", "width": 2})
    figure.update_xaxes(title_text="minutes on one core, scores and sampler included")
    return figure.update_yaxes(title_text="test accuracy of the network chosen (%)")


def _figure(height: int) -> go.Figure:
    return go.Figure(layout={"template": TEMPLATE, "height": height})


def _figure_with_strip(data: pd.DataFrame, height: int) -> go.Figure:
    """A plot above; below it, on the same x axis, one line for each state of trials that have no score."""
    states = _unscored(data)
    if not states:
        return make_subplots(rows=1, cols=1).update_layout(template=TEMPLATE, height=height)
    strip = 24 * len(states)
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.03, row_heights=[height - 60, strip]
    ).update_layout(template=TEMPLATE, height=height + strip)
    figure.update_yaxes(
        categoryorder="array", categoryarray=states[::-1], range=[-0.6, len(states) - 0.4], row=2, col=1
    )
    return figure


def _unscored(data: pd.DataFrame) -> list[str]:
    """The states other than `evaluated` that occur, in their usual order."""
    return [state for state in STATES[1:] if (data["state"] == state).any()]


def _strip(figure: go.Figure, data: pd.DataFrame, x: str) -> None:
    """Fill the lines below the plot, one marker a trial."""
    for state in _unscored(data):
        rows = data[data["state"] == state]
        _markers(figure, rows.assign(line=state), x, "line", state, STATE_STYLES[state], row=2)
        figure.data[-1].update(showlegend=False)


def _markers(
    figure: go.Figure, rows: pd.DataFrame, x: str, y: str, name: str, style: Mapping[str, Any], row: int | None = None
) -> None:
    """Add one marker for each row, telling of its trial on hover."""
    thin = {"line": {"color": style["color"], "width": 1.5}} if style["symbol"] in ("x-thin", "line-ns") else {}
    figure.add_scatter(
        x=rows[x],
        y=rows[y],
        mode="markers",
        name=name,
        marker={"size": 8, **thin, **style},
        hovertext=_hover(rows),
        hoverinfo="text",
        **({} if row is None else {"row": row, "col": 1}),
    )


def _title_of_values(data: pd.DataFrame) -> str:
    """What the values of trials are, in words."""
    names = data.loc[data["state"] == "evaluated", "score"]
    return title_of(str(names.iloc[0])) if len(names) else "value"


def _hover(rows: pd.DataFrame) -> list[str]:
    """A few lines about each trial, of the columns that it has."""
    shown: dict[str, Callable[[Any], str]] = {
        "predicted_ms": lambda ms: f"predicted {show_ms(ms)}",
        "measured_ms": lambda ms: f"measured {show_ms(ms)}",
        "error_percent": lambda error: f"prediction off by {error:+.1f} %",
        "value": escape,
        "params": lambda count: f"{show_count(count)} parameters",
        "macs": lambda count: f"{show_count(count)} MACs",
        "reason": escape,
    }
    texts = []
    for row in rows.to_dict("records"):
        known = {name: value for name, value in row.items() if not pd.isna(value) and value != ""}
        if "value" in known and known.get("score"):
            known["value"] = f"{title_of(known['score'])} {known['value']:.4g}"
        lines = [show(known[name]) for name, show in shown.items() if name in known]
        texts.append("<br>".join([f"<b>trial {row['number']}</b>, arch {escape(row['arch'])}", *lines]))
    return texts


def _frame(rows: Iterable[Mapping[str, object]], what: str, columns: list[str]) -> pd.DataFrame:
    """Plain mappings as a frame; each must have all `columns`."""
    listed = [dict(row) for row in rows]
    for position, row in enumerate(listed):
        for name in columns:
            if name not in row:
                raise InputError(f"{what} {position} lacks {name!r}")
    extra = [name for row in listed for name in row if name not in columns]
    return pd.DataFrame(listed, columns=[*columns, *dict.fromkeys(extra)])


def _ends(values: np.ndarray) -> np.ndarray:
    """Where both axes begin and end so that every value is inside, with some room."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.08 * (high - low) + 0.02 * high
    return np.array([max(0.0, low - room), high + room])


def _uses(
    budget: Mapping[str, Any], winner: Mapping[str, Any], table: str | None, where: str
) -> list[tuple[str, float]]:
    """The winner's figures that a budget limits, each with how it is known."""
    counted = not load_metric(budget["metric"]).of_table
    if budget["metric"] in ("params", "macs"):
        return [("counted", winner[budget["metric"]])]
    if budget["metric"] == "latency_ms" and budget["table"] in (None, table):
        measured = [] if winner["measured_ms"] is None else [("measured", winner["measured_ms"])]
        return [("predicted", winner["predicted_ms"]), *measured]
    if budget.get("used") is None:
        raise InputError(
            f"{where}.used: a budget on {budget['table']}, not on the latency by {table}, needs what the winner takes"
        )
    return [("counted" if counted else "predicted", budget["used"])]


def _budget_labels(data: pd.DataFrame) -> list[str]:
    """What each row limits, how it is known, use and limit, and the table where several tables have a budget."""
    several = data["table"].nunique() > 1
    labels = []
    for row in data.to_dict("records"):
        used, limit = _amount(row["metric"], row["used"]), _amount(row["metric"], row["limit"])
        lines = [f"{load_metric(row['metric']).title}, {row['kind']}", f"{used} of {limit}"]
        if several and isinstance(row["table"], str):  # a missing one is NaN here
            lines += map(escape, Path(row["table"]).with_suffix("").parts[-2:])  # device, runtime
        labels.append("<br>".join(lines))
    return labels


def show_ms(ms: float) -> str:
    """A latency for a person, in the unit of every axis here: `0.0051 ms`, `0.473 ms`, `12.31 ms`, `123.4 ms`."""
    digits = 3 if ms < 10 else 2 if ms < 100 else 1
    return f"{ms:.2g} ms" if ms < 0.01 else f"{ms:.{digits}f} ms"


def _amount(metric: str, value: float) -> str:
    if metric == "latency_ms":
        return show_ms(value)  # in the unit and digits of the axes
    return load_metric(metric).show(value) if metric in names() else show_count(value)


def _spread(figure: go.Figure, values: pd.Series) -> None:
    """Make the x axes logarithmic, with ticks at 1, 2, 5, where the values span more than a factor of 4."""
    low, high = values.min(), values.max()
    if low > 0 and high / low > 4:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _title_last_x(figure: go.Figure, title: str) -> go.Figure:
    """Name the lowest x axis; those above share it."""
    figure.layout["xaxis2" if "xaxis2" in figure.layout else "xaxis"].title.text = title
    return figure
