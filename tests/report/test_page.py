import json
import re
from pathlib import Path
from typing import Any

import plotly
import pytest

from nas.core.errors import RunError
from nas.core.units import show_count
from nas.report import page as report
from nas.report.page import figures, read_run, write_report
from tests.report.browser import browse
from tests.run_dir_fixture import BUDGET_MS, REQUEST, TABLE_HASH, result, training, trials, write_run

SECTIONS = [
    "headline",
    "budgets",
    "feasible",
    "front",
    "progress",
    "blocks",
    "agreement",
    "finalists",
    "ranking",
    "belief",
    "architecture",
    "training",
    "request",
    "provenance",
]


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "runs" / "quickstart")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with its report, shared by the tests that only read it."""
    run_dir = write_run(tmp_path_factory.mktemp("runs") / "quickstart")
    write_report(run_dir)
    return run_dir


def page(run_dir: Path) -> str:
    """The report without Plotly's own script, which is most of the file."""
    report_html = run_dir / "report.html"
    html = (report_html if report_html.is_file() else write_report(run_dir)).read_text()
    return html.replace(plotly.offline.get_plotlyjs(), "")


def section(html: str, name: str) -> str:
    """The text of one section, tags removed and spaces joined."""
    (found,) = re.findall(rf'<section id="{name}">(.*?)</section>', html, flags=re.DOTALL)
    found = re.sub(r"<script.*?</script>", "", found, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", found).split())


def test_the_report_is_written_into_the_run_and_nothing_else_is_left(run_dir):
    before = {path.name for path in run_dir.iterdir()}
    assert write_report(run_dir) == run_dir / "report.html"
    assert {path.name for path in run_dir.iterdir()} == before | {"report.html"}


def test_a_failure_keeps_the_report_of_before_and_leaves_no_piece(run_dir, monkeypatch):
    (run_dir / "report.html").write_text("the one of before")
    before = {path.name for path in run_dir.iterdir()}
    monkeypatch.setattr(report, "render", lambda run: "half a report\ud800")  # cannot be encoded: fails while writing
    with pytest.raises(UnicodeEncodeError):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text() == "the one of before"
    assert {path.name for path in run_dir.iterdir()} == before


def test_every_section_is_there_in_order(finished):
    assert re.findall(r'<section id="(\w+)">', page(finished)) == SECTIONS


def test_the_headline_shows_predicted_and_measured_side_by_side(finished):
    winner = read_run(finished).result["winner"]
    text = section(page(finished), "headline")
    assert f"takes {winner['predicted_ms']:.3f} ms predicted and {winner['measured_ms']:.3f} ms measured" in text
    assert f"of the {BUDGET_MS:.3f} ms budget" in text
    assert "It fits." in text
    reached, median = winner["training"], read_run(finished).result["reference"]
    assert f"{reached['test_accuracy']:.1%} validation {reached['val_accuracy']:.1%}".replace("%", " %") in text
    beside = f"{median['predicted_ms']:.3f} ms not measured {show_count(median['params'])} {show_count(median['macs'])}"
    assert f"median of the space {beside}" in text


def test_a_winner_over_its_budget_is_said_so(tmp_path):
    found = result()
    found["winner"]["fits"] = False
    text = section(page(write_run(tmp_path / "run", found)), "headline")
    assert "It does not fit." in text
    assert "It fits." not in text


def test_finalists_show_both_latencies_and_the_mean_of_their_repeats(finished):
    first = read_run(finished).result["finalists"][0]
    text = section(page(finished), "finalists")
    mean = sum(first["val_losses"][1:]) / 2
    error = f"{100 * (first['predicted_ms'] / first['measured_ms'] - 1):+.1f} %"
    expected = f"{first['arch']} {first['number']} {first['predicted_ms']:.3f} ms {first['measured_ms']:.3f} ms {error}"
    assert expected in text
    assert f"{mean:.5g}" in text
    assert "those of 2 repeated trainings of each finalist, without the score that chose it" in text


def test_the_front_names_each_network_as_the_commands_take_it(finished):
    text, run = section(page(finished), "front"), read_run(finished)
    front = run.trials[run.trials["state"] == "evaluated"].sort_values(["predicted_ms", "number"])
    best, points = float("inf"), []  # on the front is who beats the loss of all that are faster
    for row in front.to_dict("records"):
        if row["val_loss"] < best:
            best, points = row["val_loss"], [*points, row]
    for row in points:
        assert f"{finished}@{row['number']} {row['predicted_ms']:.3f} ms" in text
    assert text.count(f"{finished}@") == len(points) + 1
    assert f"nas train {finished}@{points[0]['number']} --data digits --epochs 8" in text


def test_provenance_request_and_ranking_are_shown_in_full(finished):
    html = page(finished)
    text = section(html, "provenance")
    source = result()["provenance"]
    versions = f"torch {source['versions']['torch']}"
    for fact in (TABLE_HASH, source["cpu"], source["runtime"], "fp32, 1 thread", versions, "seed 0"):
        assert fact in text
    assert REQUEST.replace("<=", "&lt;=") in html
    ranking = result()["ranking"]
    assert ranking["text"] in section(html, "ranking").replace("&#39;", "'")
    assert f"Pairs whose order is sure: {100 * ranking['pairs_sure']:.0f} %" in section(html, "ranking")


def liked(arch, number, expected):
    interval = {"expected": expected, "low": expected - 0.01, "high": expected + 0.01}
    return {"arch": arch, "number": number, **interval, "predicted_ms": 0.5, "choices": {"depth_3": 4, "act": "gelu"}}


def test_what_a_fitted_model_believes_is_shown_as_that(tmp_path):
    found = result()
    winner = found["winner"]
    found["belief"] = {
        "candidates": 60,
        "rank_correlation": 0.83,
        "best": liked("bestbestbest", None, 0.21),
        "best_trained": liked(winner["arch"], winner["number"], 0.25),
        "behind": 0.04,
        "behind_low": 0.01,
        "behind_high": 0.07,
        "effects": [{"choice": "act", "value": "gelu", "share": 0.5, "effect": -0.1, "low": -0.2, "high": -0.05}],
    }
    html = page(write_run(tmp_path / "run", found))
    text = section(html, "belief")
    assert "A linear model fitted to the 60 candidates" in text
    assert "rank correlation of 0.83" in text
    assert "The best of the fitted model among all networks that fit is arch bestbestbest" in text
    assert "which was not trained: it expects a validation loss of 0.2100 (0.2000 to 0.2200)" in text
    assert f"trial {winner['number']}, it expects 0.0400 (0.0100 to 0.0700) behind" in text
    assert "do not build on it" not in text
    assert "optimal" not in text
    assert 'id="plot-effects"' in html
    found["belief"] |= {"rank_correlation": 0.2, "best": found["belief"]["best_trained"]}
    text = section(page(write_run(tmp_path / "other", found)), "belief")
    assert "do not build on it" in text
    assert f"which was trained as trial {winner['number']}" in text
    assert "That is the best trained one." in text


def test_a_run_of_few_candidates_shows_no_model(tmp_path):
    assert 'id="belief"' not in page(write_run(tmp_path / "run", result() | {"belief": None}))


def test_another_machines_table_is_announced_loudly(tmp_path):
    found = result()
    assert "Not this machine" not in page(write_run(tmp_path / "here", found))
    found["provenance"].update(not_this_machine=True, device="pixel7", cpu="Tensor G2")
    html = page(write_run(tmp_path / "there", found))
    (banner,) = re.findall(r'<div class="banner" role="alert">(.*?)</div>', html, flags=re.DOTALL)
    assert "Not this machine" in banner
    assert "pixel7 (Tensor G2)" in banner
    assert html.index("banner") < html.index('id="headline"')


def test_what_users_wrote_cannot_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    found = result()
    found.update(name=evil, space=evil)
    found["winner"]["blocks"][0].update(block=evil, inputs=evil, stage=evil)
    found["winner"]["architecture"][0].update(stage=evil, blocks=evil)
    found["ranking"]["text"] = found["provenance"]["cpu"] = found["reference"]["name"] = evil
    frame = trials()
    frame.loc[frame["state"] != "evaluated", "reason"] = evil
    run_dir = write_run(tmp_path / "run", found, frame)
    (run_dir / "request.yaml").write_text(f"name: {evil}")
    clean, hostile = page(write_run(tmp_path / "clean")), page(run_dir)
    assert hostile.count("<script") == clean.count("<script")
    assert "<img" not in hostile
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in hostile


def test_plotly_is_inlined_once_and_nothing_is_loaded_from_elsewhere(finished):
    html = (finished / "report.html").read_text()
    assert html.count(plotly.offline.get_plotlyjs()) == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page(finished))
    assert "default-src 'none'" in html


def test_optional_facts_may_be_absent_or_null(tmp_path):
    bare, null = result(), result()
    for found in (bare, null):
        for place, names in (
            (found, ["reference", "smallest"]),
            (found["ranking"], ["pairs_sure", "noise_sigma"]),
            (found["provenance"], ["calibration", "table_mape_percent"]),
            (found["winner"], ["measured_spread_ms"]),
            (found["winner"]["training"], ["test_accuracy", "seconds"]),
        ):
            for name in names:
                if found is bare:
                    del place[name]
                else:
                    place[name] = None
    html = page(write_run(tmp_path / "bare", bare))
    accuracy = f"{100 * result()['winner']['training']['val_accuracy']:.1f} %"
    assert f"validation accuracy {accuracy} after 8 epochs" in section(html, "headline")
    assert "The table's error on whole networks is not known." in section(html, "agreement")
    null_html = page(write_run(tmp_path / "null", null)).replace(str(tmp_path / "null"), str(tmp_path / "bare"))
    assert null_html == html


def test_intervals_that_no_trial_carries_are_not_made_up(tmp_path):
    frame = trials().assign(predicted_low_ms="", predicted_high_ms="")
    assert "no interval known" in section(page(write_run(tmp_path / "run", result(), frame)), "headline")


def test_a_run_without_budgets_has_no_budget_section(tmp_path):
    run_dir = write_run(tmp_path / "run", {**result(), "budgets": [], "objective": "front"})
    assert "budgets" not in figures(read_run(run_dir))
    html = page(run_dir)
    assert 'id="budgets"' not in html
    assert "ms measured." in section(html, "headline")  # of no budget


@pytest.mark.parametrize("name", ["request.yaml", "trials.csv", "training.csv", "result.json"])
def test_an_unfinished_run_names_the_file_it_lacks_and_the_command_that_makes_it(run_dir, name):
    (run_dir / name).unlink()
    request = "REQUEST.yaml" if name == "request.yaml" else run_dir / "request.yaml"
    with pytest.raises(RunError, match=re.escape(f"no {name}. Finish it: nas search {request}")):
        write_report(run_dir)


def test_a_missing_run_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(RunError, match=r"no run directory .*nowhere.* nas search REQUEST.yaml"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "budgets[0].limit",
        "counts.infeasible",
        "finalists[1].measured_ms",
        "winner.measured_ms",
        "winner.training.epochs",
        "winner.blocks[2].us",
        "winner.architecture[0].stage",
        "ranking.text",
        "provenance.table_hash",
        "provenance.not_this_machine",
        "schema",
    ],
)
def test_a_missing_required_field_is_named(tmp_path, path):
    found = result()
    *way, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    place: Any = found
    for part in way:
        place = place[part]
    del place[last]
    with pytest.raises(RunError, match=re.escape(f"result.json: {path}: ")):
        read_run(write_run(tmp_path / "run", found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema: Input should be 1"),
        ({"finalists": []}, "finalists: List should have at least 1 item"),
        ({"objective": "speed"}, "objective: Input should be 'accuracy' or 'front'"),
        ({"counts": dict.fromkeys(("proposed", "evaluated", "infeasible", "duplicate", "failed"), -1)}, "(and 4 more)"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(tmp_path, change, message):
    with pytest.raises(RunError, match=re.escape(message)):
        read_run(write_run(tmp_path / "run", {**result(), **change}))


def test_a_nan_in_the_results_is_refused(tmp_path):
    found = result()
    found["finalists"][0]["values"][0] = float("nan")
    with pytest.raises(RunError, match=r"finalists\[0\]\.values\[0\]: Input should be a finite number"):
        read_run(write_run(tmp_path / "run", found))


def test_a_torn_result_is_refused(run_dir):
    (run_dir / "result.json").write_text(json.dumps(result())[:-40])
    with pytest.raises(RunError, match=r"result\.json: Invalid JSON"):
        read_run(run_dir)


def test_results_and_trials_of_different_searches_are_refused(tmp_path):
    run_dir = write_run(tmp_path / "run", result(), trials(seed=1))
    with pytest.raises(RunError, match="of different searches"):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (training(3).assign(val_loss=[1.0, float("nan"), 2.0]), "an epoch has no finite val_loss"),
        (training(3).assign(train_loss=["1", "x", "2"]), "Unable to parse"),
        (training(3).iloc[:0], "holds no epoch"),
        (training(3).drop(columns="epoch"), "lacks the column epoch"),
    ],
)
def test_a_broken_training_history_is_refused(run_dir, history, message):
    history.to_csv(run_dir / "training.csv", index=False)
    with pytest.raises(RunError, match=rf"training\.csv: .*{message}"):
        read_run(run_dir)


# In a browser. The console of a sound page stays empty: every line in it fails the test, and the page's own policy
# turns any attempt to load something into such a line.


def variant(path: Path, extra: str) -> Path:
    """A copy of a report with something more in its body."""
    changed = path.with_name("variant.html")
    changed.write_text(path.read_text().replace("<main>", f"{extra}<main>"))
    return changed


def test_all_plots_render_in_a_browser_without_a_word_on_the_console(chromium, finished):
    dom, console = browse(chromium, finished / "report.html")
    assert console == []
    names = re.findall(r'id="plot-(\w+)"', dom)
    assert sorted(names) == sorted(figures(read_run(finished)))
    assert dom.count('class="main-svg"') >= 2 * len(names)  # Plotly draws each in two or three layers
    assert dom.count('class="point"') > len(trials())


def test_published_networks_render_beside_the_front(chromium, tmp_path):
    told = result()
    latency = told["winner"]["predicted_ms"]
    row = {"name": "net <b>", "top1": 0.751, "source": "arXiv:1", "recipe": "", "params": 10, "macs": 20}
    told["published"] = [
        row | {"predicted_ms": latency, "low_ms": 0.9 * latency, "high_ms": 1.1 * latency},
        row | {"name": "other", "predicted_ms": 1.1 * latency, "low_ms": None, "high_ms": None},
    ]
    told["begun_with"] = {"net <b>": 3}
    path = write_report(write_run(tmp_path / "run", told))
    dom, console = browse(chromium, path)
    assert console == []
    assert "published ImageNet top-1 (%)" in dom
    said = section(path.read_text(), "front")
    assert f"began with the published networks that fit: net &lt;b&gt; ( {tmp_path / 'run'}@3 )" in said
    assert re.search(r"net &lt;b&gt; 75\.1 % [\d.]+ ms [\d.]+ ms to [\d.]+ ms 10 20 arXiv:1", said)
    assert re.search(r"other 75\.1 % [\d.]+ ms - 10 20 arXiv:1", said)


def test_a_script_error_a_request_elsewhere_and_a_plot_that_fails_are_each_caught(chromium, finished):
    spoilt = "<script>noSuchFunction()</script><img src='https://example.org/pixel.png'><script>delete Plotly</script>"
    dom, console = browse(chromium, variant(finished / "report.html", spoilt))
    for message in ("noSuchFunction is not defined", "https://example.org/pixel.png", "Plotly is not defined"):
        assert any(message in line for line in console), message
    assert 'class="main-svg"' not in dom


def test_the_page_does_not_scroll_sideways_on_a_phone_nor_on_a_screen(chromium, finished):
    """Frames stand for the two, since a headless window is never narrower than 500 pixels."""
    send = "<script>addEventListener('load', () => setTimeout(() => parent.postMessage("
    send += "[innerWidth, document.documentElement.scrollWidth], '*'), 1000))</script>"
    inner = variant(finished / "report.html", send)
    frames = finished / "frames.html"
    frames.write_text(
        "<p id=sizes></p><script>addEventListener('message', e => sizes.textContent += e.data + ';')</script>"
        + "".join(
            f'<iframe src="{inner.name}" width={width} height=900 frameborder=0></iframe>' for width in (420, 1200)
        )
    )
    dom, console = browse(chromium, frames, "--window-size=1700,1000")
    assert console == []
    (sizes,) = re.findall(r'<p id="sizes">(.*?)</p>', dom)
    assert sorted(sizes.strip(";").split(";")) == ["1200,1200", "420,420"]


def test_the_report_tells_confidence_card_and_rows_that_were_not_measured(tmp_path):
    told = result()
    told["budgets"][0] |= {"asked": "latency_ms<=p40 @ 0.95", "confidence": 0.95}
    told["budgets"].append({"metric": "memory_mb", "limit": 50, "asked": "memory_mb<=50", "table": None, "used": 40.0})
    told["provenance"]["card"] = "MAPE 1.7 %, bias -0.3 %"
    told["winner"]["unmeasured_percent"] = 12.5
    html = page(write_run(tmp_path / "run", told))
    assert "p40 @ 0.95 (kept with 95 % confidence)" in section(html, "budgets")
    assert "The table's card, on networks that it was not fitted on: MAPE 1.7 %, bias -0.3 %" in section(
        html, "agreement"
    ).replace("&#39;", "'")
    assert "12.5 % of the prediction rests on rows that were themselves predicted" in section(html, "blocks")
    drawn = report.budgets(read_run(tmp_path / "run"))
    assert drawn[drawn["metric"] == "memory_mb"]["percent"].tolist() == [80.0]
    plain = page(write_run(tmp_path / "plain"))
    assert "confidence" not in section(plain, "budgets")
    assert "rests on rows" not in section(plain, "blocks")
