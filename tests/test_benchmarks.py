"""Every benchmark runs to its end, in small; how fast is not asked here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import search_spaces
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


def run_pricing(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 20)


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
    "pricing": (run_pricing, {}),
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
