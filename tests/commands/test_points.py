"""Models of other libraries from `nas measure` to the shortlist and the report: measured there, never predicted."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from nas.core.errors import InputError
from nas.networks.foreign import Foreign
from nas.profiling import profiler
from nas.report import page, plots
from nas.report.explore import explore
from nas.report.points import add_point, read_points
from nas.search import shortlist
from tests.commands.test_commands import nas  # noqa: F401 - a fixture
from tests.run_dir_fixture import RESULT, write_run
from tests.search.test_shortlist import calibrated, few_presets, table_of  # noqa: F401 - a fixture

SMALL = "timm:mobilenetv3_small_050"


@pytest.fixture
def timed(monkeypatch):
    """Every network takes 1 ms, on the device of the made-up tables; what was measured."""
    seen = []

    def measure(network, **options):
        seen.append(network)
        return SimpleNamespace(
            us=1000.0,
            spread_us=1.0,
            count=3,
            runtime_version="1",
            device="testbox",
            noise=0.0,
            disturbed=False,
            text="",
        )

    monkeypatch.setattr(profiler, "measure", measure)
    return seen


def point(**values):
    usual = {
        "name": SMALL,
        "input": [3, 224, 224],
        "params": 1_000_000,
        "macs": 5_000_000,
        "measured_ms": 1.0,
        "measured_spread_ms": 0.001,
        "runtime": "fake 1",
        "precision": "fp32",
        "threads": 1,
        "device": "testbox",
        "disturbed": False,
        "date": "2026-11-21",
        "top1": None,
    }
    return usual | values


def test_a_model_is_measured_and_kept_as_a_point(nas, timed, tmp_path):  # noqa: F811
    file = tmp_path / "deep" / "points.json"
    asked = ("measure", "--model", SMALL, "--input-size", "64", "--runtime", "fake", "--points", file)
    code, out, _ = nas(*asked, "--top1", "0.6", "--json")
    found = json.loads(out)
    assert code == 0
    assert timed == [Foreign(SMALL, (3, 64, 64))]
    assert found["model"] == SMALL
    assert found["source"] == "measured"
    assert "predicted_ms" not in found
    (kept,) = read_points(file)
    assert (kept["name"], kept["input"], kept["measured_ms"], kept["top1"]) == (SMALL, [3, 64, 64], 1.0, 0.6)
    assert kept["params"] == found["params"] > 0
    code, out, _ = nas(*asked)
    assert code == 0
    assert "1 ms measured" in out
    assert "not predicted" in out
    assert [each["top1"] for each in read_points(file)] == [None]  # measured anew, it is replaced
    assert nas(*asked[:3], "--runtime", "fake", "--points", file)[0] == 0
    assert [each["input"] for each in read_points(file)] == [[3, 64, 64], [3, 224, 224]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one network to measure"),
        (("efficientformer-l1", "--model", SMALL), "name one network to measure"),
        (("efficientformer-l1", "--input-size", "64"), "are of a --model"),
        (("efficientformer-l1", "--points", "points.json"), "are of a --model"),
        (("--model", "timm:mobilenetv3_smal_050"), "did you mean"),
        (("--model", SMALL, "--input-size", "x"), "expected a side such as 224"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(nas, timed, arguments, message):  # noqa: F811
    code, _, err = nas("measure", *arguments)
    assert code == 2
    assert message in err
    assert timed == []


def test_points_stand_among_published_networks_on_the_table_they_were_measured_beside(tmp_path):
    table = calibrated().write(tmp_path / "one.csv")
    file = tmp_path / "points.json"
    fast = min(row["predicted_ms"] for row in shortlist.figures(table)["networks"] if row["predicted_ms"])
    add_point(file, point(name="timm:best", measured_ms=fast / 2, top1=0.85))
    add_point(file, point(name="timm:unknown", measured_ms=fast / 2))
    add_point(file, point(name="timm:slow", measured_ms=1e6, top1=0.9))
    add_point(file, point(name="timm:elsewhere", device="other", top1=0.99))
    found = shortlist.figures(table, ["latency_ms<=1e5"], file)
    rows = {row["name"]: row for row in found["networks"]}
    assert rows["timm:best"]["mark"] == "front"
    assert rows["timm:best"]["predicted_ms"] is None
    assert rows["timm:best"]["weights"] == "best"
    assert rows["timm:unknown"]["mark"] == "no top-1"
    assert rows["timm:slow"]["over"] == ["latency_ms<=1e5"]
    assert "timm:elsewhere" not in rows
    assert found["points_elsewhere"] == {"timm:elsewhere": "measured with fake fp32, 1 thread(s), on other"}
    published = [row for row in found["networks"] if row["measured_ms"] is None]
    assert not any(row["on_front"] for row in published)  # nowhere better than the point
    assert shortlist.figures(table, (), file)["networks"] == sorted(
        shortlist.figures(table, (), file)["networks"],
        key=lambda row: (shortlist.MARKS.index(row["mark"]), -(row["top1"] or 0), shortlist.latency_ms(row) or 0),
    )
    data = plots.shortlist_data(shortlist.shortlist(table, (), file))
    drawn = plots.plot_shortlist(data)
    front = next(trace for trace in drawn.data if trace.name == "front")
    assert front.x[0] == fast / 2
    assert front.marker.symbol[0] == "square"
    assert "measured" in front.hovertext[0]


def test_the_shortlist_says_what_is_measured(nas, tmp_path):  # noqa: F811
    table, file = calibrated().write(tmp_path / "one.csv"), tmp_path / "points.json"
    add_point(file, point(name="timm:best", measured_ms=1e-3, top1=0.85))
    add_point(file, point(name="timm:far", runtime="torch 2"))
    code, out, _ = nas("shortlist", "--table", table, "--points", file, columns=100)
    assert code == 0
    (line,) = (line.split() for line in out.splitlines() if line.startswith("timm:best"))
    assert line[:5] == ["timm:best", "85.0", "0.001", "front", "measured"]
    assert "most accurate: timm:best, 85.0 % top-1 (as given to nas measure), 0.001 ms measured" in " ".join(
        out.split()
    )
    assert "timm:far is not shown: measured with torch fp32" in " ".join(out.split())
    other = table_of(["efficientformer-l1"], device="second").write(tmp_path / "two.csv")
    code, out, _ = nas("shortlist", "--table", table, "--table", other, "--points", file, columns=120)
    assert code == 0
    (line,) = (line.split() for line in out.splitlines() if line.startswith("timm:best"))
    assert line[-1] == "-"  # on the second table it was not measured


def test_the_report_of_a_run_shows_its_points(tmp_path):
    run, origin = write_run(tmp_path / "run"), RESULT["provenance"]
    same = {key: origin[key] for key in ("runtime", "precision", "threads", "device")}
    add_point(run / "points.json", point(**same, measured_ms=0.4321))
    add_point(run / "points.json", point(name="torchvision:far", top1=0.7))
    html = page.write_report(run).read_text()
    assert SMALL in html
    assert "0.4321" in html or "0.432" in html
    assert "torchvision:far" in html
    assert "measured with fake fp32, 1 thread(s), on testbox" in html
    assert explore(run).data["points"] == [{"run": 0, "name": SMALL, "ms": 0.4321}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a file of points"),
        ("{}", "expected a list of points"),
        ('[{"name": 5}]', "point 0: name: expected str, got 5"),
        (json.dumps([point(top1="85 %")]), "top1: expected a fraction"),
        (json.dumps([point(measured_ms=None)]), "measured_ms: expected float"),
    ],
)
def test_a_file_of_points_that_is_none_is_explained_and_kept(tmp_path, text, message):
    file = tmp_path / "points.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        add_point(file, point())
    assert file.read_text() == text
    with pytest.raises(InputError, match="cannot be read as a file of points"):
        read_points(tmp_path / "nothing.json")
