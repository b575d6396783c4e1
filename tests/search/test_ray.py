"""Candidates on a real Ray cluster of two machines that are processes here: deaths cost no candidate."""

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from optuna.storages import InMemoryStorage

from nas.core.errors import InputError, RunError
from nas.search.executors import load_executor
from nas.search.executors import ray as executor
from nas.search.trials import trials_frame
from nas.search.workers import Plan, Task
from tests.search.fakes import FakeScorer, HereWorkers, ToyEstimator, ToySpace, make_engine, make_study, without_times

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SPACE = ToySpace()


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # actors find these tests
        patch.setenv("RAY_AUTH_MODE", "disabled")
        small = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=small | {"num_gpus": 1})
        made.second = made.add_node(num_cpus=2, object_store_memory=80 * 2**20)
        made.wait_for_nodes()
        patch.setenv(executor.ADDRESS, made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def workers(scorer, *plan):
    return load_executor("ray")(scorer, Plan(*plan), "cpu", lambda stages: None)


def frame_of(pool, trials=10):
    study = make_study(InMemoryStorage(), SPACE, "tpe")
    with pool:
        make_engine(study, SPACE, ToyEstimator(), pool, trials).run()
    return trials_frame(study, "t")


def actors():
    return [
        each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [""])[0] == "ray::Actor.score"
    ]


def after(calls, count, what):
    """Do something once so many candidates have begun."""

    def wait():
        while not calls.is_file() or len(calls.read_text().splitlines()) < count:
            time.sleep(0.01)
        what()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_search_by_one_actor_is_that_by_one_process(cluster):
    scorer = FakeScorer(fail="error", failing=0.2)
    expected = frame_of(HereWorkers(scorer))
    assert without_times(frame_of(workers(scorer, 1))) == without_times(expected)


def test_actors_that_are_killed_cost_no_candidate(cluster, tmp_path):
    calls = tmp_path / "calls"

    def kill():
        for process in actors():
            process.send_signal(signal.SIGKILL)

    thread = after(calls, 4, kill)
    found = frame_of(workers(FakeScorer(seconds=0.5, calls=str(calls)), 2))
    thread.join()
    evaluated = found[found["state"] == "evaluated"]
    assert len(evaluated) == evaluated["arch"].nunique() == 10
    assert "failed" not in set(found["state"])
    assert len({line.split()[1] for line in calls.read_text().splitlines()}) > 2  # processes


def test_a_machine_that_goes_costs_no_candidate(cluster, tmp_path):
    calls = tmp_path / "calls"
    thread = after(calls, 5, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    found = frame_of(workers(FakeScorer(seconds=0.5, calls=str(calls)), 4), 14)
    thread.join()
    cluster.second = cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    evaluated = found[found["state"] == "evaluated"]
    assert len(evaluated) == evaluated["arch"].nunique() == 14
    assert "failed" not in set(found["state"])


def test_parts_of_a_gpu_are_shared_and_what_no_machine_has_is_told(cluster):
    with workers(FakeScorer(), 2, 1, 0.5) as pool:
        assert [outcome.score is not None for outcome in pool.run([Task(n, f"a{n}", 0) for n in range(3)])] == [
            True
        ] * 3
    with pytest.raises(
        InputError, match=r"no machine has the 1 CPUs and 2 GPUs of a worker \(they have 2 and [01]; 2 and"
    ):
        workers(FakeScorer(), 2, 1, 2.0)


def test_what_takes_too_long_is_given_up(cluster):
    with workers(FakeScorer(seconds=60), 1, 1, 0.0, 0.02) as pool:
        (outcome,) = pool.run([Task(0, "a", 0)])
    assert outcome.reason == "it took longer than 0.02 minutes (worker_minutes)"
    assert not outcome.lost


def test_a_machine_with_other_code_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(executor, "installed", lambda: "nas 9.9")
    with (
        workers(FakeScorer(), 1) as pool,
        pytest.raises(RunError, match=r"a machine of the cluster has nas \S+ .* this one nas 9"),
    ):
        list(pool.run([Task(0, "a", 0)]))


def test_an_address_without_a_cluster_is_told(cluster, monkeypatch):
    ray.shutdown()
    monkeypatch.setenv(executor.ADDRESS, "127.0.0.1:1")
    with pytest.raises(InputError, match=r"no cluster at RAY_ADDRESS=127\.0\.0\.1:1"):
        workers(FakeScorer(), 1)
