"""The request: defaults, YAML, and what it says about mistakes."""

import subprocess
import sys

import pytest

from nas.core.errors import InputError, RunError
from nas.search.request import MAY_CHANGE, Request


def test_a_request_survives_yaml(tmp_path):
    request = Request(name="mine", budgets=["latency_ms<=p40", "params<=3e6"], trials=7, storage="sqlite:///x.db")
    (tmp_path / "r.yaml").write_text(request.to_yaml(["latency_ms<=p40 is 0.55"]))
    assert Request.read(tmp_path / "r.yaml") == request


def test_every_field_says_what_it_is_for():
    assert [name for name, field in Request.model_fields.items() if not field.description] == []


def test_one_budget_may_stand_alone():
    assert Request(budgets="latency_ms <= 5").budgets == ("latency_ms<=5",)


def test_the_folder_is_named_after_the_run():
    assert str(Request(name="a").run_dir) == "runs/a"
    assert str(Request(name="a", out="elsewhere").run_dir) == "elsewhere"


def test_all_problems_are_told_at_once_by_path(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("budgets: [latency_ms<=5, fast, latncy_ms<=3]\ntrials: many\nsampler: tpee\nworker: 2\nseed: -1\n")
    with pytest.raises(InputError) as caught:
        Request.read(path)
    text = str(caught.value)
    assert str(path) in text
    assert "budgets[1]: expected a bound such as latency_ms<=5" in text
    assert "got 'fast'" in text
    assert "budgets[2]: unknown metric 'latncy_ms', did you mean 'latency_ms'" in text
    assert "trials: expected a whole number, got 'many'" in text
    assert "sampler: unknown sampler 'tpee', did you mean 'tpe'" in text
    assert "seed: expected at least 0, got -1" in text
    assert "unknown field 'worker', did you mean 'workers'" in text


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("objective", "fast", "objective: expected 'accuracy' or 'front'"),
        ("workers", 1.5, "workers: expected a whole number"),
        ("allow_uncalibrated", "maybe", "allow_uncalibrated: expected true or false"),
        ("name", "a/b", "name: expected letters"),
        ("dataset", "digitz", "did you mean 'digits'"),
        ("evaluator", "shrt", "did you mean 'short'"),
        ("budgets", 3, "budgets: expected a list"),
        ("budgets", ["params<=3e6", "params <= 3e6"], "budgets[1]"),
        ("trials", 0, "trials: expected at least 1"),
    ],
)
def test_a_bad_value_names_field_and_expectation(field, value, expected):
    with pytest.raises(InputError) as caught:
        Request(**{field: value})
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "trials: [", "just words"])
def test_a_file_that_holds_no_fields_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=r"r\.yaml"):
        Request.read(tmp_path / "r.yaml")


def test_yaml_executes_no_code(tmp_path):
    (tmp_path / "r.yaml").write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path}/made]\n")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        Request.read(tmp_path / "r.yaml")
    assert not (tmp_path / "made").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        Request.read(tmp_path / "none.yaml")


def test_changes_come_before_the_file(tmp_path):
    (tmp_path / "r.yaml").write_text("trials: 3\nseed: 4\n")
    assert Request.read(tmp_path / "r.yaml", trials=9) == Request(trials=9, seed=4)


def test_a_run_goes_on_with_more_trials_and_other_workers():
    stored = Request(trials=10, workers=1)
    stored.with_(trials=20, workers=4).require_same(stored)


def test_a_contradicting_request_is_refused_naming_each_field():
    stored = Request(trials=10, budgets=["latency_ms<=5"])
    with pytest.raises(RunError) as caught:
        stored.with_(trials=9, seed=3, budgets=["latency_ms<=6"]).require_same(stored)
    text = str(caught.value)
    assert "seed: 0 there, 3 now" in text
    assert "latency_ms<=6" in text
    assert "trials: 10 there, 9 now" in text


def test_what_may_change_are_fields():
    assert set(MAY_CHANGE) <= set(Request.model_fields)


def test_a_request_loads_neither_torch_nor_optuna():
    code = (
        "import sys, nas.search.request; nas.search.request.Request(budgets=['params<=3'], sampler='tpe');"
        "print([name for name in ('torch', 'optuna', 'pandas') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


SECRET = "s3cr:t%40/x"
URL = f"postgresql+psycopg2://user:{SECRET}@host:5432/studies?sslmode=require&sslpassword=hush"


def test_a_password_is_neither_written_nor_shown_and_the_run_goes_on_with_it(tmp_path):
    request = Request(name="mine", storage=URL)
    text = request.to_yaml()
    assert SECRET not in text
    assert "hush" not in text
    assert "postgresql+psycopg2://user:***@host:5432/studies?sslmode=require&sslpassword=***" in text
    (tmp_path / "request.yaml").write_text(text)
    stored = Request.read(tmp_path / "request.yaml")
    request.require_same(stored)
    request.require_same(request)  # as an earlier version wrote it
    Request(name="mine", storage=URL.replace(SECRET, "changed")).require_same(stored)
    Request(name="mine", storage=URL.replace(f":{SECRET}", "")).require_same(stored)  # the driver finds it elsewhere
    with pytest.raises(RunError, match=r"storage: 'postgresql.*there, 'postgresql.*now") as caught:
        Request(name="mine", storage=URL.replace("host", "other")).require_same(stored)
    assert SECRET not in str(caught.value)


def test_urls_without_a_password_stay_as_they_are():
    for url in ("sqlite:///runs/a:b@c.db", "postgresql://user@host:5432/db", "redis://host:6379"):
        assert f"storage: {url}\n" in Request(storage=url).to_yaml()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stage1.kind": "mb4d", "tokens": 6}, {"stage1.kind": ("mb4d",), "tokens": (6,)}),
        ({"stage3.kind": ["nextvit", "mb3d"], "on": True}, {"stage3.kind": ("nextvit", "mb3d"), "on": (True,)}),
        (["stage3.kind=nextvit,mb3d", "tokens = 6"], {"stage3.kind": ("nextvit", "mb3d"), "tokens": ("6",)}),
        (["tokens=1", "tokens=6"], {"tokens": ("1", "6")}),
        (None, {}),
    ],
)
def test_choices_are_held_by_a_mapping_or_by_texts(given, expected):
    assert Request(fix=given).fix == expected


@pytest.mark.parametrize("given", ["tokens", ["tokens"], ["tokens="], ["=6"], {"tokens": []}, {"tokens": {"a": 1}}, 3])
def test_what_holds_no_choice_is_refused_with_an_example(given):
    with pytest.raises(InputError, match=r"^fix: .*expected") as caught:
        Request(fix=given)
    assert "got" in str(caught.value)


def test_what_is_held_and_the_side_survive_yaml(tmp_path):
    asked = Request(fix={"stage1.kind": ["mb4d", "nextvit"], "tokens": 6, "stage2.bridges": False}, side=96)
    (tmp_path / "r.yaml").write_text(asked.to_yaml())
    assert Request.read(tmp_path / "r.yaml") == asked
    with pytest.raises(RunError, match="side: 96 there"):
        asked.with_(side=64).require_same(asked)
    with pytest.raises(RunError, match="fix: "):
        asked.with_(fix={"tokens": 6}).require_same(asked)
