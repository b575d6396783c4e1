"""Candidates to look into: what a page holds beside what tables say, and the page under clicks in a browser."""

import json
import re
from html import unescape

import pytest

from nas.core.arch import calls_of
from nas.core.errors import InputError, MissingLatency
from nas.report.explore import explore
from nas.report.runs import read_run
from nas.tables.kinds import line_of
from search_spaces import load
from tests.report.browser import browse
from tests.run_dir_fixture import BUDGET_MS, result, trials, write_run
from tests.search.fakes import fake_table

OTHER = fake_table(load("efficientformer-32"), device="other device")
EVALUATED = trials()[trials()["state"] == "evaluated"]
SAID = """
<script>
const said = {}, $ = (name) => document.querySelector(".nx-" + name)
const note = (name) => said[name] = {
  one: $("one").dataset.number, best: $("best").dataset.best, text: $("one").innerText,
  limit: $("limit").textContent, flips: $("flips").innerText,
}
const bubbles = true, cancelable = true
const key = (name) => $("plot").dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles, cancelable}))
const change = (place, value, name) => {
  place.value = value
  place.dispatchEvent(new Event(name, {bubbles: true}))
}
addEventListener("load", () => {
  note("first")
  key("Home")
  note("fastest")
  key("ArrowRight")
  note("second")
  const box = $("plot").getBoundingClientRect(), star = $("plot").querySelector("path[fill='#009E73']")
  const [x, y] = star.getAttribute("transform").match(/[\\d.]+/g).map(Number)
  $("plot").dispatchEvent(new MouseEvent("click", {clientX: box.left + x, clientY: box.top + y, bubbles: true}))
  note("clicked")
  change($("budget"), 400, "input")
  note("budget")
  $("best").querySelector("button").click()
  note("chosen")
  change($("table"), 1, "change")
  note("other")
  const place = document.body.appendChild(document.createElement("pre"))
  place.id = "said"
  place.textContent = JSON.stringify(said)
})
</script>
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


def test_a_page_holds_what_the_search_knew_and_what_another_table_says(run):
    found = explore(run, tables=OTHER).data["candidates"]
    archs = read_run(run).archs
    known = trials().set_index("number")
    for place, number in enumerate(found["number"]):
        assert found["ms"][0][place] == pytest.approx(known.loc[number, "predicted_ms"], rel=1e-4)
        priced = OTHER.price(calls_of(archs[number]), line_of(archs[number]))
        assert found["ms"][1][place] == pytest.approx(priced.total_us / 1000, rel=1e-4)
    scored = {number for number, state in zip(found["number"], found["state"], strict=True) if state == "evaluated"}
    assert scored == set(EVALUATED["number"])


def test_clicks_keys_the_budget_and_another_table_do_what_they_say(chromium, run, tmp_path):
    page = explore(run, tables=OTHER).save(tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", f"{SAID}</body>"))
    dom, console = browse(chromium, page, "--window-size=1200,1400")
    assert console == []
    said = json.loads(unescape(re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)[1]))
    order = EVALUATED.sort_values("predicted_ms")
    assert said["first"]["one"] == str(result()["winner"]["number"])
    assert [said[name]["one"] for name in ("fastest", "second")] == list(map(str, order["number"].head(2)))
    assert said["clicked"]["one"] == said["first"]["one"]
    limit = float(said["budget"]["limit"].split()[0])
    assert order["predicted_ms"].min() < limit < BUDGET_MS
    within = order[order["predicted_ms"] <= limit]
    best = str(within.loc[within["value"].idxmin(), "number"])
    assert said["budget"]["best"] == said["chosen"]["one"] == best
    arch = read_run(run).archs[int(best)]
    there = OTHER.price(calls_of(arch), line_of(arch)).total_us / 1000
    shown = float(re.search(r"predicted on this table\s+([\d.]+)", said["other"]["text"])[1])
    assert shown == pytest.approx(there, rel=2e-3)
    assert "Against the table of the search" in said["other"]["flips"]
    assert f"@{best} --data" in said["chosen"]["text"]


def test_several_runs_stand_in_one_page_and_are_told_apart(run, tmp_path):
    other = write_run(tmp_path / "again", result() | {"name": "again"})
    data = explore(run, other).data
    assert [each["label"] for each in data["runs"]] == ["quickstart", "again"]
    assert set(data["candidates"]["run"]) == {0, 1}
    unlike = write_run(tmp_path / "unlike", result() | {"score": "naswot"})
    with pytest.raises(InputError, match="have no values that compare"):
        explore(run, unlike)


def test_a_notebook_gets_a_frame_that_nothing_leaks_out_of(run):
    html = explore(run)._repr_html_()
    assert re.fullmatch(r'<iframe srcdoc="[^"]*" style="[^"]*" title="[^"]*"></iframe>', html, re.DOTALL)


def test_a_table_that_was_asked_for_and_knows_none_of_them_is_named(run):
    nothing = fake_table(load("nextvit-32"), device="nothing of it")
    with pytest.raises(MissingLatency):
        explore(run, tables=nothing)
