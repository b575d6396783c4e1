"""The table of trials: what a study holds, what `trials.csv` says, and what reading it gives."""

import pytest
from optuna.storages import InMemoryStorage

from nas.report.front import read_trials
from nas.report.schema import TRIAL_COLUMNS
from nas.search.trials import Record, record_of, trials_frame
from tests.search.fakes import FakeScorer, HereWorkers, ToyEstimator, ToySpace, make_engine, make_study


@pytest.fixture
def study():
    study = make_study(InMemoryStorage(), ToySpace())
    make_engine(study, ToySpace(), ToyEstimator(), HereWorkers(FakeScorer(fail="error", failing=0.2)), 30).run()
    return study


def test_every_trial_is_a_row_with_the_columns_of_the_run_directory(study):
    frame = trials_frame(study, "abc")
    assert set(frame) == {*TRIAL_COLUMNS, "param.dead", "param.depth", "param.width"}
    assert frame["number"].tolist() == list(range(len(study.trials)))
    assert set(frame["state"]) == {"evaluated", "infeasible", "duplicate", "failed"}
    assert set(frame["table_hash"]) == {"abc"}
    for row, trial in zip(frame.to_dict("records"), study.trials, strict=True):
        assert {name: row[f"param.{name}"] for name in trial.params} == trial.params
        assert (row["predicted_ms"], row["predicted_low_ms"]) == pytest.approx(
            (row["macs"] * row["params"] / 1000,) * 2, rel=0.2
        )
        assert row["arch"] == record_of(trial).arch
        assert (row["reason"] != "") == (row["state"] in ("infeasible", "failed"))


def test_the_table_survives_its_file(study, tmp_path):
    frame = trials_frame(study, "abc")
    frame.to_csv(tmp_path / "trials.csv", index=False)
    again = read_trials(tmp_path / "trials.csv")
    for name in frame:
        assert again[name].isna().tolist() == frame[name].isna().tolist(), name
        present = frame[name].notna()
        assert again[name][present].tolist() == pytest.approx(frame[name][present].tolist()), name


def test_an_arch_id_that_looks_like_a_number_stays_text(tmp_path):
    study = make_study(InMemoryStorage(), ToySpace())
    trial = study.ask()
    trial.set_user_attr("nas", Record("evaluated", arch="123456789e12", value=1.0, score="made_up").as_data())
    study.tell(trial, 1.0)
    trials_frame(study, "1e5").to_csv(tmp_path / "t.csv", index=False)
    again = read_trials(tmp_path / "t.csv")
    assert (again["arch"][0], again["table_hash"][0]) == ("123456789e12", "1e5")


def test_a_study_without_trials_is_an_empty_table():
    frame = trials_frame(make_study(InMemoryStorage(), ToySpace()), "abc")
    assert len(frame) == 0
    assert set(frame) == set(TRIAL_COLUMNS)
