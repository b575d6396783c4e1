"""One schema for what a search writes and a report reads."""

import copy
import json
from typing import get_args

import pandas as pd
import pytest

from nas.core.errors import RunError
from nas.report import schema
from nas.report.front import read_trials
from tests import run_dir_fixture


@pytest.fixture
def result(finished_run):
    return json.loads((finished_run / "result.json").read_text())


def test_a_real_result_and_its_trials_are_of_the_schema(finished_run, result):
    assert schema.check_result(result, "here") == schema.read_result(finished_run / "result.json") == result
    columns = pd.read_csv(finished_run / "trials.csv").columns
    assert {name for name in columns if not name.startswith("param.")} == set(schema.TRIAL_COLUMNS)


def test_the_run_of_the_reports_tests_has_what_one_of_today_has(result, tmp_path):
    kept = schema.check_result(run_dir_fixture.result(), "here")
    for name in ("winner", "provenance", "ranking", "counts"):
        assert set(kept[name]) == set(result[name])
    assert set(kept) == set(result)
    assert set(read_trials(run_dir_fixture.write_run(tmp_path / "r") / "trials.csv")) >= set(schema.TRIAL_COLUMNS)


def test_what_is_missing_or_unknown_is_named_before_it_is_written(result):
    for change, says in (
        (lambda data: data["winner"].pop("fits"), "here: winner.fits: Field required"),
        (lambda data: data["counts"].update(lost=3), "here: not in the schema: counts.lost"),
        (lambda data: data["finalists"][1].update(mood="good"), r"not in the schema: finalists\[1\].mood"),
    ):
        data = copy.deepcopy(result)
        change(data)
        with pytest.raises(RunError, match=says):
            schema.check_result(data, "here")


def test_the_states_of_a_trial_stand_in_one_place(result):
    assert set(result["counts"]) == {"proposed", *schema.STATES}
    assert get_args(schema.State) == schema.STATES
