from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import search_spaces
from nas.core.arch import calls_of
from nas.core.blocks import InvertedResidual
from nas.core.errors import InputError, MissingLatency, RunError, TableError
from nas.core.files import lock_of
from nas.core.ops import Conv, Row, Shape
from nas.report import facts
from nas.tables.importing import Imported, Origin, import_table
from nas.tables.table import Table

PIXEL = Origin("pixel1", "tflite", "fp32", 1)
BLOCK = "InvertedResidual,cout=24 stride=2 kernel=3 expand=6,1x16x112x112"
ROW = Row(InvertedResidual(24, 2, 3, 6), (Shape(1, 16, 112, 112),))
OFA = """
Conv-input:224x224x3-output:112x112x32: {mean: 3.1}
expanded_conv-input:112x112x16-output:56x56x24-expand:6-kernel:3-stride:2-idskip:0: {count: 20, mean: 7.25, std: 0.5}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:7-stride:1-idskip:1: {mean: 4.5}
expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0: {mean: 2}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:0: {mean: 1}
expanded_conv-input:56x56x24-output:56x56x40-expand:3-kernel:5-stride:1-idskip:1: {mean: 1}
expanded_conv-input:56x56x24-output:27x27x40-expand:3-kernel:5-stride:2-idskip:0: {mean: 1}
expanded_conv-input:56x56x24-output:56x56x24-expand:72-kernel:3-stride:1-idskip:1-se:1-hs:0: {mean: 1}
expanded_conv-input:56x56x24-output:56x56x24-expand:72-kernel:3-stride:1-idskip:1-se:0-hs:1: {mean: 1}
expanded_conv-input:56x56x24-output:56x56x24-expand:72-kernel:3-stride:1-idskip:1-se:0-hs:0: {mean: 1}
Logits-input:7x7x1280-output:1000: {mean: 0.4}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "foreign"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("columns", "values", "us", "spread", "count"),
    [
        ("us", "812.4", 812.4, 0, 0),
        ("ms,spread_ms,count", "0.8,0.01,50", 800, 10, 50),
        ("count,us,spread_us", "7,100,3", 100, 3, 7),
        ("us,spread_ms", "100,0.002", 100, 2, 0),
    ],
)
def test_a_csv_says_its_unit_and_optional_columns_may_be_left_out(tmp_path, columns, values, us, spread, count):
    path = written(tmp_path, f"block,fields,inputs,{columns}\n{BLOCK},{values}\n\n")
    (entry,) = import_table(path, PIXEL, format="csv").table.entries
    assert entry.row == ROW
    assert (entry.us, entry.spread_us, entry.count, entry.source) == (pytest.approx(us), spread, count, "imported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: expected the columns block,fields,inputs and either us or ms, .* got nothing"),
        ("block,fields,inputs\n", "1: expected the columns"),
        ("block,fields,inputs,us,ms\n", "1: expected the columns"),
        ("block,fields,inputs,us,spred_us\n", "1: unknown column 'spred_us', did you mean 'spread_us'"),
        (f"block,fields,inputs,us\n{BLOCK},fast\n", "2, column us: expected a number, got 'fast'"),
        (f"block,fields,inputs,us\n{BLOCK},-1\n", "2, column us: expected a finite number >= 0"),
        (f"block,fields,inputs,us\n{BLOCK},nan\n", "2, column us: expected a finite number"),
        (f"block,fields,inputs,us\n{BLOCK}\n", "2: expected 4 columns, got 3"),
        (f"block,fields,inputs,us\n{BLOCK},1\n{BLOCK},2\n", "3: second row for InvertedResidual"),
        ("block,fields,inputs,us\nInvertedResidul,cout=2,1x3x8x8,1\n", "2: unknown block or op 'InvertedResidul'"),
        ("block,fields,inputs,us\nConv,cin=3 cout=8,1x4x8x8,1\n", "2: Conv .* cannot be built"),
        (f"block,fields,inputs,us\n{BLOCK},1\nConv,cin=3 cout=8,1x3x8x8,1\n", "holds blocks and ops; a table has one"),
        ("block,fields,inputs,us\n", "none of its 0 entries"),
    ],
)
def test_what_cannot_be_read_is_named_by_line(tmp_path, text, message):
    with pytest.raises(TableError, match=f"foreign.*{message}"):
        import_table(written(tmp_path, text), PIXEL, format="csv")


def test_a_csv_of_ops_makes_a_table_of_ops(tmp_path):
    path = written(tmp_path, "block,fields,inputs,us\nConv,cin=3 cout=8 kernel=3 act=relu,1x3x8x8,1\n")
    table = import_table(path, PIXEL, format="csv").table
    assert table.header.level == "op"
    assert table.entries[0].row.unit == Conv(3, 8, 3, act="relu")


def test_only_exact_equivalents_are_taken_from_ofa_and_the_others_listed_with_why(tmp_path):
    found = import_table(written(tmp_path, OFA), PIXEL, format="ofa", unit="ms")
    entries = {entry.row: entry for entry in found.table.entries}
    other = Row(InvertedResidual(24, 1, 7, 3), (Shape(1, 24, 56, 56),))
    assert set(entries) == {ROW, other}
    assert (entries[ROW].us, entries[ROW].spread_us, entries[ROW].count) == (7250, 500, 20)
    assert entries[other].us == 4500
    reasons = [reason for _, reason in found.skipped]
    expected = [
        "not an inverted residual",
        "expansion 1 without",
        "without the input added",
        "with the input added",
        "does not follow from input",
        "squeeze-and-excitation",
        "h-swish",
        "ReLU, InvertedResidual has ReLU6",
        "not an inverted residual",
    ]
    assert len(reasons) == len(expected)
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason


def test_units_are_never_guessed(tmp_path):
    with pytest.raises(InputError, match="do not say it; give --unit us or --unit ms"):
        import_table(written(tmp_path, OFA), PIXEL, format="ofa")
    with pytest.raises(InputError, match="unknown unit 's'"):
        import_table(written(tmp_path, OFA), PIXEL, format="ofa", unit="s")
    with pytest.raises(InputError, match="a CSV says it by its column"):
        import_table(written(tmp_path, f"block,fields,inputs,us\n{BLOCK},1\n"), PIXEL, format="csv", unit="ms")
    with pytest.raises(InputError, match="unknown format 'tsv'"):
        import_table(written(tmp_path, OFA), PIXEL, format="tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected a mapping from layers to their latencies, got list"),
        ("a: [", "cannot be read as YAML"),
        ("Conv-input: 3\n", "expected a mapping with 'mean', got 3"),
        (OFA.replace("7.25", "soon"), "stride:2-idskip:0, mean: expected a number, got 'soon'"),
        ("Conv-input:1x1x1-output:1x1x1: {mean: 1}\n", "none of its 1 entries has an equivalent; first: Conv-input"),
    ],
)
def test_a_yaml_that_cannot_be_read_says_where(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        import_table(written(tmp_path, text), PIXEL, format="ofa", unit="ms")


@pytest.fixture
def whole(tmp_path: Path) -> Table:
    """An imported table of a whole space."""
    rows = search_spaces.load("efficientformer-32").rows()
    lines = [f"{str(row.unit).replace(' ', ',', 1)},{' '.join(map(str, row.inputs))},10" for row in rows]
    lines = [line if line.count(",") == 3 else line.replace(",", ",,", 1) for line in lines]
    path = written(tmp_path, "\n".join(["block,fields,inputs,us", *lines]))
    return import_table(path, PIXEL, format="csv", spaces=["efficientformer-32"]).table


def test_a_table_of_a_whole_space_prices_its_archs_and_says_that_it_was_imported(whole, tmp_path, rng):
    table = Table.read(whole.write(tmp_path / "table.csv"))
    space = search_spaces.load("efficientformer-32")
    arch = space.sample(rng)
    price = table.price(calls_of(arch))
    assert price.total_us == pytest.approx(10 * len(calls_of(arch)))
    assert price.unmeasured_us == pytest.approx(price.total_us)
    assert (table.header.method, table.header.device) == ("imported", "pixel1")
    assert table.header.spaces == ("efficientformer-32",)
    assert table.spaces == (space,)
    found = facts.estimate(arch, table)
    assert found["source"] == "predicted, uncalibrated, from imported rows"
    assert not found["this_machine"]
    assert facts.table_facts(table)["method"] == "imported"


def test_a_space_that_is_not_whole_is_refused(tmp_path):
    path = written(tmp_path, f"block,fields,inputs,us\n{BLOCK},1\n")
    with pytest.raises(MissingLatency, match="Stem"):
        import_table(path, PIXEL, format="csv", spaces=["efficientformer-32"])


def test_the_command_writes_a_table_that_any_process_reads(tmp_path, monkeypatch, capsys):
    from nas import commands

    target = tmp_path / "t.csv"
    asked = ["--device", "pixel1", "--runtime", "tflite", "--precision", "fp32", "--threads", "1", "--unit", "ms"]
    command = ["nas", "import", str(written(tmp_path, OFA)), "--format", "ofa", "-o", str(target)]
    monkeypatch.setattr(sys, "argv", [*command, *asked, "--json"])
    commands.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], len(found["skipped"])) == (2, 9)
    read = f"from nas.tables.table import Table; print(len(Table.read({str(target)!r}).entries))"
    fresh = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert fresh.stdout == "2\n"
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        commands.main()
    assert "--device" in capsys.readouterr().err


def imported(tmp_path: Path, us: float = 1.0) -> Imported:
    """One row."""
    return import_table(written(tmp_path, f"block,fields,inputs,us\n{BLOCK},{us}\n"), PIXEL, format="csv")


def test_a_file_that_cannot_be_written_is_said_with_what_to_do(tmp_path):
    found = imported(tmp_path)
    with pytest.raises(RunError, match=r"cannot be written \(File exists\); make room"):
        found.write(tmp_path / "foreign" / "t.csv")


def test_a_table_that_another_process_writes_is_left_alone(tmp_path):
    target = tmp_path / "t.csv"
    with lock_of(target), pytest.raises(RunError, match=r"t\.csv is in use by process"):
        imported(tmp_path).write(target)
    assert not target.exists()


def test_only_a_table_that_was_imported_is_replaced(tmp_path):
    target = tmp_path / "t.csv"
    imported(tmp_path).write(target)
    imported(tmp_path, 2.0).write(target)
    assert [entry.us for entry in Table.read(target).entries] == [2.0]
    table = Table.read(target)
    Table(replace(table.header, method="chains", sentinel_us=1.0), table.entries).write(target)
    with pytest.raises(InputError, match=r"t\.csv: holds a table that was not imported .*chains.*; name another file"):
        imported(tmp_path).write(target)
    target.write_text("notes\n")
    with pytest.raises(TableError, match="no millinas latency table"):
        imported(tmp_path).write(target)
    assert target.read_text() == "notes\n"
