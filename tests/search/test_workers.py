"""Real worker processes: what they do when a candidate ends badly, and when their coordinator does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from nas.core.errors import RunError
from nas.search.executors.local import Pool
from nas.search.trials import record_of
from nas.search.workers import Task
from tests.search.fakes import FakeScorer, Hanging, Killing, ToyEstimator, ToySpace, digits, make_engine, make_study

ROOT = Path(__file__).parents[2]


def pids(calls):
    return [int(line.split()[1]) for line in calls.read_text().splitlines()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_score_as_the_scorer_does_in_processes_of_their_own(tmp_path):
    calls = tmp_path / "calls"
    with Pool(FakeScorer(calls=str(calls)), 2) as pool:
        assert pool.idle == 2
        outcomes = list(pool.run([Task(number, f"arch {number}", 7) for number in range(6)]))
        assert pool.idle == 2
    assert sorted(outcome.key for outcome in outcomes) == list(range(6))
    assert all(outcome.score.value == digits(f"arch {outcome.key} 7") for outcome in outcomes)
    assert len(set(pids(calls)) - {os.getpid()}) == 2
    assert not any(map(is_alive, pids(calls)))


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("nan", "the validation loss is nan"),
        ("error", "ValueError: a shape does not fit"),
        ("memory", "out of memory: no room"),
        ("kill", "ended by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_a_candidate_that_ends_badly_costs_only_itself(fail, reason):
    study = make_study(InMemoryStorage(), ToySpace())
    with Pool(FakeScorer(fail=fail, failing=0.4), 1) as pool:
        make_engine(study, ToySpace(), ToyEstimator(), pool, 8).run()
    records = [record_of(trial) for trial in study.trials]
    assert sum(record.state == "evaluated" for record in records) == 8
    failed = [record for record in records if record.state == "failed"]
    assert failed
    assert all(reason in record.reason for record in failed)


def begun(calls):
    """How often each arch was begun, and in how many processes."""
    found: dict[str, list[str]] = {}
    for line in calls.read_text().splitlines():
        arch, pid = line.split()
        found.setdefault(arch, []).append(pid)
    return {arch: (len(pids), len(set(pids))) for arch, pids in found.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_candidate_whose_worker_is_killed_is_sent_to_a_fresh_one_and_nothing_fails(tmp_path, workers):
    calls, study = tmp_path / "calls", make_study(InMemoryStorage(), ToySpace())
    with Pool(Killing(calls=str(calls), killing=0.5, times=2), workers) as pool:
        make_engine(study, ToySpace(), ToyEstimator(), pool, 6).run()
    records = [record_of(trial) for trial in study.trials]
    assert [record.state for record in records].count("evaluated") == 6
    assert not [record for record in records if record.state == "failed"]
    found = begun(calls)
    assert set(found.values()) == {(1, 1), (3, 3)}
    assert set(found) == {record.arch for record in records if record.state == "evaluated"}


def test_a_candidate_that_always_kills_its_worker_fails_after_three_more_workers_and_only_it(tmp_path):
    calls, study = tmp_path / "calls", make_study(InMemoryStorage(), ToySpace())
    with Pool(Killing(calls=str(calls), killing=0.2, times=99), 2) as pool:
        make_engine(study, ToySpace(), ToyEstimator(), pool, 8).run()
    records = {record.arch: record for record in map(record_of, study.trials) if record.state != "infeasible"}
    failed = {arch for arch, record in records.items() if record.state == "failed"}
    assert failed
    assert begun(calls) == {arch: ((4, 4) if arch in failed else (1, begun(calls)[arch][1])) for arch in begun(calls)}
    assert all("SIGKILL" in records[arch].reason and "sent out 4 times" in records[arch].reason for arch in failed)
    assert all(records[arch].lost for arch in failed)


def test_a_search_ends_when_five_candidates_have_lost_all_their_workers(tmp_path):
    calls, study = tmp_path / "calls", make_study(InMemoryStorage(), ToySpace())
    with (
        Pool(Killing(calls=str(calls), killing=1.0, times=99), 1) as pool,
        pytest.raises(RunError, match=r"5 evaluations and no other failed.*SIGKILL"),
    ):
        make_engine(study, ToySpace(), ToyEstimator(), pool, 8).run()
    assert list(begun(calls).values()) == [(4, 4)] * 5


def test_a_candidate_that_hangs_is_ended_at_its_limit_and_the_next_ones_are_scored(tmp_path):
    calls, now = tmp_path / "calls", [0.0]

    def clock():  # stands still until the one that hangs has begun, and jumps then
        now[0] = max(now[0], 1e6 if calls.exists() and len(begun(calls)) == 2 else 0.0)
        return now[0]

    scorer = Hanging(calls=str(calls), arch="arch 1")
    with Pool(scorer, 1, minutes=5, clock=clock) as pool:
        outcomes = list(pool.run([Task(number, f"arch {number}", 7) for number in range(4)]))
        pids_of_all = pids(calls)
    assert [outcome.score is not None for outcome in outcomes] == [True, False, True, True]
    assert outcomes[1].reason == "it took longer than 5 minutes (worker_minutes)"
    assert not outcomes[1].lost
    assert pids_of_all[0] == pids_of_all[1] != pids_of_all[2] == pids_of_all[3]
    assert not any(map(is_alive, pids_of_all))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_killed_while_idle_is_replaced_and_no_candidate_fails(tmp_path):
    calls = tmp_path / "calls"
    with Pool(FakeScorer(calls=str(calls)), 2) as pool:
        for number in range(4):
            (outcome,) = pool.run([Task(number, f"arch {number}", 7)])
            assert outcome.score is not None, outcome.reason
            victim = pids(calls)[-1]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda pid=victim: not is_alive(pid))
        assert pool.idle == 2
    assert len(set(pids(calls))) == 4


def test_a_worker_that_cannot_even_start_is_a_failure():
    class Local:  # no other process can import it from here
        def __reduce__(self):
            return (os._exit, (3,))

    with Pool(Local(), 1) as pool:
        (outcome,) = pool.run([Task(0, "arch", 0)])
    assert outcome.score is None
    assert "exit code 3" in outcome.reason


def start(tmp_path, **settings):
    """A search in a process of its own, once it has begun to search."""
    import json

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.fakes", json.dumps({"run_dir": str(tmp_path), **settings})],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "searching\n"
    return process


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_coordinator_that_is_killed(tmp_path):
    calls = tmp_path / "calls"
    process = start(tmp_path, workers=2, scorer={"seconds": 600, "calls": str(calls)})
    wait_for(lambda: calls.exists() and len(calls.read_text().splitlines()) == 2)
    workers = pids(calls)
    assert all(map(is_alive, workers))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for(lambda: not any(map(is_alive, workers)))
