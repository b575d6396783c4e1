"""From the best few to a winner: measurements, repeats, and how sure the ranking is."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.storages import InMemoryStorage

from nas.core.errors import RunError
from nas.evaluation.evaluators import Score
from nas.search.executors.local import Pool
from nas.search.finalists import TRIES, Finalist, Timing, rank, require_fit, with_measurements, with_repeats
from nas.search.limits import Estimator, Limit
from nas.search.trials import Record
from tests.search.fakes import FakeScorer, ToySpace, digits, fake_table, make_study, tiny_space

SPACE = tiny_space()
ARCHS = list(SPACE.archs())[:3]


@pytest.fixture(scope="module")
def table():
    return fake_table(SPACE)


@pytest.fixture
def study():
    return make_study(InMemoryStorage(), ToySpace())


def finalist(number=0, losses=(), **more):
    score = Score(1.0, "val_loss", val_loss=1.0, val_accuracy=0.9)
    record = Record("evaluated", arch=ARCHS[number].id, predicted_us=500.0).scored(score)
    found = {"values": tuple(losses), "losses": tuple(losses), "accuracies": tuple(0.5 for _ in losses)}
    return Finalist(number, ARCHS[number], record, **found, **more)


def timing(us=700.0, noise=0.0):
    return Timing(us, 5.0, noise, noise > 0.1, f"{noise:.0%} disturbed")


class Stopwatch:
    """Measures 700 us on the request's table and 300 us on any other, or what it is told; and counts."""

    def __init__(self, table, *told):
        self.table, self.calls, self.told = table, [], list(told)

    def __call__(self, arch, table):
        self.calls.append(arch.id)
        return self.told.pop(0) if self.told else timing(700.0 if table is self.table else 300.0)


def measured_by(watch, study, estimator, here=(None,), weigh=None):
    return with_measurements(finalist(), study, estimator, here, watch, weigh)


def limits(*bounds, table=None):
    return tuple(Limit("latency_ms", bound, f"latency_ms<={bound}", table, None) for bound in bounds)


def test_a_finalist_fits_by_what_was_measured(table, study):
    for bound, fits in ((0.699, False), (0.701, True)):
        measured = measured_by(Stopwatch(table), study, Estimator(table, limits(bound)))
        assert measured.timing == timing()
        assert measured.used == (0.7,)
        assert measured.fits is fits


def test_what_cannot_be_measured_here_fits_by_its_prediction(table, study):
    predicted = Estimator(table, ()).estimate(ARCHS[0]).latency.total_us / 1000
    for bound, fits in ((0.99 * predicted, False), (1.01 * predicted, True)):
        measured = measured_by(Stopwatch(table), study, Estimator(table, limits(bound)), [])
        assert measured.timing is None
        assert measured.used == (pytest.approx(predicted),)
        assert measured.fits is fits


def test_each_table_of_this_machine_is_measured_with(table, study):
    other = fake_table(SPACE, sentinel_us=2.0)
    estimator = Estimator(
        table, limits(0.8) + limits(0.31, table="o.csv") + limits(0.29, table="o.csv"), {"o.csv": other}
    )
    measured = measured_by(Stopwatch(table), study, estimator, [None, "o.csv"])
    assert measured.used == (0.7, 0.3, 0.3)
    assert not measured.fits


def test_a_measurement_is_taken_once_in_the_life_of_a_study(table, study):
    watch = Stopwatch(table)
    for _ in range(2):
        measured_by(watch, study, Estimator(table))
    assert watch.calls == [ARCHS[0].id]


def test_a_disturbed_measurement_is_taken_again_and_the_quieter_one_kept(table, study):
    watch = Stopwatch(table, timing(680.0, noise=0.5), timing(480.0))
    assert measured_by(watch, study, Estimator(table)).timing == timing(480.0)
    assert len(watch.calls) == 2
    worse = Stopwatch(table, timing(680.0, noise=0.3), timing(900.0, noise=0.6))
    other = make_study(InMemoryStorage(), ToySpace())
    found = measured_by(worse, other, Estimator(table))
    assert found.timing == timing(680.0, noise=0.3)
    assert len(worse.calls) == TRIES
    assert "0.68 ms measured (30% disturbed)" in str(found)


def test_a_disturbed_measurement_of_an_earlier_command_is_taken_again(table, study):
    measured_by(Stopwatch(table, *[timing(680.0, noise=0.3)] * TRIES), study, Estimator(table, limits(0.5)))
    quiet = Stopwatch(table, timing(480.0))
    found = measured_by(quiet, study, Estimator(table, limits(0.5)))
    assert (found.timing, found.fits, len(quiet.calls)) == (timing(480.0), True, 1)
    measured_by(quiet, study, Estimator(table))
    assert len(quiet.calls) == 1


def test_a_measurement_that_an_earlier_version_did_not_check_is_taken_again(table, study):
    study.set_user_attr(f"measured {ARCHS[0].id} {table.hash[:12]}", [999.0, 1.0])
    assert measured_by(Stopwatch(table), study, Estimator(table)).timing == timing()


def test_a_budget_of_memory_is_checked_by_measuring_once(table, study, monkeypatch):
    monkeypatch.setattr(Estimator, "estimate", lambda self, arch: SimpleNamespace(used=(30.0, 0.5)))
    asked = []

    def weigh(arch, of):
        asked.append((arch.id, of is table))
        return 41_000_000

    memory = Limit("memory_mb", 40.0, "memory_mb<=40", None, None)
    for _ in range(2):
        found = measured_by(Stopwatch(table), study, Estimator(table, (memory, *limits(0.8))), weigh=weigh)
        assert found.used == (41.0, 0.7)
        assert (found.memory_bytes, found.fits) == (41_000_000, False)
    assert asked == [(ARCHS[0].id, True)]
    elsewhere = measured_by(Stopwatch(table), study, Estimator(table, (memory, *limits(0.8))), [], weigh)
    assert (elsewhere.used, elsewhere.memory_bytes, elsewhere.fits) == ((30.0, 0.5), None, True)


def test_when_nothing_fits_the_nearest_miss_is_named():
    missed = [
        finalist(n, used=(used,), fits=False, timing=timing(1000 * used)) for n, used in enumerate((0.6, 0.52, 0.8))
    ]
    with pytest.raises(RunError) as caught:
        require_fit(missed, limits(0.5))
    text = str(caught.value)
    assert f"nearest miss is trial 1 (arch {ARCHS[1].id}), 0.52 ms measured, 0.5 ms predicted" in text
    assert "0.52 ms > 0.5 ms (+4.0%)" in text
    assert f"trial 0 (arch {ARCHS[0].id})" in text
    require_fit([*missed, finalist(fits=True)], limits(0.5))


def test_finalists_that_fit_are_trained_again_with_other_seeds_and_once(study, tmp_path):
    calls = tmp_path / "calls"
    both = [finalist(0), finalist(1), finalist(2, fits=False)]
    done = []
    for _ in range(2):
        with Pool(FakeScorer(calls=str(calls)), 2) as pool:
            found = with_repeats(both, study, pool, 2, done.append)
    assert len(calls.read_text().splitlines()) == len(done) == 4
    for each in found[:2]:
        assert each.values == each.losses == (1.0, *(digits(f"{each.arch.to_json()} {seed}") for seed in (1, 2)))
        assert each.accuracies[0] == 0.9
    assert found[2].values == (1.0,)


def test_a_repeat_that_fails_is_left_out_and_told(study):
    done = []
    with Pool(FakeScorer(fail="error", failing=1.0), 1) as pool:
        (found,) = with_repeats([finalist()], study, pool, 2, done.append)
    assert found.values == (1.0,)
    assert [outcome.score for outcome in done] == [None, None]


CHOSEN = 0.001
"""The score that chose a finalist: the best of many, which its repeats do not reach."""


def test_noise_is_pooled_over_the_repeats_of_the_finalists():
    ranking = rank([finalist(0, (CHOSEN, 1.0, 1.2)), finalist(1, (CHOSEN, 2.0, 2.2, 2.4)), finalist(2, (CHOSEN, 9.0))])
    squares = 2 * 0.1**2 + 2 * 0.2**2  # (2 - 1) + (3 - 1) + (1 - 1) degrees of freedom
    assert ranking.noise_sigma == pytest.approx(math.sqrt(squares / 3))
    assert ranking.pairs_sure == 1.0
    assert "3 of 3 pairs" in ranking.text
    assert "3 degrees of freedom" in ranking.text
    assert "beyond chance" in ranking.text


@pytest.mark.parametrize(("repeats", "quantile"), [(2, 4.303), (4, 2.447), (11, 2.086)])  # printed tables: 2, 6, 20
def test_an_order_is_sure_beyond_students_95_percent(repeats, quantile):
    spread = [0.1 * (-1) ** number for number in range(repeats - repeats % 2)] + [0.0] * (repeats % 2)
    sigma = math.sqrt(2 * 0.01 * (repeats - repeats % 2) / (2 * (repeats - 1)))
    error = sigma * math.sqrt(2 / repeats)

    def lead(distance):
        one, other = ((CHOSEN, *(center + step for step in spread)) for center in (1.0, 1.0 + distance))
        return rank([finalist(0, one), finalist(1, other)])

    assert lead(0.0).noise_sigma == pytest.approx(sigma)
    assert lead((quantile + 0.01) * error).pairs_sure == 1.0
    assert lead((quantile - 0.01) * error).pairs_sure == 0.0
    assert "within what chance does" in lead((quantile - 0.01) * error).text


def test_the_score_that_chose_the_finalists_does_not_order_them():
    lucky, better = finalist(0, (CHOSEN, 2.0, 2.1)), finalist(1, (1.0, 1.0, 1.1))
    assert better.mean_value < lucky.mean_value
    assert "lead of 1 over" in rank([lucky, better]).text


def test_without_repeats_nothing_is_said_about_noise():
    for losses in (((1.0,), (2.0,)), ((1.0, 1.1), (2.0, 2.1))):
        ranking = rank([finalist(number, each) for number, each in enumerate(losses)])
        assert (ranking.noise_sigma, ranking.pairs_sure) == (None, None)
        assert "how far chance decided their order is not known" in ranking.text
    assert "by the score that chose them" in rank([finalist(0, (1.0,)), finalist(1, (2.0,))]).text
    assert "nothing to rank" in rank([finalist(0, (1.0, 2.0))]).text


def test_the_mean_of_the_repeats_decides_and_the_choosing_score_where_there_is_none():
    assert replace(finalist(), values=(1.0, 2.0, 6.0)).mean_value == 4.0
    assert replace(finalist(), values=(1.0,)).mean_value == 1.0
