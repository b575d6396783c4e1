"""A search that is really killed, with its workers, at random moments or as its files grow, and continued by the same
command.
"""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import search_spaces
from nas.profiling.machine import this_machine
from nas.report.front import read_trials
from nas.search.trials import trials_frame
from tests.search.fakes import ToySpace, fake_table, make_study, without_times

ROOT = Path(__file__).parents[2]
TRIALS = 16


def run(run_dir, workers, kills, rng):
    """Start the search again and again until it ends by itself; so many times it is killed after some progress, unless
    it is through before.

    Returns:
        The trials, and the arch of every evaluation that was begun.
    """
    calls, journal = run_dir / "calls", run_dir / "study.journal"
    settings = {"run_dir": str(run_dir), "sampler": "tpe", "trials": TRIALS, "workers": workers}
    command = [sys.executable, "-m", "tests.search.fakes"]
    command.append(json.dumps(settings | {"scorer": {"seconds": 0.02, "calls": str(calls)}}))
    said, killed = "", 0
    while not said:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "searching\n"
            if killed < kills:
                enough = journal.stat().st_size + rng.randrange(1, 12_000)
                while journal.stat().st_size < enough and process.poll() is None:
                    time.sleep(rng.uniform(0.0, 0.01))
                process.send_signal(signal.SIGKILL)
                killed += 1
            said = process.stdout.read()
        assert said or process.returncode == -signal.SIGKILL
    assert said == "done\n"
    assert killed >= min(kills, 2)
    study = make_study(journal, ToySpace(), "tpe")
    assert all(trial.state.is_finished() for trial in study.trials)
    return trials_frame(study, "t"), [line.split()[0] for line in calls.read_text().splitlines()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return run(tmp_path_factory.mktemp("calm"), 1, 0, random.Random(0))


def test_a_killed_run_of_one_worker_is_the_uninterrupted_one(tmp_path, calm):
    frame, begun = run(tmp_path, 1, 5, random.Random(1))
    assert without_times(frame) == without_times(calm[0])
    assert set(begun) == set(calm[1])


def test_a_killed_run_of_two_workers_loses_and_doubles_nothing(tmp_path):
    frame, begun = run(tmp_path, 2, 5, random.Random(2))
    evaluated = frame[frame["state"] == "evaluated"]
    assert len(evaluated) == TRIALS
    assert evaluated["arch"].is_unique
    assert set(evaluated["arch"]) == set(begun)


def size(folder, pattern):
    """Bytes of the files of a run that match, 0 where there is none."""
    sizes = [0]
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def epochs(folder):
    return sum(text.count("\n") - 1 for path in folder.glob("next/*/training.csv") if (text := path.read_text()))


MOMENTS = [
    lambda folder: size(folder, "study.journal") > 6_000,  # in the search
    lambda folder: size(folder, "study.journal") > 15_000,
    lambda folder: size(folder, "next/training-*/arch.json") > 0,  # in the training of the winner
    lambda folder: size(folder, "next/training-*/checkpoint.pt") > 0,
    lambda folder: epochs(folder) > 1,
    lambda folder: size(folder, "next/*/weights.pt") > 0,
    lambda folder: size(folder, "next/best.onnx") > 0,
    lambda folder: size(folder, "best.json") > 0,
]


def whole_run(folder, table, moments):
    """Start a run again and again until it ends by itself; it is killed at each of these moments, once.

    Returns:
        How often it was killed in time.
    """
    command, killed, said = [sys.executable, "-m", "tests.search.whole_run", str(folder), str(table)], 0, ""
    moments = list(moments)
    while not said:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            moment = moments.pop(0) if moments else None
            while moment is not None and process.poll() is None and not moment(folder):
                time.sleep(0.001)
            if moment is not None:
                killed += process.poll() is None
                process.send_signal(signal.SIGKILL)
            said = process.stdout.read()
        assert said or process.returncode == -signal.SIGKILL
    assert said == "done\n"
    return killed


def outcome_of(folder):
    """What two equal runs have in common: everything but times."""
    result = json.loads((folder / "result.json").read_text())
    result["winner"]["training"]["seconds"] = result["provenance"]["seconds"] = result["provenance"]["started"] = None
    trials = without_times(read_trials(folder / "trials.csv"))
    weights = torch.load(folder / "best.pt", weights_only=True)
    files = sorted(path.name for path in folder.iterdir() if path.name != "study.journal.lock")
    return result, trials, {name: value.tolist() for name, value in weights.items()}, files


def test_a_whole_run_that_is_killed_as_its_files_grow_ends_as_if_it_never_was(tmp_path):
    machine = this_machine()
    space = search_spaces.load("efficientformer-32")
    table = fake_table(space, device=machine.slug, cpu=machine.cpu, runtime_version="1").write(tmp_path / "t.csv")
    assert whole_run(tmp_path / "r", table, MOMENTS) >= 3
    killed = (tmp_path / "r").rename(tmp_path / "killed")
    assert whole_run(tmp_path / "r", table, []) == 0
    for one, other in zip(outcome_of(killed), outcome_of(tmp_path / "r"), strict=True):
        assert one == other
