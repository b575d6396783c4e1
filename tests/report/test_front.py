import math

import numpy as np
import pandas as pd
import pytest

from nas.core.errors import InputError, RunError
from nas.report.front import evaluated_trials, front_data, hypervolume, non_dominated, read_trials
from nas.report.schema import TRIAL_COLUMNS
from tests.run_dir_fixture import trials


def brute_force(costs: np.ndarray) -> list[bool]:
    """The definition, pair by pair: no other row is nowhere greater and somewhere smaller."""
    return [not any((other <= row).all() and (other < row).any() for other in costs) for row in costs]


def study(*rows: tuple[int, str, float, float]) -> pd.DataFrame:
    """Trials of (number, state, predicted_ms, value)."""
    return pd.DataFrame(rows, columns=["number", "state", "predicted_ms", "value"])


def test_the_front_of_five_points_by_hand():
    costs = np.array([[1, 5], [2, 3], [3, 4], [4, 1], [4, 2]])
    assert non_dominated(costs).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_equals_brute_force_with_many_ties(objectives, seed):
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 6, size=(rng.integers(1, 60), objectives)).astype(float)
    assert non_dominated(costs).tolist() == brute_force(costs)


def test_infinite_costs_and_negative_zeros_are_compared_as_numbers():
    costs = np.array([[0.0, math.inf], [-0.0, math.inf], [1.0, math.inf], [-math.inf, math.inf], [2.0, -1.0]])
    assert non_dominated(costs).tolist() == brute_force(costs) == [False, False, False, True, True]


def test_equal_points_are_on_the_front_together_or_not_at_all():
    costs = np.array([[1, 1], [1, 1], [2, 2], [2, 2]])
    assert non_dominated(costs).tolist() == [True, True, False, False]


def test_the_order_of_the_points_does_not_matter():
    rng = np.random.default_rng(0)
    costs = rng.random((200, 2)).round(2)
    order = rng.permutation(200)
    assert non_dominated(costs[order]).tolist() == non_dominated(costs)[order].tolist()


def test_no_points_have_an_empty_front():
    assert non_dominated(np.zeros((0, 2))).shape == (0,)


def test_a_nan_cost_is_refused_and_named():
    with pytest.raises(InputError, match="row 1 is NaN"):
        non_dominated(np.array([[1, 2], [math.nan, 0]]))


@pytest.mark.parametrize("shape", [(3,), (3, 0), (3, 2, 1)])
def test_costs_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match="shape"):
        non_dominated(np.zeros(shape))


def test_only_evaluated_trials_are_on_the_front_cheapest_first():
    frame = study(
        (0, "evaluated", 3.0, 0.1),
        (1, "infeasible", 0.5, math.nan),
        (2, "evaluated", 1.0, 0.4),
        (3, "duplicate", 0.1, 0.01),
        (4, "evaluated", 2.0, 0.5),
        (5, "failed", 0.2, math.nan),
        (6, "evaluated", 1.0, 0.4),
    )
    assert front_data(frame)["number"].tolist() == [2, 6, 0]


def test_accuracy_is_maximized():
    frame = study((0, "evaluated", 1.0, 9), (1, "evaluated", 2.0, 9)).assign(val_accuracy=[0.8, 0.9])
    assert front_data(frame, score="val_accuracy")["number"].tolist() == [0, 1]
    assert front_data(frame.assign(val_accuracy=[0.9, 0.8]), score="val_accuracy")["number"].tolist() == [0]


def test_an_evaluated_trial_without_a_score_is_an_error_not_a_zero():
    with pytest.raises(InputError, match="trial 7 is evaluated but has no value"):
        front_data(study((7, "evaluated", 1.0, math.nan)))


def test_an_unknown_column_names_the_closest():
    with pytest.raises(InputError, match="'predicted_us', did you mean 'predicted_ms'"):
        evaluated_trials(study(), "predicted_us")


def test_the_hypervolume_equals_the_number_of_dominated_unit_cells():
    rng = np.random.default_rng(3)
    for _ in range(20):
        points = rng.integers(0, 10, size=(8, 2)).astype(float)
        frame = study(*[(i, "evaluated", x, y) for i, (x, y) in enumerate(points)])
        corner = (9, 8)  # points beyond it must add nothing
        cells = sum(any(x <= i and y <= j for x, y in points) for i in range(corner[0]) for j in range(corner[1]))
        assert hypervolume(frame, corner, "predicted_ms", "value") == cells


def test_the_hypervolume_of_accuracies_counts_upwards():
    frame = study((0, "evaluated", 1.0, 9.0)).assign(val_accuracy=[0.75])
    assert hypervolume(frame, (3.0, 0.25), "predicted_ms", "val_accuracy") == 2.0 * 0.5


def test_a_hypervolume_needs_a_finite_reference():
    with pytest.raises(InputError, match="finite"):
        hypervolume(study((0, "evaluated", 1.0, 9.0)), (math.inf, 1.0), "predicted_ms", "value")


def test_trials_survive_the_file(tmp_path):
    path = tmp_path / "trials.csv"
    written = trials()
    written.to_csv(path, index=False)
    read = read_trials(path)
    for name in ("number", "state", "arch", "predicted_ms", "params", "param.stage1.width", "param.tail"):
        assert read[name].tolist() == written[name].tolist(), name
    assert read["val_loss"].equals(written["val_loss"])
    assert read["duplicate_of"].isna().sum() == (written["state"] != "duplicate").sum()


def test_an_arch_that_looks_like_a_number_stays_text(tmp_path):
    rows = trials(2).assign(arch=["123456789e12", "000000000001"], reason=["NA", ""])
    rows.to_csv(tmp_path / "trials.csv", index=False)
    read = read_trials(tmp_path / "trials.csv")
    assert read["arch"].tolist() == ["123456789e12", "000000000001"]
    assert read["reason"].tolist() == ["NA", ""]


def test_whole_numbers_keep_their_digits_beside_missing_ones(tmp_path):
    path = tmp_path / "trials.csv"
    trials(3).astype(object).assign(seed=[2**53 + 1, "", 7], params=["12.0", "", "5"]).to_csv(path, index=False)
    read = read_trials(path)
    assert read["seed"].tolist() == [2**53 + 1, pd.NA, 7]
    assert read["params"].tolist() == [12, pd.NA, 5]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("val_loss", "fast", "row 2, column val_loss: expected a finite number, got 'fast'"),
        ("predicted_ms", "inf", "row 2, column predicted_ms: expected a finite number, got 'inf'"),
        ("params", "1.5", "row 2, column params: expected a whole number, got '1.5'"),
        ("seed", str(2**63), "row 2, column seed: expected a whole number"),
        ("state", "evalated", "row 2: unknown state 'evalated', did you mean 'evaluated'"),
        ("number", "0", "row 2, column number: missing, or seen before"),
        ("number", "", "row 2, column number: missing, or seen before"),
        ("val_accuracy", "93.5", "row 2, column val_accuracy: expected a fraction between 0 and 1, got 93.5"),
    ],
)
def test_a_bad_value_is_named_by_row_and_column(tmp_path, column, value, message):
    rows = trials(3).astype(object)
    rows.loc[1, column] = value
    path = tmp_path / "trials.csv"
    rows.to_csv(path, index=False)
    with pytest.raises(RunError) as error:
        read_trials(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("column", TRIAL_COLUMNS)
def test_a_missing_column_is_named(tmp_path, column):
    trials(3).drop(columns=column).to_csv(tmp_path / "trials.csv", index=False)
    with pytest.raises(RunError, match=f"lacks the column {column}$"):
        read_trials(tmp_path / "trials.csv")


@pytest.mark.parametrize("content", [b"", b'number,state\n1,"torn', b"\xff\xfe\x00"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "trials.csv").write_bytes(content)
    with pytest.raises(RunError, match="is no table of trials"):
        read_trials(tmp_path / "trials.csv")


def test_missing_trials_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(RunError, match="nas search"):
        read_trials(tmp_path / "trials.csv")
