from __future__ import annotations

import errno
import json
import random
import re
import subprocess
import sys

import pytest

import search_spaces
from nas import commands
from nas.core import parts
from nas.core.arch import calls_of
from nas.core.remembered import remembered
from nas.core.source import code_of_package
from nas.report import answers
from search_spaces import efficientformer as ef
from tests.small import fake_table


@pytest.fixture
def nas(monkeypatch, capsys):
    """Run the command line in this process: `nas("describe", ...)` gives exit code, standard output and error."""

    def run(*arguments: object, columns: int = 200) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def table_path(tmp_path):
    return fake_table(ef.SMALL, networks=60, error=0.01).write(tmp_path / "fake.csv")


@pytest.fixture
def arch_path(tmp_path, rng):
    path = tmp_path / "arch.json"
    path.write_text(ef.SMALL.sample(rng).to_json())
    return path


def test_describe_prints_the_published_counts(nas):
    code, out, _ = nas("describe", "efficientformer-l1", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["params"] == 12_289_928
    assert facts["macs"] == 1_291_284_736
    assert sum(block["params"] for block in facts["blocks"]) == facts["params"]
    assert sum(block["macs"] for block in facts["blocks"]) == facts["macs"]
    code, out, _ = nas("describe", "efficientformer-l1")
    assert "12.29 M parameters" in out
    assert "1.291 G MACs" in out


def test_estimate_gives_the_latency_with_each_blocks_share(nas, table_path, arch_path):
    code, out, _ = nas("estimate", arch_path, "--table", table_path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["latency_ms"] == facts["predicted_ms"]
    assert facts["predicted_low_ms"] < facts["predicted_ms"] < facts["predicted_high_ms"]
    assert sum(block["us"] for block in facts["blocks"]) == pytest.approx(1000 * facts["latency_ms"])
    assert sum(block["share"] for block in facts["blocks"]) == pytest.approx(1)
    code, out, _ = nas("estimate", arch_path, "--table", table_path)
    assert re.search(r"ms predicted, 90 % between", out)
    assert "NOT THIS MACHINE" in out  # the made-up table's
    assert facts["this_machine"] is False


def test_estimate_fits_a_terminal_and_names_the_table_as_it_was_asked_for(nas, arch_path):
    name = "x86_64-intel-xeon-processor/onnxruntime-fp32-1t-efficientformer-32"
    _, out, _ = nas("estimate", arch_path, "--table", name, columns=80)
    assert max(map(len, out.splitlines())) <= 80
    assert f"{name} was" in " ".join(out.split()) or f"by {name}, measured" in " ".join(out.split())


def test_help_shows_the_way_to_a_network_in_its_order_on_one_screen(nas):
    code, out, _ = nas("--help", columns=80)
    first = out.splitlines()[:30]
    commands = [line.split()[1] for line in first if line.startswith("│") and line.split()[1:2]]
    path = ["spaces", "profile", "validate", "search", "report", "train", "export", "measure"]
    assert code == 0
    assert [command for command in commands if command in path] == path
    assert not [line for line in out.splitlines() if line.startswith("│   ")]  # each command has one line


def test_feasible_says_what_budgets_leave_in_80_columns(nas, table_path):
    asked = ("feasible", "efficientformer-32", "--table", table_path, "--budget", "latency_ms<=p40")
    code, out, error = nas(*asked, "--budget", "params<=1e12", columns=80)
    assert (code, error) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    facts = json.loads(nas(*asked, "--json")[1])
    assert facts["share"] == pytest.approx(0.4, abs=0.03)
    for name in ("smallest", "median", "largest"):
        assert facts[name]["arch"] in out
    assert "params<=1e12: kept by 100 % of all; DOES NOT BIND" in " ".join(out.split())
    assert out.count("binds most") == 1
    code, _, error = nas("feasible", "efficientformer-32", "-t", table_path, "-b", "latency_ms<=0.0001")
    assert code == 2
    assert "is below the smallest architecture" in error


def test_choices_are_held_and_the_side_chosen_by_flags(nas, table_path, tmp_path):
    space = ("efficientformer-32", "--table", table_path, "--budget", "latency_ms<=p40")
    held = ("--fix", "stage1.width=16", "--fix", "stage3.depth=1,3", "--fix", "tail=0")
    facts = json.loads(nas("feasible", *space, *held, "--json")[1])
    part = parts.load("efficientformer-32", fix={"stage1.width": 16, "stage3.depth": [1, 3], "tail": 0})
    assert facts["archs"] == part.count() < search_spaces.load("efficientformer-32").count()
    assert facts["fix"] == {"stage1.width": [16], "stage3.depth": [1, 3], "tail": [0]}
    assert facts["largest"]["choices"]["stage3.depth"] in (1, 3)
    code, _, error = nas("feasible", *space, "--fix", "stage1.wdth=16")
    assert code == 2
    assert "unknown choice 'stage1.wdth', did you mean 'stage1.width'" in error
    code, _, error = nas("feasible", *space, "--fix", "stage1.width")
    assert code == 2
    assert "--fix: expected choices and values such as" in error
    code, _, error = nas("feasible", *space, "--side", "48")
    assert code == 2
    assert "profile it: nas profile efficientformer-32 --side 48" in error
    part = parts.load("efficientformer-32", 48, {"stage1.width": 16, "tail": 0})
    asked = ("profile", "efficientformer-32", "--side", "48", "--fix", "stage1.width=16", "--fix", "tail=0")
    code, out, error = nas(*asked, "--table", str(tmp_path / "t.csv"), "--dry-run", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out)["rows"] == len(part.rows())


def test_settings_of_a_recipe_are_read_as_files_are(nas):
    code, _, err = nas("train", "efficientformer-l1", "-d", "digits", "--set", "lr={a: 1, a: 2}")
    assert code == 2
    assert "--set lr: key 'a' stands there twice" in err


def test_spaces_counts_archs_and_rows(nas):
    code, out, _ = nas("spaces", "--json")
    facts = {item["space"]: item for item in json.loads(out)["spaces"]}
    assert code == 0
    assert facts["efficientformer-32"]["rows"] == len(ef.SMALL.rows()) <= 60
    assert facts["efficientformer"]["archs"] == ef.SPACE.count()


def test_what_was_asked_before_is_answered_without_pytorch(nas, table_path, arch_path):
    known = sorted(name for presets in answers.spaces()["presets"].values() for name in presets)
    questions = [["spaces"], ["tables", table_path], ["describe", arch_path], ["estimate", arch_path, "-t", table_path]]
    first = [nas(*question, "--json") for question in questions]
    remembered(code_of_package()).flush()
    heavy = {"torch", "pandas", "scipy", "optuna", "plotly", "sklearn", "onnxruntime"}
    ask = "import sys; from nas.commands import app; app(sys.argv[1:], standalone_mode=False)"
    code = f"{ask}; print(sorted({heavy} & sys.modules.keys()), file=sys.stderr)"
    for question, (_, out, _) in zip(questions, first, strict=True):
        command = [sys.executable, "-c", code, *map(str, question), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr.strip()) == (out, "[]")
    assert json.loads(first[0][1])["presets"] == known


def test_an_answer_follows_the_files_that_it_is_about(nas, table_path, arch_path, tmp_path):
    question = ("estimate", arch_path, "--table", table_path, "--json")
    first = json.loads(nas(*question)[1])
    other = ef.SMALL.sample(random.Random(7))
    arch_path.write_text(other.to_json())
    assert json.loads(nas(*question)[1])["arch"] == other.id != first["arch"]
    assert json.loads(nas("describe", arch_path, "--json")[1])["arch"] == other.id
    fake_table(ef.SMALL, networks=60, error=0.01, seed=1).write(table_path)
    changed = json.loads(nas(*question)[1])
    assert changed["table_hash"] != first["table_hash"]
    moved = table_path.rename(tmp_path / "moved.csv")
    assert nas(*question)[0] == 2
    again = json.loads(nas(*question[:3], moved, "--json")[1])
    assert again == changed | {"table": str(moved)}
    moved.write_text("hello")
    assert nas(*question[:3], moved)[0] == 2


def test_tables_lists_shipped_and_named_ones_and_says_what_cannot_be_read(nas, table_path, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("hello")
    code, out, _ = nas("tables", table_path, bad, "--json")
    found = {item["table"]: item for item in json.loads(out)["tables"]}
    assert code == 0
    assert found[str(table_path)]["rows"] == len(ef.SMALL.rows())
    assert "no millinas latency table" in found[str(bad)]["error"]


def test_tables_have_a_line_and_a_verdict_each_in_a_terminal_of_80_columns(nas, monkeypatch, tmp_path):
    from dataclasses import replace

    import latency_tables
    from nas.profiling.backends import runtimes
    from nas.tables.table import NetworkEntry, Table

    table = fake_table(ef.SMALL, networks=60, error=0.01)
    unseen = [arch for seed in range(20) if (arch := ef.SMALL.sample(random.Random(500 + seed)))]
    networks = {network.arch for network in table.networks}
    checks = [
        NetworkEntry(arch, table.price(calls_of(arch)).total_us / 1.04, 1.0, 3)
        for arch in dict.fromkeys(unseen)
        if arch not in networks
    ]
    entries = [replace(table.entries[0], source="predicted"), *table.entries[1:]]
    folder = tmp_path / "a-device"
    Table(table.header, entries, table.networks, None, checks).write(folder / "fake-fp32-1t.csv")
    table.write(folder / "fake-fp32-1t-op.csv")
    monkeypatch.setattr(latency_tables, "ROOT", tmp_path)
    code, out, _ = nas("tables", columns=80)
    assert code == 0
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["a-device,"] == "a-device, not this machine"
    assert lines["fake-fp32-1t"].split(None, 1)[1] == "fair: 4.0 % off, intervals fail"
    assert lines["fake-fp32-1t-op"].split(None, 1)[1] == "no card: run nas validate"
    text = " ".join(out.split())
    assert "coreml* (fp32, fp16)" in text
    assert "openvino (fp32, bf16, int8)" in text
    assert (
        "want of an Apple computer with macOS (coreml), an NVIDIA GPU (onnxruntime_cuda, tensorrt, torch_cuda)" in text
    )
    more = nas("tables", "--verbose", columns=80)[1]
    assert all(len(line.rstrip()) <= 80 for line in more.splitlines())
    assert re.search(r"block rows, 1 of them not measured", " ".join(more.split()))
    assert re.search(r"bias \+4\.0 %, 100 % of them off by at most 5 %, Kendall 1\.000, 0 % in", " ".join(more.split()))
    found = json.loads(nas("tables", "--json")[1])
    first = next(item for item in found["tables"] if item["name"] == "a-device/fake-fp32-1t")
    assert first["card"]["bias_percent"] == pytest.approx(4, abs=0.01)
    assert first["unmeasured_rows"] == 1
    assert first["this_machine"] is False
    assert found["untested_runtimes"]["tensorrt"] == "an NVIDIA GPU"
    assert found["runtimes"].keys() == set(runtimes())
    assert found["runtimes"]["ncnn"] == ["fp32", "fp16"]


def test_estimate_tells_memory_and_rows_that_were_not_measured(nas, tmp_path, arch_path):
    from dataclasses import replace

    from nas.tables.table import Table

    table = fake_table(ef.SMALL, networks=8)
    entries = [replace(entry, source="predicted") for entry in table.entries]
    networks = [replace(network, peak_bytes=20_000_000) for network in table.networks]
    path = Table(table.header, entries, networks).write(tmp_path / "t.csv")
    facts = json.loads(nas("estimate", arch_path, "--table", path, "--json")[1])
    assert facts["unmeasured_percent"] == pytest.approx(100)
    assert facts["memory_bytes"] == pytest.approx(20e6, rel=0.1)
    out = nas("estimate", arch_path, "--table", path)[1]
    assert "100.0 % of it rests on rows that were themselves predicted" in out
    assert "of memory at its peak, predicted (held-out error" in out
    assert "no interval known" in out


def test_training_continues_and_its_weights_export(nas, arch_path, tmp_path):
    folder = tmp_path / "run"
    train = ("train", arch_path, "--data", "digits", "--epochs", 1, "--out", folder, "--device", "cpu", "--json")
    code, out, _ = nas(*train)
    facts = json.loads(out)
    assert code == 0
    assert facts["epochs"] == 1
    assert 0.1 < facts["test_accuracy"] <= 1
    again = json.loads(nas(*train)[1])
    assert again["seconds"] == facts["seconds"]  # nothing was trained a second time
    assert again["val_loss"] == facts["val_loss"]
    code, out, _ = nas(
        "export", folder / "arch.json", "--weights", folder / "weights.pt", "-o", tmp_path / "a.onnx", "--json"
    )
    assert code == 0
    assert json.loads(out)["difference"] < 1e-4
    assert (tmp_path / "a.onnx").stat().st_size == json.loads(out)["bytes"]
    tuned = ("--weights", folder, "--limit", 400, "--out", tmp_path / "tuned", "--json")
    started = json.loads(nas("train", arch_path, "--data", "digits", "--epochs", 1, *tuned)[1])["start"]
    assert (started["source"], started["notes"]) == (str(folder / "weights.pt"), [])


def test_weights_are_read_without_executing_code(nas, arch_path, tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    bad = tmp_path / "bad.pt"
    bad.write_bytes(pickle.dumps(Harmful()))
    code, _, err = nas("export", arch_path, "--weights", bad)
    assert code == 2
    assert "cannot be read as a file of weights" in err
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["describe", "efficientformer-l2"],
            2,
            r"unknown preset 'efficientformer-l2', did you mean 'efficientformer-l",
        ),
        (["describe", "nowhere.json"], 2, r"nowhere\.json: cannot be read"),
        (["describe"], 2, r"Missing argument"),
        (["describe", "efficientformer-l1", "--jsn"], 2, r"No such option"),
        (["estimate", "efficientformer-l1", "--table", "nowhere"], 2, r"unknown table 'nowhere'"),
        (["train", "efficientformer-l1", "--data", "digts"], 2, r"unknown dataset 'digts', did you mean 'digits'"),
        (
            ["train", "efficientformer-l1", "--data", "digits", "--set", "lrr=1"],
            2,
            r"unknown recipe field 'lrr', did you",
        ),
        (
            ["train", "efficientformer-l1", "--data", "digits", "--set", "lr=-1"],
            2,
            r"recipe: lr: .*greater than 0, got -1",
        ),
        (["export", "efficientformer-l1", "--format", "onxn"], 2, r"unknown format 'onxn', did you mean 'onnx'"),
        (["profile"], 2, r"which space\? Known: .*, efficientformer, "),
        (["profile", "efficientfromer"], 2, r"unknown space 'efficientfromer', did you mean 'efficientformer'"),
        (
            ["profile", "efficientformer-32", "--runtime", "onyx"],
            2,
            r"unknown runtime 'onyx'",
        ),
        (["report", "nowhere"], 1, r"nowhere"),
        (["search", "nowhere.yaml"], 2, r"nowhere\.yaml"),
        (["search", "--sampler", "tpee"], 2, r"unknown sampler 'tpee', did you mean 'tpe'"),
        (["search", "--budget", "latency<=5"], 2, r"budgets\[0\]"),
    ],
)
def test_errors_name_the_value_and_the_legal_ones(nas, arguments, code, message):
    got, _, err = nas(*arguments)
    assert got == code
    assert re.search(message, err)
    assert "Traceback" not in err


def test_a_table_that_lacks_rows_names_them_and_the_command(nas, table_path):
    code, _, err = nas("estimate", "efficientformer-l1", "--table", table_path)
    assert code == 1
    assert "MissingLatency" in err
    assert "Stem cout=48 convs=2 @ 1x3x224x224" in err
    assert "nas profile --table" in err


def test_every_field_of_a_request_is_a_flag(nas):
    from nas.search.request import Request

    _, out, _ = nas("search", "--help")
    for name in Request.model_fields:
        assert ("--budget" if name == "budgets" else f"--{name.replace('_', '-')}") in out


def test_measuring_beside_an_imported_table_leaves_its_unknown_variant_out(nas, tmp_path, arch_path, monkeypatch):
    from types import SimpleNamespace

    from nas.profiling import profiler

    asked = []

    def measure(arch, *, variant, **others):
        asked.append(variant)
        return SimpleNamespace(
            us=1000.0, spread_us=1.0, count=3, runtime_version="1", device="here", noise=0.0, disturbed=False, text=""
        )

    monkeypatch.setattr(profiler, "measure", measure)
    for variant in ("unknown", "default"):
        path = fake_table(ef.SMALL, variant=variant, method="imported").write(tmp_path / "t.csv")
        assert nas("measure", arch_path, "--table", path, "--json")[0] == 0
    assert asked == [None, "default"]


COMMANDS = ["profile", "search", "describe", "estimate", "measure", "validate", "train", "export", "report", "spaces"]


@pytest.mark.parametrize("command", [*COMMANDS, "tables"])
def test_every_command_explains_itself(nas, command):
    code, out, _ = nas(command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 5
    assert "--json" in out


def test_the_help_names_runtimes_and_does_not_wait_for_pytorch(nas):
    for command in ("profile", "measure", "transfer"):
        assert re.search(r"(?s)onnxruntime, openvino, torch, .*nas tables", nas(command, "--help")[1])
    code = "import sys; from nas import commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_that_of_the_package(nas):
    import nas as package

    assert nas("--version")[1].strip() == f"millinas {package.__version__}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "runs/x"), "runs/x: cannot be written (No space left); make room"),
        (
            OSError(errno.ENOSPC, "No space left"),
            "a file of this command: cannot be written (No space left); make room",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x.csv"),
            "x.csv: Permission denied; see to its permissions",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line_and_no_traceback(nas, monkeypatch, error, said):
    def refuse():
        raise error

    monkeypatch.setattr("nas.report.answers.spaces", refuse)
    code, _, err = nas("spaces")
    assert code == 1
    assert said in err
    assert len(err.splitlines()) == 1
