"""`nas judge`, on networks whose accuracy is made up."""

import json

import pytest

from nas.search import judging
from tests.commands.test_commands import nas  # noqa: F401 - a fixture
from tests.search.fakes import HereWorkers
from tests.small import by_macs, write_truth

SIZE = "size: {of: params}"


@pytest.fixture
def truth(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "Pool", HereWorkers)
    return write_truth(
        tmp_path / "digits.jsonl", by_macs(12), 8, lambda place: (0.80 + place / 100, 0.82 + place / 100)
    )


def test_figures_come_as_json(nas, truth):  # noqa: F811
    code, out, _ = nas("judge", SIZE, "--truth", truth, "--json")
    found = json.loads(out)
    assert code == 0
    assert [each["name"] for each in found["scores"]] == ["params", "macs", SIZE]
    keys = {f"kendall{key}{part}" for key in ("", "_low", "_high") for part in ("", "_band")} | {"name", "seconds"}
    assert all(keys <= set(each) for each in found["scores"])
    assert {"kendall", "kendall_band"} <= set(found["ceiling"])
    params, _, size = found["scores"]
    assert {key: size[key] for key in keys - {"name", "seconds"}} == {
        key: params[key] for key in keys - {"name", "seconds"}
    }


def test_figures_of_all_stand_beside_those_of_the_band_in_80_columns(nas, truth):  # noqa: F811
    code, out, _ = nas("judge", "size", "--truth", truth, columns=80)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "digits.jsonl: 12 networks" in out
    assert "8 of them in the band" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines() if line.startswith(("macs", "size"))]
    assert [row[:7] for row in rows] == [[name, *["1.00", "[1.00,", "1.00]"] * 2] for name in ("macs", "size")] * 2
    assert "a perfect score" in out


def test_an_unknown_score_is_named_with_those_that_there_are(nas, truth):  # noqa: F811
    code, _, err = nas("judge", "naswott", "--truth", truth)
    assert code == 2
    assert "unknown evaluator 'naswott', did you mean 'naswot'" in err
