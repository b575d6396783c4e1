"""Trainings of supernets: killed and continued, shared by two processes, refused."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.core.errors import InputError, RunError
from nas.core.files import lock
from nas.evaluation import supernet as module
from nas.evaluation.data import load_data
from nas.evaluation.metrics import TrainingDiverged, evaluate
from nas.evaluation.recalibration import recalibrate
from nas.evaluation.supernet import CHECKPOINT, FILE, Plan, read_supernet
from nas.networks.building import build
from nas.networks.supernet import Supernet
from tests.evaluation.supernet_process import PLAIN, RECIPE, STEPS, run, space_of
from tests.small import TINY

ROOT = Path(__file__).parents[2]
MODULE = "tests.evaluation.supernet_process"


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def weights_of(found):
    return dict(read_supernet(Path(found["file"]), found["hash"]).weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed training finds."""
    return run(tmp_path_factory.mktemp("whole"))


def test_a_killed_training_ends_with_the_very_weights_of_an_undisturbed_one(whole, tmp_path):
    command = [sys.executable, "-m", MODULE, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert (tmp_path / CHECKPOINT).is_file()
    assert not (tmp_path / FILE).is_file()
    steps = []
    found = run(tmp_path, progress=lambda done, *rest: steps.append(done))
    assert 0 < len(steps) < STEPS  # it went on
    assert_same(weights_of(found), weights_of(whole))
    assert found["hash"] == whole["hash"]
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_training_that_is_done_is_only_looked_at(whole, monkeypatch):
    monkeypatch.setattr(module._Training, "run", lambda *args: pytest.fail("it trains"))
    assert run(Path(whole["file"]).parent) == whole


def test_training_moves_weights_towards_the_data(whole):
    """What a network reaches with its slice, recalibrated, is beyond what it does with the first weights."""
    data = load_data("digits", TINY.input_shape, limit=80)
    losses = []
    for supernet in (Supernet.fresh(TINY, seed=3), read_supernet(Path(whole["file"]), whole["hash"])):
        network = build(TINY.arch({name: choice.values[0] for name, choice in TINY.choices.items()}))
        network.load_state_dict(supernet.slices(network.arch), strict=False)
        recalibrate(network, data.train, 64)
        losses.append(evaluate(network, data.train).loss)
    assert losses[1] < losses[0] - 0.1


def test_two_processes_train_what_one_does_where_nothing_is_drawn(tmp_path):
    told = []
    found = run(tmp_path / "two", PLAIN, processes=2, progress=lambda *stage: told.append(stage))
    together, alone = weights_of(found), weights_of(run(tmp_path / "one", PLAIN))
    fresh = Supernet.fresh(space_of(PLAIN), seed=3).weights
    assert together.keys() == alone.keys() == fresh.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-5)
    assert max((weight - fresh[name]).abs().max() for name, weight in alone.items()) > 0.01
    assert told[-1][:2] == (4, 4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [FILE, "training.lock"]


def test_what_one_of_several_processes_raises_ends_all(tmp_path):
    with pytest.raises(InputError, match="batch_size 17 is no multiple of the 2 parts"):
        run(tmp_path, Plan(RECIPE.model_copy(update={"batch_size": 17}), STEPS), processes=2)
    with pytest.raises(InputError, match="minutes: several processes train for a number of steps"):
        run(tmp_path, Plan(RECIPE, STEPS, minutes=1), processes=2)


@pytest.mark.parametrize("distill", [False, True])
def test_a_sandwich_trains_the_largest_and_the_smallest_at_every_step(distill, tmp_path):
    first, last = ({name: c.values[end] for name, c in TINY.choices.items()} | {"tail": 0} for end in (0, -1))
    ends = TINY.arch(last), TINY.arch(first)
    found = run(tmp_path, Plan(RECIPE, 2, children=2, sandwich=ends, distill=distill))
    before, after = Supernet.fresh(TINY, seed=3).slices(ends[0]), weights_of(found)
    changed = Supernet(TINY.name, after, Supernet.fresh(TINY, seed=3).sizes).slices(ends[0])
    assert [name for name in before if torch.equal(before[name], changed[name])] == []


def test_a_training_by_the_clock_ends_and_says_how_many_steps_it_took(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    found = run(tmp_path, Plan(RECIPE, 1, minutes=1.0), checkpoint_seconds=1e9)
    assert found["steps"] == 6  # of ten seconds each


def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_step(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"loss of the supernet is (nan|inf) in step \d+, with \w+; try a lower"):
        run(tmp_path, Plan(RECIPE.model_copy(update={"lr": 1e20, "warmup_fraction": 0.0}), STEPS))
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (Plan(RECIPE.model_copy(update={"ema_decay": 0.9}), STEPS), "recipe: ema_decay is 0.9"),
        (Plan(RECIPE, STEPS, distill=True), "distill: .* set sandwich, too"),
        (Plan(RECIPE.model_copy(update={"batch_size": 1000}), STEPS), "batch_size 1000 exceeds"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(plan, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        run(tmp_path, plan)


def test_a_checkpoint_of_another_training_is_refused(whole, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(Path(whole["file"]).read_bytes())
    with pytest.raises(InputError, match=r"checkpoint of another training: .*training.steps is 12 there, 13 here"):
        run(tmp_path, Plan(RECIPE, STEPS + 1))
    (tmp_path / CHECKPOINT).write_bytes(b"PK")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        run(tmp_path)


def test_two_trainings_in_one_folder_at_once_are_refused(tmp_path):
    with lock(tmp_path / "training.lock", tmp_path), pytest.raises(RunError, match="in use by process"):
        run(tmp_path)


def test_a_file_that_is_gone_or_another_is_told(whole, tmp_path):
    file = tmp_path / FILE
    with pytest.raises(InputError, match="is gone; put it back"):
        read_supernet(file, whole["hash"])
    file.write_bytes(Path(whole["file"]).read_bytes()[:-1])
    with pytest.raises(InputError, match="not the supernet that scores rest on"):
        read_supernet(file, whole["hash"])
