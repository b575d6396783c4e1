"""Rungs: who goes on and who stops, by hand and by chance; searches of several rungs, killed, dry, failing."""

import json
import math
import random

import numpy as np
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nas.core.errors import RunError
from nas.evaluation.evaluators import Score
from nas.search import engine, rungs, samplers
from nas.search.rungs import CHANCE, PAIRS, Going, Rungs, noise_of
from nas.search.samplers._context import History
from nas.search.storage import mend_journal
from nas.search.trials import SO_FAR, record_of, trials_frame
from tests.search.fakes import (
    HereWorkers,
    ToyEstimator,
    ToySpace,
    any_of,
    digits,
    make_engine,
    make_study,
    without_times,
)
from tests.search.test_engine import DyingBackend, Kill

SPACE = ToySpace()
TITLES = ("cheap", "short", "long")


class Level:
    """A rung: a value that is that of the last one and some noise of its own.

    Args:
        rung: which one.
        noise: how much of it, larger below.
        calls: gets the arch of every call.
        fails: of an arch at this rung.
    """

    def __init__(self, rung, noise=0.3, calls=None, fails=lambda arch: False):
        self.rung, self.noise, self.calls, self.fails = rung, noise, calls, fails

    def __call__(self, arch, seed, on_epoch=None):
        if self.calls is not None:
            self.calls.append((arch, self.rung))
        if self.fails(arch):
            raise ValueError("a shape does not fit")
        value = digits(arch) + self.noise * (2 - self.rung) * digits(f"{arch} {self.rung}")
        return Score(100 * self.rung + value, TITLES[self.rung], seconds=1.0 + self.rung, cost="none")


def levels(calls=None, fails=(), noise=0.3):
    """Three rungs; at those in `fails` the archs that a text decides have no value."""
    tried = {rung: (lambda arch, rung=rung: digits(f"{arch} fails {rung}") < fails[rung]) for rung in dict(fails)}
    return tuple(Level(rung, noise, calls, tried.get(rung, lambda arch: False)) for rung in range(3))


def searched(trials=40, sampler="random", size=1, storage=None, objectives=1, scorers=None, limit_us=5000, **more):
    """A study after a search of three rungs in the toy space."""
    context = any_of(SPACE, objectives)
    object.__setattr__(context, "rungs", 3)
    study = make_study(storage or InMemoryStorage(), SPACE, sampler, objectives=objectives, context=context)
    workers = HereWorkers(scorers or levels(), size)
    more = {"rungs": 3, "front": objectives == 2} | more
    told = make_engine(study, SPACE, ToyEstimator(limit_us), workers, trials, **more).run()
    return study, told


def own(study):
    """Records of the candidates that have a score of the first rung."""
    found = {trial.number: record_of(trial) for trial in study.get_trials()}
    return {number: record for number, record in found.items() if record.rungs and record.state != "duplicate"}


def at(records, rung):
    return {number: record.rungs[rung] for number, record in records.items() if len(record.rungs) > rung}


# who goes on


def play(mine, values, front=False, latency=(0.0,)):
    """Let candidates come one after the other through two rungs, one at work at a time; who went on, in order."""
    went = []
    for number, value in enumerate(values):
        mine.scored(number, 0, value, latency[number % len(latency)])
        while True:
            mine.stops(len(values) - number - 1)
            going = mine.next(len(values) - number - 1)
            if going is None:
                break
            mine.sent(going)
            mine.scored(going.number, 1, value)
            went.append(going)
    return went


@pytest.fixture
def no_chance(monkeypatch):
    monkeypatch.setattr(rungs, "CHANCE", 0.0)


def test_a_candidate_goes_on_as_soon_as_it_stands_in_the_best_third(no_chance):
    went = play(Rungs(2), [5.0, 3.0, 4.0, 9.0, 1.0, 2.0, 8.0, 7.0, 6.0])
    assert went == [Going(1, 1, False), Going(4, 1, False), Going(5, 1, False)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 4, 9, 50])
def test_in_the_end_the_best_third_rounded_up_went_on_whatever_the_order(no_chance, seed, count):
    values = random.Random(seed).sample(range(1000), count)
    mine = Rungs(2)
    went = {going.number for going in play(mine, values)}
    best = sorted(range(count), key=values.__getitem__)[: math.ceil(count / 3)]
    assert set(best) <= went
    assert not mine.waiting()


@pytest.mark.parametrize("seed", range(3))
def test_nobody_stops_who_could_still_be_in_the_best_third(no_chance, seed):
    values = random.Random(seed).sample(range(1000), 30)
    mine, stopped = Rungs(2), []
    for number, value in enumerate(values):
        mine.scored(number, 0, value)
        now = mine.stops(29 - number)
        for each in now:  # at least ten better ones are there already
            assert sum(other < values[each] for other in values[: number + 1]) >= 10
        stopped += now
    assert len(stopped) > 5


def test_who_fails_gives_its_place_to_the_next_best(no_chance):
    mine, values = Rungs(2), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    for number, value in enumerate(values):
        mine.scored(number, 0, value)
    sent = []
    while (going := mine.next(0)) is not None:
        assert mine.stops(0) == []
        mine.sent(going)
        sent.append(going.number)
        if going.number in (0, 2):
            mine.failed(going.number, 1)
        else:
            mine.scored(going.number, 1, 0.0)
    assert sent == [0, 1, 2, 3]
    assert mine.stops(0) == [4, 5]


def test_a_tenth_of_the_others_goes_on_by_chance_the_same_with_the_same_seed():
    values = random.Random(0).sample(range(10_000), 600)
    one, again, other = (play(Rungs(2, seed=seed), values) for seed in (1, 1, 2))
    by_chance = {going.number for going in one if going.by_chance}
    assert one == again
    assert by_chance != {going.number for going in other if going.by_chance}
    others = 600 - sum(not going.by_chance for going in one)
    assert abs(len(by_chance) - CHANCE * others) < 3 * math.sqrt(CHANCE * others)
    best = set(sorted(range(600), key=values.__getitem__)[:200])
    assert not by_chance & best


def test_noise_is_that_of_a_line_with_known_errors_in_the_unit_of_the_first_rung():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 50.0, 20_000)
    first = 7.0 + truth / 10
    second = truth + rng.normal(0, 3.0, len(truth))  # 3 of the second are 0.3 of the first
    assert noise_of(list(zip(first, second, strict=True))) == pytest.approx(0.3, rel=0.02)
    chosen = first < np.quantile(first, 1 / 3)  # as the best third is
    assert noise_of(list(zip(first[chosen], second[chosen], strict=True))) == pytest.approx(0.3, rel=0.03)


def test_noise_is_not_known_of_few_of_constants_and_of_a_rung_that_errs():
    pairs = [(float(x), 2.0 * x) for x in range(PAIRS)]
    assert noise_of(pairs) == pytest.approx(0.0, abs=1e-9)
    assert noise_of(pairs[1:]) == math.inf
    assert noise_of([(1.0, y) for _, y in pairs]) == math.inf
    assert noise_of([(x, -y) for x, y in pairs]) == math.inf


def test_on_the_way_to_a_front_who_is_dominated_beyond_noise_stops(no_chance):
    mine = Rungs(2, front=True)
    for number in range(PAIRS):  # value falls as latency grows: all on the front
        mine.scored(number, 0, 10.0 - number, latency=float(number))
        assert mine.stops(5) == []
        going = mine.next(5)
        mine.sent(going)
        mine.scored(number, 1, 10.0 - number + (0.5 if number % 2 else -0.5))
    sigma = mine.sigma(0)
    assert 0.3 < sigma < 1.0
    slower, front_value = 3.5, 7.0  # number 3 is faster than this
    mine.scored(100, 0, front_value + 1.9 * sigma, latency=slower)
    mine.scored(101, 0, front_value + 2.1 * sigma, latency=slower)
    mine.scored(102, 0, front_value + 2.1 * sigma, latency=0.0 - 1)  # faster than all
    assert mine.stops(2) == [101]
    assert {mine.next(2).number} <= {100, 102}


# searches


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sampler", samplers.names())
def test_of_as_many_candidates_as_asked_for_the_best_third_goes_on_rung_by_rung(sampler, size):
    calls: list[tuple[str, int]] = []
    study, told = searched(40, sampler, size, scorers=levels(calls))
    records = own(study)
    assert told == ""
    assert len(calls) == len(set(calls))
    assert [len(at(records, rung)) for rung in range(3)] == [
        sum(rung == each for _, each in calls) for rung in range(3)
    ]
    assert len(records) == 40
    for rung in range(2):
        here, there = at(records, rung), at(records, rung + 1)
        best = sorted(here, key=lambda number: here[number].value)[: math.ceil(len(here) / 3)]
        assert set(best) <= set(there)
        assert not {number for number in best if there[number].by_chance}
        assert len(best) <= len(there) < len(here)
    for record in records.values():
        assert record.state == ("evaluated" if len(record.rungs) == 3 else "stopped")
        assert record.value == (record.rungs[2].value if len(record.rungs) == 3 else None)
    assert all(trial.state.is_finished() for trial in study.get_trials())


def test_optuna_reads_a_stopped_candidate_as_pruned_with_its_rungs_as_intermediate_values():
    study, _ = searched(40)
    for trial in study.get_trials():
        record = record_of(trial)
        if record.rungs:
            steps = {step: rung.value for step, rung in enumerate(record.rungs)}
            assert trial.intermediate_values == steps
            done = record.value is not None
            assert trial.state is (TrialState.COMPLETE if done else TrialState.PRUNED)
            assert trial.value == steps[max(steps)]
    states = [trial.state for trial in study.get_trials()]
    assert {TrialState.COMPLETE, TrialState.PRUNED} == set(states)
    assert study.best_value == min(r.value for r in own(study).values() if r.value is not None)


@pytest.mark.parametrize("sampler", samplers.names())
def test_a_front_takes_several_rungs_too_and_optuna_reads_it(sampler):
    study, told = searched(60, sampler, objectives=2, scorers=levels(noise=0.02))
    records = own(study)
    counts = [len(at(records, rung)) for rung in range(3)]
    assert told == ""
    assert counts[0] == 60
    assert PAIRS <= counts[2] <= counts[1] < 60
    points = [(r.value, r.predicted_us / 1000) for r in records.values() if r.state == "evaluated"]
    front = {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {tuple(trial.values) for trial in study.best_trials} == front
    stopped = [trial for trial in study.get_trials() if trial.state is TrialState.PRUNED]
    assert stopped
    assert all(trial.values is None for trial in stopped)
    best = min(records.values(), key=lambda record: record.rungs[0].value)
    assert len(best.rungs) > 1


def test_a_repeat_of_a_candidate_that_stopped_is_not_evaluated_again():
    study, _ = searched(50)
    by_number = {trial.number: record_of(trial) for trial in study.get_trials()}
    repeats = [record for record in by_number.values() if record.state == "duplicate"]
    assert len(repeats) > 5
    for record in repeats:
        first = by_number[record.duplicate_of]
        assert record.arch == first.arch
        assert record.rungs == first.rungs[: len(record.rungs)]
        assert record.value in (None, first.value)


def test_the_table_of_trials_has_the_rungs_and_survives_its_file(tmp_path):
    from nas.report.front import read_trials

    study, _ = searched(30)
    frame = trials_frame(study, "t")
    frame.to_csv(tmp_path / "trials.csv", index=False)
    again = read_trials(tmp_path / "trials.csv").set_index("number")
    assert set(frame["state"]) <= {"evaluated", "stopped", "duplicate"}
    for number, record in own(study).items():
        row = again.loc[number]
        assert row["state"] == record.state
        for index, rung in enumerate(record.rungs):
            assert (row[f"rung.{index}.value"], row[f"rung.{index}.score"]) == (pytest.approx(rung.value), rung.score)
            assert row[f"rung.{index}.seconds"] == rung.seconds
            assert row[f"rung.{index}.by_chance"] == str(rung.by_chance)


@pytest.mark.parametrize("size", [1, 3])
def test_candidates_that_fail_at_a_rung_keep_what_they_reached_and_others_take_their_place(size):
    study, told = searched(40, size=size, scorers=levels(fails={0: 0.2, 1: 0.3, 2: 0.3}))
    everyone = [record_of(trial) for trial in study.get_trials()]
    failed = [record for record in everyone if record.state == "failed" and "fits" not in record.reason]
    assert told == ""
    assert {len(record.rungs) for record in failed} >= {0, 1}
    records = own(study)
    assert len(records) == 40
    for rung in range(2):
        passed = len(at(records, rung + 1))
        assert passed >= math.ceil(len(at(records, rung)) / 3)


def test_a_rung_in_which_everything_fails_ends_the_search_and_the_repaired_one_goes_on_from_there():
    storage, calls = InMemoryStorage(), []
    with pytest.raises(RunError, match=r"5 evaluations of rung 2 and no other failed.*a shape does not fit"):
        searched(40, storage=storage, scorers=levels(calls, fails={1: 1.0}))
    before = {arch for arch, rung in calls if rung == 0}
    study, _ = searched(40, storage=storage, scorers=levels(calls))
    first = [arch for arch, rung in calls if rung == 0]
    assert before < set(first)
    assert len(first) == len(set(first)) == 40
    assert any(record.state == "evaluated" for record in own(study).values())


@pytest.mark.parametrize("size", [1, 3])
def test_a_space_that_runs_dry_ends_with_its_best_third_at_the_next_rung(size, monkeypatch):
    monkeypatch.setattr(engine, "DRY_AFTER", 200)
    study, told = searched(90, size=size, limit_us=200)
    records = own(study)
    fitting = {(d, w) for d in SPACE.choices["depth"].values for w in SPACE.choices["width"].values if d * w <= 200}
    assert len(records) == len(fitting)
    assert "every network that fits was proposed" in told
    assert len(at(records, 1)) >= math.ceil(len(fitting) / 3)
    assert all(trial.state.is_finished() for trial in study.get_trials())


def test_when_the_time_is_up_who_waits_is_stopped_and_one_candidate_reaches_the_last_rung():
    study, told = searched(40, is_over=lambda: True)
    records = own(study)
    assert [len(at(records, rung)) for rung in range(3)] == [1, 1, 1]
    assert "the time is needed" in told
    scored: list[tuple[str, int]] = []
    study, _ = searched(40, scorers=levels(scored), is_over=lambda: any(rung == 2 for _, rung in scored))
    assert all(trial.state.is_finished() for trial in study.get_trials())
    assert {record.state for record in own(study).values()} == {"evaluated", "stopped"}


def test_a_longer_search_goes_on_from_a_shorter_one():
    storage, calls = InMemoryStorage(), []
    searched(20, storage=storage, scorers=levels(calls))
    study, _ = searched(40, storage=storage, scorers=levels(calls))
    records = own(study)
    assert len(calls) == len(set(calls))
    assert len(records) == 40
    assert len(at(records, 1)) >= 10


@pytest.mark.parametrize(("sampler", "objectives"), [("random", 2), ("guided", 1), ("tpe", 1)])
def test_a_search_of_rungs_killed_again_and_again_is_the_uninterrupted_one(tmp_path, sampler, objectives):
    path, fails = str(tmp_path / "study.journal"), {1: 0.2}
    calls: list[tuple[str, int]] = []
    kills = 0
    while True:
        mend_journal(tmp_path / "study.journal")
        try:
            storage = JournalStorage(DyingBackend(path, 6 + kills % 3))
            study, _ = searched(
                24, sampler, storage=storage, objectives=objectives, scorers=levels(calls, fails), limit_us=500
            )
        except Kill:
            kills += 1
            continue
        break
    assert kills > 5
    calm_calls: list[tuple[str, int]] = []
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "calm")))
    expected, _ = searched(
        24, sampler, storage=storage, objectives=objectives, scorers=levels(calm_calls, fails), limit_us=500
    )
    assert without_times(trials_frame(study, "t")) == without_times(trials_frame(expected, "t"))
    assert set(calls) == set(calm_calls)
    assert len(calls) - len(calm_calls) <= kills  # no more than what was at work is done again


def test_killed_with_several_workers_no_score_of_a_rung_is_lost_or_computed_twice(tmp_path):
    path, known, kills = str(tmp_path / "study.journal"), dict[tuple[int, int], float](), 0
    while True:
        mend_journal(tmp_path / "study.journal")
        try:
            storage = JournalStorage(DyingBackend(path, 6 + kills % 3))
            study, _ = searched(24, size=3, storage=storage)
        except Kill:
            kills += 1
            mend_journal(tmp_path / "study.journal")
            store = JournalStorage(JournalFileBackend(path))
            if not store.get_all_studies():
                continue
            trials = make_study(store, SPACE).get_trials()
            now = {
                (trial.number, place): rung["value"]
                for trial in trials
                for place, rung in enumerate(
                    (trial.user_attrs.get("nas") or trial.user_attrs.get(SO_FAR) or {}).get("rungs", ())
                )
            }
            assert known.items() <= now.items()
            known = now
            continue
        break
    assert kills > 5
    everyone = {trial.number: record_of(trial) for trial in study.get_trials()}
    assert len(own(study)) == 24
    found = {(number, place): rung.value for number, r in everyone.items() for place, rung in enumerate(r.rungs)}
    assert known.items() <= found.items()
    assert not study.get_trials(states=[TrialState.RUNNING])


# what samplers learn


def test_a_sampler_learns_from_the_highest_rung_with_enough_values_and_never_mixes_rungs():
    context = any_of(SPACE)
    object.__setattr__(context, "rungs", 3)
    study = make_study(InMemoryStorage(), SPACE, "random", context=context)
    make_engine(study, SPACE, ToyEstimator(5000), HereWorkers(levels()), 40, rungs=3).run()
    everyone, trial = {trial.number: record_of(trial) for trial in study.get_trials()}, study.ask()
    frozen = study.get_trials()[trial.number]
    counts = [len(at(everyone, rung)) for rung in range(3)]  # repeats are candidates of their own to a sampler
    for enough, rung in ((1, 2), (counts[2] + 1, 1), (counts[1] + 1, 0), (1000, 0)):
        history = History.before(context, study, frozen, enough)
        assert set((history.values[:, 0] // 100).astype(int)) == {rung}  # values of a rung have a hundred of their own
        assert (len(history.paths), len(history.seen)) == (counts[rung], len(everyone))
    assert set((History.of(context, study).values[:, 0] // 100).astype(int)) == {2}


def test_a_stopped_candidate_is_not_proposed_again():
    study, _ = searched(40, "guided")
    shown = [json.dumps(trial.params, sort_keys=True) for trial in study.get_trials()]
    assert len(shown) == len(set(shown))
