"""The loop: what is evaluated, what never is, and that a kill changes nothing."""

import json
import math

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nas.core.errors import RunError
from nas.search import engine, samplers
from nas.search.storage import mend_journal
from nas.search.trials import Record, record_of, trials_frame
from tests.search.fakes import (
    FakeScorer,
    HereWorkers,
    ToyEstimator,
    ToySpace,
    digits,
    make_engine,
    make_study,
    without_times,
)

SPACE = ToySpace()
FITTING = [(d, w) for d in SPACE.choices["depth"].values for w in SPACE.choices["width"].values if d * w <= 500]


def searched(trials=20, sampler="random", scorer=None, size=1, storage=None, objectives=1, **more):
    """A study after a search of the toy space, and the workers it used."""
    study = make_study(storage or InMemoryStorage(), SPACE, sampler, objectives=objectives)
    workers = HereWorkers(scorer or FakeScorer(), size)
    make_engine(study, SPACE, ToyEstimator(), workers, trials, **more).run()
    return study, workers


def records(study):
    return [record_of(trial) for trial in study.get_trials()]


def states(study):
    return [record.state for record in records(study)]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sampler", samplers.names())
def test_as_many_candidates_are_evaluated_as_asked_for_and_each_once(sampler, size):
    study, workers = searched(20, sampler, size=size)
    assert states(study).count("evaluated") == 20
    assert len(workers.scored) == len(set(workers.scored)) == 20
    assert all(trial.state is TrialState.COMPLETE for trial in study.get_trials())


@pytest.mark.parametrize("size", [1, 3])
def test_what_exceeds_a_budget_is_never_evaluated(size):
    study, workers = searched(30, size=size)
    evaluated = {tuple(dict(json.loads(text)).values()) for text in workers.scored}
    assert evaluated <= set(FITTING)
    for trial, record in zip(study.get_trials(), records(study), strict=True):
        us = trial.params["depth"] * trial.params["width"]
        assert record.predicted_us == us
        assert trial.constraints == {"latency_ms<=x": pytest.approx(us / 500 - 1)}
        assert (record.state == "infeasible") == (us > 500)
        assert (trial.value == math.inf) == (us > 500)
    assert states(study).count("infeasible") > 5


@pytest.mark.parametrize("size", [1, 3])
def test_an_arch_seen_before_takes_its_score_also_while_that_is_still_computed(size):
    study, _ = searched(35, size=size)
    by_number = dict(zip((trial.number for trial in study.get_trials()), records(study), strict=True))
    repeats = [record for record in by_number.values() if record.state == "duplicate"]
    assert len(repeats) > 5
    for record in repeats:
        first = by_number[record.duplicate_of]
        assert first.state == "evaluated"
        assert (record.arch, record.val_loss) == (first.arch, first.val_loss)


def test_optuna_finds_the_best_of_what_fits():
    study, _ = searched(30)
    evaluated = [record for record in records(study) if record.state == "evaluated"]
    assert study.best_value == min(record.val_loss for record in evaluated)


@pytest.mark.parametrize("sampler", samplers.names())
def test_a_front_has_only_what_was_evaluated_and_nothing_dominates(sampler):
    study, _ = searched(25, sampler, objectives=2)
    points = [(r.val_loss, r.predicted_us / 1000) for r in records(study) if r.state == "evaluated"]
    front = {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {tuple(trial.values) for trial in study.best_trials} == front


def test_a_search_goes_on_where_it_ended_and_a_longer_one_begins_like_a_shorter():
    storage = InMemoryStorage()
    searched(10, storage=storage)
    study, workers = searched(25, storage=storage)
    assert len(workers.scored) == 15
    at_once, _ = searched(25)
    assert without_times(trials_frame(study, "t")) == without_times(trials_frame(at_once, "t"))
    _, workers = searched(25, storage=storage)
    assert workers.scored == []


def test_progress_counts_all_trials():
    seen = []
    study, _ = searched(12, on_trial=seen.append)
    assert [progress.number for progress in seen] == [trial.number for trial in study.get_trials()]
    last = seen[-1]
    assert last.counts == {state: states(study).count(state) for state in last.counts}
    assert last.best == study.best_value


@pytest.mark.parametrize("fail", ["nan", "error", "memory"])
def test_a_candidate_that_fails_is_told_with_its_reason_and_the_search_goes_on(fail):
    study, _ = searched(20, scorer=FakeScorer(fail=fail, failing=0.3))
    failed = [trial for trial in study.get_trials() if trial.state is TrialState.FAIL]
    assert failed
    assert states(study).count("evaluated") == 20
    reasons = {
        "nan": "the validation loss is nan",
        "error": "ValueError: a shape does not fit",
        "memory": "out of memory",
    }
    assert all(reasons[fail] in record_of(trial).reason for trial in failed)


def test_an_arch_that_failed_is_not_tried_again():
    storage, scorer = InMemoryStorage(), FakeScorer(fail="error", failing=0.4)
    _, first = searched(10, scorer=scorer, storage=storage)
    _, then = searched(20, scorer=scorer, storage=storage)
    assert len(first.scored + then.scored) == len(set(first.scored + then.scored)) > 20


@pytest.mark.parametrize("sampler", ["random", "guided"])
def test_what_failed_for_want_of_memory_is_tried_again_once_by_a_later_run(sampler):
    storage, scorer = InMemoryStorage(), FakeScorer(fail="memory", failing=0.3)
    study, first = searched(10, sampler, scorer=scorer, storage=storage)
    lost = {record.arch for record in records(study) if record.state == "failed"}
    assert lost
    assert {first.scored.count(text) for text in first.scored} == {1, 4}
    study, _ = searched(10 + len(lost), sampler, storage=storage)  # there is more memory now
    assert lost <= {record.arch for record in records(study) if record.state == "evaluated"}


def test_what_failed_for_want_of_memory_in_two_runs_is_left_alone():
    storage, scorer = InMemoryStorage(), FakeScorer(fail="memory", failing=0.3)
    for trials in (10, 14, 18, 22):
        study, _ = searched(trials, scorer=scorer, storage=storage)
    lost = [record.arch for record in records(study) if record.lost]
    assert {lost.count(arch) for arch in lost} <= {1, 2}
    assert lost.count(lost[0]) == 2


@pytest.mark.parametrize("size", [1, 3])
def test_a_search_in_which_everything_fails_stops_with_the_reason(size):
    storage = InMemoryStorage()
    with pytest.raises(RunError, match=r"5 evaluations and no other failed.*a shape does not fit"):
        searched(20, scorer=FakeScorer(fail="error", failing=1.0), storage=storage, size=size)
    study, workers = searched(20, storage=storage)  # the cause is repaired
    assert len(workers.scored) == 20
    assert not study.get_trials(states=[TrialState.RUNNING])


def test_a_search_in_which_everything_begins_to_fail_stops():
    storage = InMemoryStorage()

    class Breaks(FakeScorer):
        def __call__(self, arch, seed, on_epoch=None):
            if len(calls) >= 4:
                raise ValueError("the disk is full")
            calls.append(arch)
            return super().__call__(arch, seed)

    calls: list[str] = []
    with pytest.raises(RunError, match=r"20 evaluations in a row failed.*the disk is full"):
        searched(60, scorer=Breaks(), storage=storage)


@pytest.mark.parametrize(("sampler", "size"), [("random", 1), ("random", 3), ("tpe", 1), ("nsga2", 2), ("guided", 2)])
def test_a_search_that_has_evaluated_everything_stops_and_says_so(sampler, size, monkeypatch):
    monkeypatch.setattr(engine, "DRY_AFTER", 200)
    study = make_study(InMemoryStorage(), SPACE, sampler)
    told = make_engine(study, SPACE, ToyEstimator(200), HereWorkers(FakeScorer(), size), 60).run()
    fitting = [pair for pair in FITTING if pair[0] * pair[1] <= 200]
    found = states(study).count("evaluated")
    assert found == len(fitting)
    assert "every network that fits was proposed" in told
    assert f"{found} evaluated" in told
    assert not study.get_trials(states=[TrialState.RUNNING])


def test_a_trial_that_someone_enqueued_is_evaluated_and_a_wrong_one_fails():
    study = make_study(InMemoryStorage(), SPACE)
    study.enqueue_trial({"depth": 3, "width": 48, "dead": "a"})
    study.enqueue_trial({"width": 17})
    workers = HereWorkers(FakeScorer())
    make_engine(study, SPACE, ToyEstimator(), workers, 3).run()
    assert dict(json.loads(workers.scored[0])) == {"depth": 3, "width": 48}
    assert study.trials[1].state is TrialState.FAIL
    assert "17" in record_of(study.trials[1]).reason
    assert states(study).count("evaluated") == 3


def test_an_arch_that_cannot_be_priced_fails_with_its_reason():
    from nas.core.errors import MissingLatency

    class Lacks(ToyEstimator):
        def estimate(self, arch):
            if dict(arch.params)["width"] == 32:
                raise MissingLatency("lacks a row of 32")
            return super().estimate(arch)

    study = make_study(InMemoryStorage(), SPACE)
    make_engine(study, SPACE, Lacks(), HereWorkers(FakeScorer()), 10).run()
    failed = [trial for trial in study.get_trials() if trial.state is TrialState.FAIL]
    assert {trial.params["width"] for trial in failed} == {32}
    assert all(record_of(trial).reason == "lacks a row of 32" for trial in failed)


class Kill(BaseException):
    """Stands for kill -9: nothing catches it."""


class DyingBackend(JournalFileBackend):
    """A journal whose process dies while it writes a certain entry, leaving a part of the line."""

    def __init__(self, path, writes):
        super().__init__(path)
        self.path, self.writes = path, writes

    def append_logs(self, logs):
        self.writes -= 1
        if self.writes == 0:
            with open(self.path, "ab") as file:
                file.write(json.dumps(logs[0]).encode()[: 3 + hash(str(logs[0])) % 40])
            raise Kill
        super().append_logs(logs)


@pytest.mark.parametrize("writes", [3, 7])
@pytest.mark.parametrize(
    ("sampler", "objectives"),
    [("random", 1), ("tpe", 1), ("tpe", 2), ("nsga2", 2), ("guided", 1), ("guided", 2), ("evolution", 1), ("local", 1)],
)
def test_a_search_killed_again_and_again_is_the_uninterrupted_one(tmp_path, sampler, objectives, writes):
    path = str(tmp_path / "study.journal")
    scored, kills = [], 0
    while True:
        mend_journal(tmp_path / "study.journal")
        workers = HereWorkers(FakeScorer(fail="error", failing=0.2))
        try:
            storage = JournalStorage(DyingBackend(path, writes + kills % 3))
            study = make_study(storage, SPACE, sampler, objectives=objectives)
            make_engine(study, SPACE, ToyEstimator(), workers, 26).run()
        except Kill:
            kills += 1
            continue
        finally:
            scored += workers.scored
        break
    assert kills > 5
    expected, calm = searched(
        26,
        sampler,
        FakeScorer(fail="error", failing=0.2),
        objectives=objectives,
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "calm"))),
    )
    assert without_times(trials_frame(study, "t")) == without_times(trials_frame(expected, "t"))
    assert set(scored) == set(calm.scored)


@pytest.mark.parametrize("writes", [8])
def test_killed_with_several_workers_nothing_is_lost_or_evaluated_twice(tmp_path, writes):
    path = str(tmp_path / "study.journal")
    known: dict[str, float] = {}
    for kills in range(1000):
        mend_journal(tmp_path / "study.journal")
        try:
            storage = JournalStorage(DyingBackend(path, writes + kills % 5))
            study = make_study(storage, SPACE, "tpe")
            make_engine(study, SPACE, ToyEstimator(), HereWorkers(FakeScorer(), 3), 25).run()
        except Kill:
            mend_journal(tmp_path / "study.journal")
            now = told(path)
            assert known.items() <= now.items()
            known = now
            continue
        break
    assert kills > 5
    assert states(study).count("evaluated") == len(told(path)) == 25
    assert not study.get_trials(states=[TrialState.RUNNING])


def told(path) -> dict[str, float]:
    """Score of every evaluated arch in a journal; an arch that was evaluated twice is an error."""
    storage = JournalStorage(JournalFileBackend(path))
    if not storage.get_all_studies():
        return {}
    study = optuna.load_study(study_name="test", storage=storage)
    found: dict[str, float] = {}
    for trial in study.get_trials(states=[TrialState.COMPLETE]):
        record = record_of(trial)
        if record.state == "evaluated":
            assert record.arch not in found
            found[record.arch] = record.val_loss
    return found


def test_a_record_survives_its_plain_form():
    record = Record("evaluated", arch="a" * 12, predicted_us=1.5, params=0, macs=7, value=0.0, score="made_up")
    assert Record.of_data(json.loads(json.dumps(record.as_data()))) == record
    assert Record("infeasible", predicted_us=2000.0).values(2) == [math.inf, 2.0]


def test_scores_come_from_the_scorer():
    study, _ = searched(5)
    for trial, record in zip(study.get_trials(), records(study), strict=True):
        if record.state == "evaluated":
            text = json.dumps([["depth", trial.params["depth"]], ["width", trial.params["width"]]])
            assert trial.value == record.val_loss == digits(f"{text} 0")
