"""A whole small search, looked at from outside: its files, the report, the command line over it."""

from __future__ import annotations

import json

import onnxruntime
import pandas as pd
import pytest
import torch

import nas
from nas.evaluation.runs import read_weights
from nas.networks.building import load_weights
from nas.search.request import Request
from nas.search.run import run_search
from search_spaces import efficientformer as ef

FILES = [
    "report.html",
    "front.csv",
    "best.json",
    "best.onnx",
    "best.pt",
    "best.safetensors",
    "request.yaml",
    "study.journal",
    "result.json",
]


def test_a_search_leaves_everything_behind(finished_run):
    assert [name for name in FILES if not (finished_run / name).is_file()] == []
    assert list(finished_run.glob("*.tmp")) == []


def test_the_winner_fits_predicted_and_measured(finished_run):
    result = json.loads((finished_run / "result.json").read_text())
    (budget,) = result["budgets"]
    winner = result["winner"]
    assert budget["asked"] == "latency_ms<=p40"
    assert winner["predicted_ms"] <= budget["limit"]
    assert winner["measured_ms"] <= budget["limit"]
    table = nas.Table.read(finished_run / "table.csv")
    arch = nas.load_arch(finished_run / "best.json")
    assert arch in ef.SMALL
    assert table.price(nas.calls_of(arch)).total_us == pytest.approx(1000 * winner["predicted_ms"])
    assert result["provenance"]["table_hash"] == table.hash
    assert winner["params"] == nas.cost_of(arch).params


def test_no_candidate_over_the_budget_was_trained(finished_run):
    trials = pd.read_csv(finished_run / "trials.csv")
    limit = json.loads((finished_run / "result.json").read_text())["budgets"][0]["limit"]
    evaluated = trials[trials["state"] == "evaluated"]
    assert len(evaluated) == 4
    assert (evaluated["predicted_ms"] <= limit).all()
    assert evaluated["arch"].is_unique
    assert trials.loc[trials["state"] == "infeasible", "val_loss"].isna().all()


def test_the_exported_network_gives_the_outputs_of_the_saved_weights(finished_run):
    arch = nas.load_arch(finished_run / "best.json")
    model = nas.build(arch)
    load_weights(model, read_weights(finished_run / "best.pt"), "best.pt")
    x = torch.randn(1, *arch.input_shape)
    session = onnxruntime.InferenceSession(str(finished_run / "best.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-4)


def test_the_same_request_again_only_writes_the_report(finished_run):
    before = (finished_run / "trials.csv").read_bytes(), (finished_run / "result.json").read_bytes()
    (finished_run / "report.html").unlink()
    said: list[str] = []
    run_search(Request.read(finished_run / "request.yaml"), log=said.append)
    assert (finished_run / "report.html").is_file()
    assert ((finished_run / "trials.csv").read_bytes(), (finished_run / "result.json").read_bytes()) == before
    assert any("is finished" in line for line in said)
