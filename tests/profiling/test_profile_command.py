"""`nas profile` on the fake runtime, in this process."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from nas import commands
from nas.core.arch import calls_of
from nas.profiling.machine import this_machine
from nas.tables.table import Table, scope_of
from tests.small import TINY, fake_table

WIDER = dataclasses.replace(TINY, classes=20)


@pytest.fixture
def nas(local: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `nas profile` in this process, with two small spaces more; its exit code, output and errors."""
    load, more = search_spaces.load, {"tiny": TINY, "wider": WIDER}
    monkeypatch.setattr(search_spaces, "load", lambda name: more.get(name) or load(name))

    def run(*arguments: object, runtime: str = "fake") -> tuple[int, str, str]:
        short = ("profile", *(("--runtime", runtime) if runtime else ()), "--rounds", 3, "--networks", 6)
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, (*short, *arguments))])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_several_spaces_go_into_one_table_of_the_device(nas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = nas("tiny", "wider")
    assert code == 0, err
    (path,) = Path("latency_tables").glob("*/fake-fp32-1t-32px.csv")
    table = Table.read(path)
    assert table.header.spaces == (scope_of(TINY), scope_of(WIDER))
    assert f"0 of {len(TINY.rows())} rows of {TINY.name} measured; about" in out
    assert "repeatability of rows of 0.1 ms and more: there are none" in out  # the fake runtime is quick
    assert "calibration at 3x32x32" in out
    assert len(table.networks) == 6
    code, out, _ = nas("wider", "-t", path, "--dry-run", "--json")
    assert (code, json.loads(out)["left"]) == (0, 0)


def test_a_budget_says_what_prediction_costs(nas, tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    steps = iter([25])
    monkeypatch.setattr("nas.profiling.profiler._step", lambda rows, bench, clock, seconds: rows[: next(steps, 0)])
    code, out, _ = nas("tiny", "--budget-minutes", 60, "--output", path)
    assert code == 0
    count = sum(entry.source == "predicted" for entry in Table.read(path).entries)
    assert f"{count} rows predicted from 25 measured ones" in out
    assert "% on average in cross-validation; they are " in out
    code, out, _ = nas("tiny", "-t", path, "--json")
    assert (code, json.loads(out)["unmeasured_rows"]) == (0, 0)
    assert json.loads(out)["prediction"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["efficientformer-32", "--precision", "fp13"], "unknown precision 'fp13'"),
        (["efficientformer-32", "--method", "magic"], "unknown method 'magic'"),
    ],
)
def test_wrong_settings_are_named(nas, arguments, message):
    code, _, err = nas(*arguments)
    assert code == 2
    assert message in err


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A table of this machine on the fake runtime, which lacks all rows but one."""
    machine, table = this_machine(), fake_table(TINY, networks=0)
    header = dataclasses.replace(table.header, device=machine.slug, cpu=machine.cpu, spaces=())
    return Table(header, table.entries[:1]).write(tmp_path / "few.csv")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", 2], "threads"),
        (["--precision", "int8"], "unknown precision 'int8'"),
        (["--level", "op"], "level"),
        (["--method", "in-situ"], "unknown method 'in-situ'"),
    ],
)
def test_a_flag_that_contradicts_the_table_is_refused_not_overruled(nas, few, flags, message):
    code, _, err = nas("tiny", "--table", few, *flags, "--dry-run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_another_runtime_than_the_tables_is_refused(nas, few):
    code, _, err = nas("tiny", "--table", few, "--dry-run", runtime="torch")
    assert code == 2
    assert "runtime 'fake'" in err
    assert "'torch'" in err


def test_flags_that_are_left_out_are_the_tables(nas, few):
    code, out, err = nas("tiny", "--table", few, "--dry-run", "--json", runtime="")
    assert code == 0, err
    assert json.loads(out)["rows"] == len(TINY.rows())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tiny", "--bundle", "b", "--budget-minutes", 5], "--budget-minutes: no effect with --bundle"),
        (["tiny", "--host", "pi@board", "--dry-run"], "--dry-run: no effect with --host"),
        (
            ["tiny", "--collect", "b", "--dry-run"],
            "--dry-run, SPACE, --runtime, --rounds, --networks: no effect with --c",
        ),
        (["tiny", "--bundle", "b", "--partial"], "--partial: no effect with --bundle"),
        (["tiny", "--identity", "key"], "--identity: no effect without --collect or --host"),
    ],
)
def test_options_that_would_be_ignored_are_refused(nas, flags, message):
    code, _, err = nas(*flags)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("method", ["transfer", "imported"])
def test_a_table_that_was_not_profiled_is_not_completed(nas, few, method):
    table = Table.read(few)
    Table(dataclasses.replace(table.header, method=method), table.entries).write(few)
    code, _, err = nas("tiny", "--table", few)
    assert code == 2
    assert f"its method is {method}), so it cannot be completed; profile into a new file: nas profile SPACE" in err


def test_a_budget_for_the_rows_of_an_arch_says_nothing_of_typical_networks(nas, tmp_path, monkeypatch):
    arch = max((TINY.sample(random.Random(seed)) for seed in range(20)), key=lambda arch: len(set(calls_of(arch))))
    (tmp_path / "arch.json").write_text(arch.to_json())
    count = len({call.row for call in calls_of(arch)})
    steps = iter([count - 2])
    monkeypatch.setattr("nas.profiling.prediction.LEAST_ROWS", 5)  # the arch has few
    monkeypatch.setattr("nas.profiling.profiler._step", lambda rows, bench, clock, seconds: rows[: next(steps, 0)])
    path = tmp_path / "table.csv"
    code, out, err = nas("tiny", "--arch", tmp_path / "arch.json", "--budget-minutes", 60, "-t", path)
    assert code == 0, err
    assert f"2 rows predicted from {count - 2} measured ones" in out
    assert "typical network" not in out
