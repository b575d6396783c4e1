"""A search that is really killed, with its workers, at random moments, and continued by the same command."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.search.trials import trials_frame
from tests.search.fakes import ToySpace, make_study, without_times

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
