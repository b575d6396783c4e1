"""The time of a search, by a clock that only moves when told, against hand calculations."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.storages import InMemoryStorage

from nas.core.errors import InputError
from nas.evaluation.evaluators import Score
from nas.search import resolved
from nas.search.engine import Standing
from nas.search.executors.local import Pool
from nas.search.request import Request
from nas.search.timing import (
    MARGIN,
    MEASURE_SECONDS,
    WRITE_SECONDS,
    Allotment,
    Deadline,
    Pace,
    RepeatsWatch,
    Watch,
    final_epochs,
    seconds_left,
)
from nas.search.trials import Record, Rung
from nas.search.workers import Outcome, Stage, Task
from tests.search.fakes import ToySpace, digits, make_study


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def evaluated(loss, seconds):
    score = Score(loss, "val_loss", val_loss=loss, val_accuracy=0.5)
    return Record("evaluated", arch="a", predicted_us=500.0, seconds=seconds).scored(score)


def allotment(clock, minutes, pace, measured=True, **changes):
    asked = Request(**{"final_epochs": 40, "finalists": 3, "workers": 2} | changes)

    def epoch(candidate_seconds, arch):
        return candidate_seconds / 4

    return Allotment(asked, Deadline(minutes, clock), pace, measured=measured, repeats=2, epoch=epoch)


def test_without_minutes_nothing_is_ever_over(clock):
    deadline = Deadline(None, clock)
    assert deadline.left == math.inf
    mine = allotment(clock, None, Pace([evaluated(1.0, 1e9)]))
    assert not mine.is_over()
    assert mine.repeats([1e9]) == 2
    assert mine.final_epochs(1e9, None) == 40


def test_a_deadline_counts_down_and_no_further(clock):
    deadline = Deadline(1.5, clock)
    assert deadline.left == 90
    clock.now += 100
    assert deadline.left == 0


def test_the_pace_is_the_mean_of_what_was_evaluated_and_of_the_best_the_slowest():
    pace = Pace([evaluated(3.0, 90.0), evaluated(1.0, 20.0), evaluated(2.0, 40.0), Record("infeasible")])
    assert pace.each == 50
    assert pace.of_best(2) == 40
    assert Pace().each is None
    assert Pace().of_best(2) is None


def test_before_a_candidate_is_finished_its_epochs_say_how_long_it_takes():
    pace = Pace()
    pace.look([Stage(0, 1, 4, 3.0), Stage(1, 2, 4, 10.0)])
    assert pace.each == 20  # the slower one: 10 s for half of it
    pace.add(evaluated(1.0, 12.0))
    pace.look([Stage(0, 1, 4, 100.0)])
    assert pace.each == 12


def test_proposals_end_when_the_rest_is_needed(clock):
    pace = Pace([evaluated(1.0, 8.0)])
    mine = allotment(clock, 60, pace)
    # behind the candidates: 3 finalists to measure, 6 repeats on 2 workers, 40 epochs of 2 s; and the next candidate
    needed = MARGIN * (3 * MEASURE_SECONDS + 3 * 8 + 40 * 2) + WRITE_SECONDS + MARGIN * 8
    clock.now += 3600 - needed - 1
    assert not mine.is_over()
    clock.now += 2
    assert mine.is_over()


def test_candidates_have_their_share_however_much_the_rest_would_take(clock):
    mine = allotment(clock, 1, Pace([evaluated(1.0, 8.0)]))  # the rest would take more than the minute
    clock.now += 0.4 * 60 - MARGIN * 8 - 1
    assert not mine.is_over()
    clock.now += 2
    assert mine.is_over()


def test_repeats_and_final_epochs_are_as_many_as_there_is_time_for(clock):
    mine = allotment(clock, 10, Pace())
    # 6 repeats of 8 s on 2 workers: 24 s; 40 epochs of 2 s: 80 s
    clock.now += 600 - MARGIN * (24 + 80) - WRITE_SECONDS - 1
    assert mine.repeats([8.0, 8.0, 8.0]) == 2
    clock.now += 600 - (clock.now - 1000) - 60 - WRITE_SECONDS  # 60 s are left: 30 % of them for repeats
    assert mine.repeats([8.0, 8.0, 8.0]) == 0  # one of each is two rounds: 16 s, with margin 19.2 of 18
    assert mine.repeats([7.0, 7.0, 7.0]) == 1  # 14 s, with margin 16.8
    assert mine.final_epochs(8.0, None) == 25  # 60 / (1.2 * 2)
    clock.now += 600
    assert mine.repeats([8.0]) == 0
    assert mine.final_epochs(8.0, None) == 1


def test_the_time_left_is_the_work_left_among_the_workers():
    assert seconds_left(4, [], None, 2) is None
    assert seconds_left(4, [], 10.0, 2) == 20
    assert seconds_left(4, [Stage(0, 3, 4, 1.0), Stage(1, 1, 4, 1.0)], 10.0, 2) == 15  # a whole one of them is done
    assert seconds_left(1, [Stage(0, 1, 2, 1.0)], 10.0, 8) == 5
    assert seconds_left(0, [], 10.0, 2) == 0


@pytest.fixture
def shown():
    """A watch of 4 candidates, what it showed and what it logged."""
    lines, facts = [], []
    asked = Request(trials=4, workers=2)
    return asked, lines, facts, lambda *fact: facts.append(fact)


def test_what_is_shown_while_candidates_train_also_right_after_a_resume(shown):
    asked, lines, facts, show = shown
    watch = Watch(asked, Pace([evaluated(0.5, 10.0)]), show, lines.append)
    watch.begin((1,))
    assert facts[-1] == (1, 4, 15.0, "1 candidate evaluated")  # three of 10 s on two workers
    watch.training((Stage(1, 1, 4, 2.5), Stage(2, 3, 4, 7.0)))
    assert facts[-1] == (1, 4, 10.0, "1 candidate evaluated; epochs 1/4, 3/4")
    counts = {"evaluated": 2}
    watch.trial(Standing(7, evaluated(0.25, 10.0), 4, counts, (2,), 0.25))
    assert facts[-1][3].startswith("2 candidates evaluated, best validation loss 0.2500")
    watch.trial(Standing(8, Record("infeasible"), 4, counts, (2,), 0.25))
    watch.trial(Standing(9, Record("failed", reason="no room"), 4, counts, (2,), 0.25))
    assert lines == [
        "trial 7: validation loss 0.2500, accuracy 50.0%, 0.5 ms predicted (2 of 4)",
        "trial 9 failed: no room",
    ]


def test_of_several_rungs_each_is_counted_and_the_time_left_is_that_of_all(shown):
    _, lines, facts, show = shown
    asked = Request(trials=10, workers=2, evaluator="[naswot, {short: {epochs: 1}}]")
    watch = Watch(asked, Pace(), show, lines.append)
    watch.begin((0, 0))
    assert facts[-1] == (0, 10, None, "naswot 0, short 0")
    cheap, full = Rung("-naswot", -3.0, 1.0), Rung("val_loss", 0.25, 20.0)
    stopped = Record("stopped", "a", "stopped at rung 1 of 2, -naswot -3", rungs=(cheap,))
    watch.rung(Standing(0, stopped, 10, {}, (1, 0), None))
    watch.trial(Standing(0, stopped, 10, {}, (1, 0), None))
    assert facts[-1][2] is None  # nobody knows how long the second takes
    record = replace(evaluated(0.25, 20.0), rungs=(cheap, full))
    watch.trial(Standing(1, record, 10, {}, (2, 1), 0.25))
    # 8 more of 1 s, and of 10 a third and a tenth of the rest, 4, go on: 3 more of 20 s; on two workers
    assert facts[-1] == (2, 10, pytest.approx(34.0), "naswot 2, short 1, best validation loss 0.2500")
    assert lines == [
        "trial 0 stopped at rung 1 of 2, -naswot -3",
        "trial 1: validation loss 0.2500, accuracy 50.0%, 0.5 ms predicted (2 of 10; 1 at the last rung)",
    ]
    again = Pace([record, stopped])
    assert (again.of_rung(0), again.of_rung(1), again.longest) == (1.0, 20.0, 20.0)


def test_repeats_are_shown_too(shown):
    asked, lines, facts, show = shown
    watch = RepeatsWatch(asked, Pace([evaluated(0.5, 10.0)]), 6, show, lines.append)
    watch.training((Stage(0, 2, 4, 5.0),))
    assert facts[-1] == (0, 6, 27.5, "training the finalists again, 0 of 6; epochs 2/4")
    watch.trained(Outcome(0, None, "no room"))
    assert lines == ["a repeated training failed: no room"]
    assert facts[-1][:2] == (1, 6)


class Epochs:
    """Tells three epochs, then scores; a process can import it."""

    def __call__(self, arch, seed, on_epoch):
        for epoch in (1, 2, 3):
            on_epoch(epoch, 3)
        return Score(digits(arch), "digits")


def test_workers_tell_their_epochs_from_their_processes():
    seen = []
    with Pool(Epochs(), 2, lambda stages: seen.extend((s.key, s.epoch, s.epochs) for s in stages)) as pool:
        outcomes = list(pool.run([Task(number, f"arch {number}", 0) for number in (1, 2)]))
    assert sorted(outcome.key for outcome in outcomes) == [1, 2]
    for key in (1, 2):
        assert sorted({told for told in seen if told[0] == key}) == [(key, epoch, 3) for epoch in (1, 2, 3)]


def test_the_short_training_tells_its_epochs():
    from nas.evaluation.data import load_data
    from nas.evaluation.evaluators import load_evaluator
    from tests.evaluation.test_training import TwoHeads

    told = []
    data = load_data("digits", (1, 8, 8), limit=200)
    load_evaluator("short", epochs=3).score(TwoHeads, data, on_epoch=lambda *epochs: told.append(epochs))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_epochs_of_a_winner_in_training_stay_what_they_were(clock):
    study, winner = make_study(InMemoryStorage(), ToySpace()), SimpleNamespace(arch=SimpleNamespace(id="a"))
    winner.record = evaluated(1.0, 8.0)
    mine = allotment(clock, 2, Pace())
    asked = Request(epochs=4, final_epochs=100, minutes=2)
    first = final_epochs(study, asked, winner, mine)
    assert first == 40  # of the request of `allotment`: there is time for 45
    clock.now += 100
    assert final_epochs(study, asked, winner, mine) == first  # though less is left: its checkpoint goes on
    assert final_epochs(study, asked.with_(minutes=3), winner, mine) == 4  # 10 s / (1.2 * 2 s)


def test_the_scorer_trains_on_as_many_images_as_the_limit_allows():
    from nas.search.scoring import data_of

    data = data_of("digits", (3, 32, 32), 0, 100)
    assert len(data.train) + len(data.val) == 100
    assert len(data.test) == 360


def test_a_limit_and_minutes_have_bounds():
    with pytest.raises(InputError, match="limit: expected at least 2, got 1"):
        Request(limit=1)
    for minutes in (0, -1):
        with pytest.raises(InputError, match="minutes: expected more than 0"):
            Request(minutes=minutes)
    with pytest.raises(InputError, match="minutes: expected a finite number"):
        Request(minutes=math.inf)


def test_a_profile_of_the_search_gets_half_of_the_time_where_it_needs_more(tmp_path, monkeypatch):
    given = []

    def profile(space, **settings):
        given.append(settings.get("budget_minutes"))
        raise KeyboardInterrupt

    monkeypatch.setattr(resolved.profiler, "job_of", lambda space, **settings: "job")
    monkeypatch.setattr(resolved.profiler, "plan", lambda job: SimpleNamespace(seconds=400.0))
    monkeypatch.setattr(resolved.profiler, "profile", profile)
    for minutes in (None, 20, 10):  # 400 s of 600; of 300
        asked = Request(out=str(tmp_path / "r"), space="efficientformer-32", runtime="fake", minutes=minutes)
        named = resolved.name_request(asked, lambda line: None)
        with pytest.raises(KeyboardInterrupt):
            resolved.complete_table(named, lambda line: None, lambda *facts: None)
    assert given == [None, None, 5.0]
