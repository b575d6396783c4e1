"""Networks side by side: sums against the rows of a table, and what a notebook draws."""

from __future__ import annotations

import dataclasses
import json
import re
from xml.etree import ElementTree

import pytest

import nas
from nas.core.arch import calls_of, steps_of
from nas.core.errors import InputError, MissingLatency
from nas.core.ops import Shape
from nas.networks.building import cost_of
from nas.report import facts
from tests.commands.test_commands import nas as command  # noqa: F401 - a fixture
from tests.small import TINY, fake_table


@pytest.fixture
def archs(rng):
    return list({TINY.sample(rng): None for _ in range(20)})[:3]


def test_stages_sum_what_the_table_says_of_their_blocks(archs):
    table = fake_table(TINY)
    data = nas.compare(*archs, table=table).data
    for each, arch in zip(data["networks"], archs, strict=True):
        latency = table.price(calls_of(arch))
        by_stage: dict[str, float] = {}
        for call, us in latency.blocks:
            by_stage[call.stage] = by_stage.get(call.stage, 0.0) + us
        assert {stage["stage"]: stage["us"] for stage in each["stages"]} == pytest.approx(by_stage)
        total = sum(stage["us"] for stage in each["stages"]) + each["outside_blocks_us"]
        assert total == pytest.approx(latency.total_us) == pytest.approx(1000 * each["predicted_ms"])
        cost = cost_of(arch)
        assert sum(stage["params"] for stage in each["stages"]) == each["params"] == cost.params
        assert sum(stage["macs"] for stage in each["stages"]) == each["macs"] == cost.macs
        shown = facts.in_short(arch)
        assert [stage["width"] for stage in each["stages"][:-1]] == shown["widths"]
        assert data["table"]["this_machine"] is False


def test_widths_are_the_channels_of_the_map_behind_each_block(archs):
    for block, step in zip(facts.describe(archs[0])["blocks"], calls_of(archs[0]), strict=True):
        maps = dict(zip(step.row.unit.gives, step.outputs, strict=True))
        assert block["width"] == (maps["x"].channels if isinstance(maps.get("x"), Shape) else None)
    assert len(facts.describe(archs[0])["blocks"]) <= len(steps_of(archs[0]))


def test_without_a_table_nothing_is_said_of_latency(archs):
    found = nas.compare(*archs)
    assert found.data["table"] is None
    assert all(each["predicted_ms"] is None and each["missing"] == [] for each in found.data["networks"])
    assert "as wide as their MACs" in found._repr_html_()
    assert not any("latency" in line[0] for line in found.costs())


def test_a_network_that_a_table_cannot_price_says_what_is_missing_and_none_is_an_error(archs):
    table = fake_table(TINY)
    other = dataclasses.replace(archs[1], input_shape=(3, 64, 64))
    first, second = nas.compare(archs[0], other, table=table).data["networks"]
    assert first["predicted_ms"] is not None
    assert second["predicted_ms"] is None
    assert set(second["missing"]) == {str(c.row) for c in calls_of(other) if c.row not in table}
    with pytest.raises(MissingLatency, match="lacks"):
        nas.compare(other, other, table=table)


def test_one_network_or_an_unknown_one_is_refused(archs):
    with pytest.raises(InputError, match="two networks or more to compare, got 1"):
        nas.compare(archs[0])
    with pytest.raises(InputError, match="unknown preset 'efficientformer-l9'"):
        nas.compare(archs[0], "efficientformer-l9")


def test_a_notebook_draws_blocks_in_proportion_to_their_latency(archs):
    found = nas.compare(*archs, table=fake_table(TINY))
    html = found._repr_html_()
    tree = ElementTree.fromstring(html.replace("&#9632;", "#"))  # well formed, so nothing of a name is markup
    assert "not this machine" in html
    assert "<script" not in html
    strips = [
        [float(re.search(r"width:([\d.]+)%", box.get("style")).group(1)) for box in line if box.get("title")]
        for line in tree.iter("div")
        if any(child.get("title") for child in line)
    ]
    most = max(sum(block["us"] for block in each["blocks"]) for each in found.data["networks"])
    expected = [[100 * block["us"] / most for block in each["blocks"]] for each in found.data["networks"]]
    assert strips == [pytest.approx(line, abs=1e-3) for line in expected]


def test_the_command_shows_archs_side_by_side(command, archs, tmp_path):  # noqa: F811
    table = fake_table(TINY).write(tmp_path / "t.csv")
    for number, arch in enumerate(archs):
        (tmp_path / f"{number}.json").write_text(arch.to_json())
    names = [str(tmp_path / f"{number}.json") for number in range(2)]
    code, out, _ = command("compare", *names, "--table", table, columns=250)
    assert code == 0
    assert "NOT THIS MACHINE" in out
    stages = [line for line in out.splitlines() if line.startswith(("1 ", "2 ", "3 ", "4 ", "head "))]
    assert len(stages) == 5
    assert "MB4D ratio=2" in stages[0]
    code, out, _ = command("compare", *names, "--table", table, "--json")
    found = json.loads(out)
    assert [each["name"] for each in found["networks"]] == names
    estimate = json.loads(command("estimate", names[0], "--table", table, "--json")[1])
    assert found["networks"][0]["predicted_ms"] == estimate["predicted_ms"]
    assert [b["us"] for b in found["networks"][0]["blocks"]] == [b["us"] for b in estimate["blocks"]]


@pytest.mark.parametrize("arguments", [["efficientformer-l1"], ["efficientformer-l1", "nothing-1"], []])
def test_wrong_names_are_usage_errors(command, arguments):  # noqa: F811
    assert command("compare", *arguments)[0] == 2
