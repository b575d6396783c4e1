import math

import numpy as np
import pandas as pd
import pytest

from nas.core.errors import InputError
from nas.report import plots
from tests.run_dir_fixture import BUDGET_MS, TABLE, blocks, result, training, trials


@pytest.fixture
def study() -> pd.DataFrame:
    """Five trials, one of each fate and two evaluated."""
    rows = [
        (0, "infeasible", 9.0, math.nan, "latency <9 ms> is over"),
        (1, "evaluated", 2.0, 0.5, ""),
        (2, "failed", 3.0, math.nan, "loss is NaN"),
        (3, "duplicate", 2.0, 0.01, ""),
        (4, "evaluated", 3.0, 0.4, ""),
        (5, "evaluated", 4.0, 0.45, ""),
    ]
    frame = pd.DataFrame(rows, columns=["number", "state", "predicted_ms", "value", "reason"])
    frame["score"] = "val_loss"
    return frame.assign(arch=[f"{n:012x}" for n in frame["number"]], params=12_300, macs=4_500_000, seconds=1.0)


def trace(figure, name):
    """The one trace of that name."""
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def test_candidates_are_the_evaluated_and_the_infeasible_with_the_front_marked(study):
    data = plots.candidates_data(study)
    assert data["number"].tolist() == [0, 1, 4, 5]
    assert data["state"].tolist() == ["infeasible", "evaluated", "evaluated", "evaluated"]
    assert data["on_front"].tolist() == [False, True, True, False]
    assert data["value"].tolist()[1:] == [0.5, 0.4, 0.45]


def test_candidates_can_be_compared_by_parameters(study):
    data = plots.candidates_data(study.assign(params=[9, 3, 9, 9, 2, 1]), cost="params")
    assert data["on_front"].tolist() == [False, False, True, True]
    figure = plots.plot_candidates(data, budget=2_500, cost="params")
    assert figure.layout.xaxis2.title.text == "parameters"
    assert figure.layout.shapes[0].name == "budget 2.5 k"


def test_the_front_figure_shows_budget_front_winner_and_what_was_over_budget(study):
    figure = plots.plot_candidates(plots.candidates_data(study), budget=5.0, winner=f"{4:012x}")
    assert list(trace(figure, "front").x) == [2.0, 3.0]
    assert list(trace(figure, "front").y) == [0.5, 0.4]
    assert list(trace(figure, "evaluated").x) == [4.0]
    assert list(trace(figure, "winner").x) == [3.0]
    assert list(trace(figure, "infeasible").x) == [9.0]
    assert trace(figure, "infeasible").xaxis == "x2"  # in the strip: it has no loss
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1, line.name) == (5.0, 5.0, "budget 5.000 ms")
    assert figure.layout.xaxis2.title.text == "predicted latency (ms)"


def test_the_front_figure_needs_neither_budget_nor_winner_nor_infeasible_trials(study):
    figure = plots.plot_candidates(plots.candidates_data(study[study["state"] == "evaluated"]))
    assert [trace.name for trace in figure.data] == ["evaluated", "front"]
    assert not figure.layout.shapes
    assert figure.layout.xaxis.title.text == "predicted latency (ms)"


def reported(**columns):
    rows = {"name": ["near", "far"], "top1": [0.7, 0.8], "source": "<arXiv>", "recipe": ["300 epochs", ""]}
    figures = {"predicted_ms": [3.5, 40.0], "low_ms": None, "high_ms": None, "params": 1000, "macs": 2000}
    return plots.published_data(pd.DataFrame(rows | figures | columns).to_dict("records"))


def test_published_networks_are_grey_on_an_axis_of_their_own_and_none_squeezes_the_others(study):
    data = plots.candidates_data(study)  # 2 to 9 ms
    figure = plots.plot_candidates(data, budget=5.0, published=reported())
    (grey,) = [trace for trace in figure.data if trace.name.startswith("published")]
    assert grey.name == "published, by ImageNet top-1 (1 more are out of view)"
    assert (list(grey.x), list(grey.y), grey.yaxis, grey.marker.color) == ([3.5], [70.0], "y9", plots.GREY)
    assert "70.0 % of ImageNet (&lt;arXiv&gt;)" in grey.hovertext[0]
    assert figure.layout.yaxis9.autorange == "reversed"  # better is down, as for the losses
    assert "ImageNet" in figure.layout.yaxis9.title.text
    for nothing in (reported(predicted_ms=40.0), plots.published_data([]), None):
        assert "yaxis9" not in plots.plot_candidates(data, published=nothing).layout


def test_hovering_names_arch_trial_and_parameters_and_escapes_what_others_wrote(study):
    figure = plots.plot_candidates(plots.candidates_data(study))
    (text,) = trace(figure, "infeasible").hovertext
    assert text == (
        "<b>trial 0</b>, arch 000000000000<br>predicted 9.000 ms<br>12.3 k parameters<br>4.5 M MACs"
        "<br>latency &lt;9 ms&gt; is over"
    )


def test_a_wide_range_of_latencies_gets_a_logarithmic_axis_with_plain_ticks(study):
    wide = plots.plot_candidates(plots.candidates_data(study))  # 2 to 9 ms
    narrow = plots.plot_candidates(plots.candidates_data(study[study["number"] > 0]))  # 2 to 4 ms
    assert wide.layout.xaxis2.type == "log"
    assert {"2", "5", "10"} <= set(wide.layout.xaxis2.ticktext)
    assert narrow.layout.xaxis.type is None


def test_progress_keeps_the_best_evaluated_loss_so_far(study):
    data = plots.progress_data(study.sample(frac=1, random_state=0))
    assert data["number"].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(data["best_value"], [np.nan, 0.5, 0.5, 0.5, 0.4, 0.4])
    np.testing.assert_array_equal(data["value"], [np.nan, 0.5, np.nan, np.nan, 0.4, 0.45])


def test_the_progress_figure_shows_every_trial_once_in_the_colour_of_its_state(study):
    figure = plots.plot_progress(plots.progress_data(study))
    for state, numbers in (("evaluated", [1, 4, 5]), ("infeasible", [0]), ("duplicate", [3]), ("failed", [2])):
        assert list(trace(figure, state).x) == numbers
        assert trace(figure, state).marker.color == plots.STATE_STYLES[state]["color"]


def test_states_differ_in_symbol_and_use_the_safe_palette():
    styles = plots.STATE_STYLES.values()
    assert len({style["symbol"] for style in styles}) == len(plots.STATE_STYLES)
    evaluated, infeasible = plots.STATE_STYLES["evaluated"]["color"], plots.STATE_STYLES["infeasible"]["color"]
    assert evaluated == "#0072B2"  # Okabe and Ito's blue and vermilion
    assert infeasible == "#D55E00"


def test_blocks_begin_where_the_one_before_ends_in_their_stage():
    rows = [
        ("stem", "Stem w=8", 5.0),
        ("1", "Embedding w=8", 10.0),
        ("1", "MB4D ratio=4", 30.0),
        ("1", "MB4D ratio=2", 5.0),
    ]
    listed = [{"stage": s, "block": b, "inputs": "1x8x8x8", "us": us, "share": us / 50} for s, b, us in rows]
    data = plots.blocks_data(listed)
    assert data["kind"].tolist() == ["Stem", "Embedding", "MB4D", "MB4D"]
    assert data["start_us"].tolist() == [0, 0, 10, 40]
    assert data["stage_us"].tolist() == [5, 45, 45, 45]


def test_the_block_figure_stacks_stages_in_milliseconds():
    data = plots.blocks_data(blocks())
    figure = plots.plot_blocks(data)
    bars = [bar for bar in figure.data if bar.type == "bar"]
    assert sum(sum(bar.x) for bar in bars) == pytest.approx(sum(block["us"] for block in blocks()) / 1000)
    assert {bar.name for bar in bars} == {block["block"].split()[0] for block in blocks()}
    ends = {
        stage: max(b + x for bar in bars for b, x, y in zip(bar.base, bar.x, bar.y, strict=True) if y == stage)
        for stage in ("stage 3", "head")
    }
    assert ends["stage 3"] == pytest.approx(data.loc[data["stage"] == "3", "us"].sum() / 1000)
    assert figure.layout.yaxis.categoryarray[-1] == f"stage {blocks()[0]['stage']}"  # drawn at the top
    assert "ms" in figure.layout.xaxis.title.text


def test_a_block_without_its_time_is_named():
    with pytest.raises(InputError, match="block 1 lacks 'us'"):
        plots.blocks_data([*blocks()[:1], {"stage": "1", "block": "MB4D", "inputs": "", "share": 0.1}])


def test_the_prediction_error_is_positive_where_the_prediction_is_too_high():
    finalists = [
        {"arch": "a", "number": 3, "predicted_ms": 1.1, "measured_ms": 1.0, "params": 1},
        {"arch": "b", "number": 4, "predicted_ms": 0.9, "measured_ms": 1.2, "params": 1},
        {"arch": "c", "number": 5, "predicted_ms": 0.9, "measured_ms": None, "params": 1},
    ]
    data = plots.agreement_data(finalists)
    np.testing.assert_allclose(data["error_percent"], [10.0, -25.0, np.nan])
    assert data["predicted_low_ms"].isna().all()
    assert data["measured_spread_ms"].isna().all()


def test_the_intervals_of_predictions_come_from_the_trials():
    frame = trials()
    data = plots.agreement_data(result()["finalists"], frame)
    rows = frame.set_index("number").loc[data["number"]]
    assert data["predicted_low_ms"].tolist() == rows["predicted_low_ms"].tolist()
    assert data["predicted_high_ms"].tolist() == rows["predicted_high_ms"].tolist()


def test_the_agreement_figure_has_the_equal_line_and_a_band_of_five_percent():
    data = plots.agreement_data(result()["finalists"], trials())
    winner = result()["winner"]["arch"]
    figure = plots.plot_agreement(data, budget_ms=BUDGET_MS, winner=winner)
    equal = trace(figure, "equal")
    low, high = (band for band in figure.data if band.name == "within 5 %")
    assert list(equal.x) == list(equal.y)
    np.testing.assert_allclose(low.y, np.multiply(equal.x, 0.95))
    np.testing.assert_allclose(high.y, np.multiply(equal.x, 1.05))
    assert (low.fill, high.fill) == (None, "tonexty")
    won = data["arch"] == winner
    assert list(trace(figure, "winner").y) == data["measured_ms"][won].tolist()
    assert list(trace(figure, "finalists").y) == data["measured_ms"][~won].tolist()
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.xaxis.range[0] < data["predicted_low_ms"].min()
    assert figure.layout.xaxis.range[1] > max(data["predicted_high_ms"].max(), BUDGET_MS)
    assert list(trace(figure, f"budget {BUDGET_MS:.3f} ms").y) == [BUDGET_MS, BUDGET_MS]


def test_a_budget_far_above_the_finalists_is_left_out_of_their_figure():
    figure = plots.plot_agreement(plots.agreement_data(result()["finalists"]), budget_ms=50.0)
    assert not [trace for trace in figure.data if trace.name.startswith("budget")]


def test_finalists_that_were_never_measured_draw_nothing():
    unmeasured = [{**finalist, "measured_ms": None} for finalist in result()["finalists"]]
    assert not plots.plot_agreement(plots.agreement_data(unmeasured)).data


def test_budgets_are_used_by_the_winner_in_percent():
    winner = {"predicted_ms": 4.5, "measured_ms": 4.8, "params": 30, "macs": 7}
    budgets = [
        {"metric": "latency_ms", "limit": 5.0, "table": "a/t.csv"},
        {"metric": "latency_ms", "limit": 10.0, "table": "b/t.csv", "used": 9.9},
        {"metric": "params", "limit": 40, "table": None},
        {"metric": "macs", "limit": 70, "table": None},
    ]
    data = plots.budgets_data(budgets, winner, "a/t.csv")
    assert data["kind"].tolist() == ["predicted", "measured", "predicted", "counted", "counted"]
    np.testing.assert_allclose(data["percent"], [90, 96, 99, 75, 10])
    assert data["binds"].tolist() == [False, False, True, False, False]
    labels = list(plots.plot_budgets(data).layout.yaxis.categoryarray)[::-1]
    assert labels[1] == "latency, measured<br>4.800 ms of 5.000 ms<br>a<br>t"
    assert labels[3] == "parameters, counted<br>30 of 40"
    assert len(set(labels)) == 5


def test_the_latency_on_another_table_is_never_guessed():
    budgets = [{"metric": "latency_ms", "limit": 5.0, "table": "pixel/litert.csv"}]
    with pytest.raises(InputError, match=r"budgets\[0\]\.used.*pixel/litert\.csv"):
        plots.budgets_data(budgets, {"predicted_ms": 1.0, "measured_ms": 1.0}, TABLE)


def test_an_unknown_metric_of_a_budget_names_the_legal_ones():
    with pytest.raises(InputError, match=r"unknown metric 'latency'.*latency_ms"):
        plots.budgets_data([{"metric": "latency", "limit": 5.0, "table": None}], {}, None)


def test_the_budget_figure_shows_the_limit_and_every_bar():
    data = plots.budgets_data(result()["budgets"], result()["winner"], TABLE)
    figure = plots.plot_budgets(data)
    assert [shape.x0 for shape in figure.layout.shapes] == [100]
    drawn = {(bar.name, x) for bar in figure.data for x in bar.x}
    assert drawn == set(zip(data["kind"], data["percent"], strict=True))
    assert figure.layout.xaxis.range[1] > 100


EFFECTS = [
    {"choice": "tokens", "value": 4, "share": 0.5, "effect": 0.01, "low": -0.02, "high": 0.04},
    {"choice": "stage1.kind", "value": "<mb4d>", "share": 0.25, "effect": -0.3, "low": -0.35, "high": -0.25},
    {"choice": "stage2.depth", "value": 3, "share": 0.1, "effect": 0.1, "low": 0.05, "high": 0.15},
]


def test_effects_are_ordered_by_size_and_those_that_may_be_none_are_marked():
    data = plots.effects_data(EFFECTS)
    assert data["label"].tolist() == ["stage1.kind = &lt;mb4d&gt;", "stage2.depth = 3", "tokens = 4"]
    assert data["is_sure"].tolist() == [True, True, False]
    assert plots.effects_data(EFFECTS, 1)["effect"].tolist() == [-0.3]
    with pytest.raises(InputError, match="effect 0 lacks 'low'"):
        plots.effects_data([{"choice": "a", "value": 1, "share": 1, "effect": 0}])


def test_the_figure_of_effects_has_every_choice_with_its_interval():
    figure = plots.plot_effects(plots.effects_data(EFFECTS))
    sure, unsure = trace(figure, "effect"), trace(figure, "interval holds zero")
    assert list(sure.x) == [-0.3, 0.1]
    assert list(sure.error_x.array) == pytest.approx([0.05, 0.05])
    assert list(unsure.y) == ["tokens = 4"]
    assert list(unsure.error_x.arrayminus) == pytest.approx([0.03])
    assert list(figure.layout.yaxis.categoryarray) == ["tokens = 4", "stage2.depth = 3", "stage1.kind = &lt;mb4d&gt;"]
    assert "in 25 % of what fits" in sure.hovertext[0]


def test_training_is_sorted_with_accuracy_in_percent():
    history = pd.DataFrame(
        {"epoch": [2, 1], "train_loss": [0.5, 0.9], "val_loss": [0.6, 0.8], "val_accuracy": [0.75, 0.5]}
    )
    data = plots.training_data(history)
    assert data["epoch"].tolist() == [1, 2]
    assert data["val_accuracy_percent"].tolist() == [50.0, 75.0]
    assert data["lr"].isna().all()


def test_the_training_figure_has_losses_above_and_accuracy_below():
    figure = plots.plot_training(plots.training_data(training(3)))
    assert trace(figure, "training loss").yaxis == trace(figure, "validation loss").yaxis == "y"
    assert trace(figure, "validation accuracy").yaxis == "y2"
    assert figure.layout.yaxis2.title.text == "accuracy (%)"
    assert figure.layout.xaxis2.title.text == "epoch"
    assert f"learning rate {training(3)['lr'][0]:.3g}" in trace(figure, "validation loss").hovertext[0]


def test_a_training_history_without_a_column_is_refused():
    with pytest.raises(InputError, match="lacks the columns val_loss, val_accuracy"):
        plots.training_data(training(3).drop(columns=["val_loss", "val_accuracy"]))


@pytest.mark.parametrize(
    ("ms", "text"), [(0.00512, "0.0051 ms"), (0.4728, "0.473 ms"), (12.306, "12.31 ms"), (1234.56, "1234.6 ms")]
)
def test_latencies_are_shown_in_milliseconds_whatever_their_size(ms, text):
    assert plots.show_ms(ms) == text


def test_every_figure_uses_the_one_template():
    frame, found = trials(), result()
    for figure in (
        plots.plot_candidates(plots.candidates_data(frame)),
        plots.plot_progress(plots.progress_data(frame)),
        plots.plot_blocks(plots.blocks_data(found["winner"]["blocks"])),
        plots.plot_agreement(plots.agreement_data(found["finalists"])),
        plots.plot_budgets(plots.budgets_data(found["budgets"], found["winner"], TABLE)),
        plots.plot_training(plots.training_data(training())),
    ):
        assert figure.layout.template == plots.TEMPLATE
        assert figure.layout.height >= 180


def judged(name, tau, **more):
    ends = {f"kendall{key}{part}": tau + shift for part in ("", "_band") for key, shift in ENDS.items()}
    return {"name": name, "of": []} | ends | more


ENDS = {"": 0.0, "_low": -0.1, "_high": 0.2}


def test_taus_have_a_row_for_all_and_one_for_the_band():
    nothing = judged("constant", 0.0) | {"kendall": None, "kendall_band": None}
    learned = judged("", 0.6, labels=8, **{"from": "scores"}) | {"of": ["size", "naswot"]}
    learned.pop("name")
    data = plots.taus_data([judged("naswot", 0.4, kendall_band=0.3), nothing, learned])
    assert data[["name", "part", "tau", "low", "high"]].to_numpy().tolist() == [
        ["naswot", "all", 0.4, pytest.approx(0.3), pytest.approx(0.6)],
        ["naswot", "band", 0.3, pytest.approx(0.3), pytest.approx(0.6)],
        ["scores of size, naswot", "all", 0.6, 0.5, pytest.approx(0.8)],
        ["scores of size, naswot", "band", 0.6, 0.5, pytest.approx(0.8)],
    ]
    figure = plots.plot_taus(data, {"kendall": 0.8, "kendall_band": None})
    assert [list(trace.x) for trace in figure.data] == [[0.4, 0.6], [0.3, 0.6]]
    assert sorted(shape.x0 for shape in figure.layout.shapes) == [0, 0.8]
    learned = plots.plot_learned(data[data["labels"].notna()], {})
    assert [list(trace.x) for trace in learned.data] == [[8], [8]]


def test_networks_without_a_score_are_left_out_of_its_plot():
    networks = [
        {"arch": name, "set": part, "macs": 1, "accuracy": 0.9} for name, part in (("a", "band"), ("b", "broad"))
    ]
    data = plots.ranked_data(networks, {"good": [1, 2], "bad": [float("nan"), 3]})
    assert data[["arch", "score", "value"]].to_numpy().tolist() == [["a", "good", 1], ["b", "good", 2], ["b", "bad", 3]]
    figure = plots.plot_ranked(data)
    assert [(trace.name, list(trace.x)) for trace in figure.data] == [
        ("broad", [2]),
        ("band", [1]),
        ("broad", [3]),
        ("band", []),
    ]


def test_what_searches_reach_is_their_mean_while_all_of_them_run():
    one = {"method": "random", "seed": 0, "seconds": [10, 20, 40], "accuracy": [0.1, 0.2, 0.3]}
    two = {"method": "random", "seed": 1, "seconds": [15, 30, 35], "accuracy": [0.5, 0.5, 0.9]}
    data = plots.reached_data([one, two])
    assert data["seconds"].tolist() == [15, 20, 30, 35]
    assert data["accuracy"].tolist() == pytest.approx([0.3, 0.35, 0.35, 0.55])
    assert data[["low", "high"]].iloc[-1].tolist() == [0.2, 0.9]
    assert list(plots.plot_reached(data).data[0].x) == pytest.approx([0.25, 1 / 3, 0.5, 35 / 60])
