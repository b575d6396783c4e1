"""Architectures by the name of a run and the number of a trial."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace

import optuna
import pytest

import nas
from nas.core.errors import InputError, RunError
from nas.report.front import front_data
from nas.search.archs import CLASSES, FOLDER, load_arch, write_archs, write_front
from nas.search.request import Request
from nas.search.storage import JOURNAL
from nas.search.trials import trials_frame
from search_spaces import efficientformer
from tests.search.fakes import FakeScorer, HereWorkers, estimator_at, fake_table, make_engine, make_study

SPACE = replace(efficientformer.SMALL, classes=7)


def make_run(folder, storage=None, trials=6, **attributes):
    """A run of the small EfficientFormer for 7 classes whose trials are evaluated, and its study."""
    folder.mkdir()
    asked = Request(name="test", space=SPACE.name, storage=storage, dataset="digits")
    (folder / "request.yaml").write_text(asked.to_yaml())
    study = make_study(storage or folder / JOURNAL, SPACE)
    for name, value in ({CLASSES: 7} | attributes).items():
        study.set_user_attr(name, value)
    estimator = estimator_at(SPACE, fake_table(SPACE), "latency_ms<=p60")
    make_engine(study, SPACE, estimator, HereWorkers(FakeScorer()), trials).run()
    return study


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return folder, make_run(folder)


def expected(study, number):
    return SPACE.arch(study.trials[number].params)


def test_every_trial_of_a_journal_is_an_arch_also_those_over_the_budget(run):
    folder, study = run
    frame = trials_frame(study, "")
    assert {"evaluated", "infeasible"} <= set(frame["state"])
    for number in frame["number"]:
        found = nas.load_arch(f"{folder}@{number}")
        assert found == expected(study, number)
        assert found.classes == 7
        assert found.id == frame["arch"][number]


def test_reading_a_trial_writes_nothing_and_disturbs_no_search(run):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / f"{JOURNAL}.lock").touch()  # that of a search at work
    load_arch(f"{folder}@0")
    assert (folder / f"{JOURNAL}.lock").exists()
    (folder / f"{JOURNAL}.lock").unlink()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_database_is_read_too(tmp_path):
    study = make_run(tmp_path / "mine", f"sqlite:///{tmp_path}/s.db", trials=2)
    assert load_arch(tmp_path / "mine@1") == expected(study, 1)


def test_a_run_that_kept_no_classes_asks_its_data(tmp_path, monkeypatch):
    study = make_run(tmp_path / "mine", trials=1, classes=None)
    monkeypatch.setattr("nas.evaluation.data.load_data", lambda *args, **settings: SPACE)
    assert load_arch(tmp_path / "mine@0") == expected(study, 0)


def test_every_point_of_a_front_has_a_file_that_the_table_names(tmp_path):
    study = make_run(tmp_path / "mine", trials=4)
    front = front_data(trials_frame(study, ""))
    write_front(tmp_path / "mine", front, study, SPACE)
    lines = (tmp_path / "mine" / "front.csv").read_text().splitlines()
    assert lines[0].endswith(",arch_file")
    assert len(lines) == len(front) + 1
    for line, number in zip(lines[1:], front["number"], strict=True):
        path = tmp_path / "mine" / line.rpartition(",")[2]
        assert nas.load_arch(path) == expected(study, number) == load_arch(f"{tmp_path}/mine@{number}")


def test_where_there_is_a_file_the_study_is_not_opened(tmp_path):
    study = make_run(tmp_path / "mine", trials=2)
    trials_frame(study, "").to_csv(tmp_path / "mine" / "trials.csv", index=False)
    arch = expected(study, 1)
    write_archs(tmp_path / "mine", [arch])
    assert [path.stem for path in (tmp_path / "mine" / FOLDER).iterdir()] == [arch.id]
    (tmp_path / "mine" / JOURNAL).unlink()
    assert load_arch(tmp_path / "mine@1") == arch
    with pytest.raises(InputError, match="no trials yet"):
        load_arch(tmp_path / "mine@0")


def test_a_run_alone_is_its_winner(tmp_path):
    study = make_run(tmp_path / "mine", trials=1)
    with pytest.raises(InputError, match=r"no winner yet\. Finish it: nas search .*request.yaml; .*mine@0"):
        load_arch(tmp_path / "mine")
    (tmp_path / "mine" / "best.json").write_text(expected(study, 0).to_json())
    assert load_arch(tmp_path / "mine") == expected(study, 0)


def test_what_is_no_trial_is_named_with_the_range(run):
    folder, study = run
    last = study.trials[-1].number
    with pytest.raises(InputError, match=rf"no such trial in the run in .*mine, they are 0 to {last}"):
        load_arch(f"{folder}@{last + 1}")
    with pytest.raises(InputError, match=r"expected the number of a trial after the @.* got 'best'"):
        load_arch(f"{folder}@best")
    with pytest.raises(InputError, match=r"yours: no such run, there is no folder .*yours; in .* there are: mine"):
        load_arch(folder.with_name("yours"))
    with pytest.raises(InputError, match=r"yours@3: no such run"):
        load_arch(f"{folder.with_name('yours')}@3")


def test_a_folder_of_a_training_is_told_from_a_run(tmp_path):
    (tmp_path / "arch.json").write_text(SPACE.sample(random.Random(0)).to_json())
    with pytest.raises(InputError, match=r"no run of nas search, .* the network trained there is .*arch\.json"):
        load_arch(tmp_path)
    assert load_arch(tmp_path / "arch.json").classes == 7


def test_a_trial_without_an_arch_says_why(tmp_path):
    study = make_run(tmp_path / "mine", trials=1)
    record = {"nas": {"state": "failed", "reason": "no such width", "seed": 0}}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=record))
    number = study.trials[-1].number
    with pytest.raises(InputError, match=rf"trial {number} has no architecture \(no such width\)"):
        load_arch(f"{tmp_path}/mine@{number}")


def test_a_space_that_has_changed_since_is_noticed(tmp_path):
    study = make_run(tmp_path / "mine", trials=1, classes=9)
    with pytest.raises(RunError, match=rf"and were arch {expected(study, 0).id}: space"):
        load_arch(f"{tmp_path}/mine@0")


def test_presets_files_and_unknown_names_stay_what_they_were(tmp_path):
    assert load_arch("efficientformer-l1").family == "efficientformer"
    with pytest.raises(InputError, match="unknown preset 'efficientformer-l9'"):
        load_arch("efficientformer-l9")
    with pytest.raises(InputError, match="cannot be read as an arch file"):
        load_arch(tmp_path / "none.json")


@pytest.mark.parametrize("command", ["describe", "estimate", "measure", "train", "export", "profile"])
def test_every_command_takes_a_trial(command, run):
    """The name goes through one function; each command is asked for a trial that there is not."""
    folder, _ = run
    name = f"{folder}@999"
    more = {"estimate": ["--table", "none.csv"], "train": ["--data", "digits"], "export": ["--out", "x.onnx"]}
    arguments = ["--arch", name] if command == "profile" else [name, *more.get(command, [])]
    done = subprocess.run(
        [sys.executable, "-m", "nas", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no such trial in the run in" in done.stderr


def test_describe_shows_a_trial(run):
    folder, study = run
    command = [sys.executable, "-m", "nas", "describe", f"{folder}@0", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts["arch"] == expected(study, 0).id
