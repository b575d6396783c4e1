"""Trainings that are killed and go on, and trainings of two processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score

from nas.evaluation.data import load_data
from nas.evaluation.metrics import EVAL_BATCH
from tests.evaluation.trainer_process import RECIPES, network, run

ROOT = Path(__file__).parents[2]
MODULE = "tests.evaluation.trainer_process"


def state_of(model) -> dict[str, torch.Tensor]:
    return model.state_dict()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("name", ["convolutions", "tokens"])
def test_a_killed_training_ends_with_the_very_weights_of_an_uninterrupted_one(name, tmp_path):
    command = [sys.executable, "-m", MODULE, name, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == process.stdout.readline() == "epoch\n"
    process.send_signal(signal.SIGKILL)  # somewhere in the third epoch
    process.wait()
    process.stdout.close()
    seen = []
    resumed, result = run(name, tmp_path / "killed", on_epoch=seen.append)
    whole, expected = run(name, tmp_path / "whole")
    assert 0 < len(seen) < RECIPES[name].epochs
    assert_same(state_of(resumed), state_of(whole))
    assert [entry["train_loss"] for entry in result.history] == [entry["train_loss"] for entry in expected.history]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folders of trainings that two processes shared."""
    folder = tmp_path_factory.mktemp("shared")
    names = "plain", "convolutions", "tokens"
    parts = [text for name in names for text in (name, str(folder / name))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MODULE]
    subprocess.run([*launcher, *parts], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_two_processes_train_what_one_does_where_nothing_is_drawn(shared, tmp_path):
    one, result = run("plain", tmp_path)
    together = torch.load(shared / "plain" / "process-0.pt")
    for name, value in state_of(one).items():
        torch.testing.assert_close(together["model"][name], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(together["history"], result.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        assert (ours["images"], ours["steps"]) == (theirs["images"], theirs["steps"])


@pytest.mark.parametrize("rank", [0, 1])
def test_both_processes_report_what_one_finds_in_validation_even_if_there_is_a_batch_for_one_only(rank, shared):
    data = load_data("digits", (1, 16, 16), limit=160)
    assert len(data.val) <= EVAL_BATCH
    found = torch.load(shared / "plain" / f"process-{rank}.pt")
    model = network("plain")
    model.load_state_dict(found["model"])
    logits, labels = [], []
    with torch.no_grad():
        for images, classes in data.val.batches(8):
            logits.append(model.eval()(images))
            labels.append(classes)
    logits, labels = torch.cat(logits), torch.cat(labels)
    last = found["history"][-1]
    assert last["val_accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert last["val_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("name", ["plain", "convolutions", "tokens"])
def test_two_processes_end_with_the_same_weights(name, shared):
    first, second = (torch.load(shared / name / f"process-{rank}.pt") for rank in (0, 1))
    assert_same(first["model"], second["model"])
    assert all(torch.isfinite(value).all() for value in first["model"].values())
    assert [entry["train_loss"] for entry in first["history"]] == [entry["train_loss"] for entry in second["history"]]
