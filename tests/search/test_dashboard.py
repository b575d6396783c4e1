"""A run as optuna-dashboard shows it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
from optuna.trial import TrialState

from nas.core.errors import InputError, RunError
from nas.report.runs import read_run
from nas.search.dashboard import note_of, serve, study_of
from tests.run_dir_fixture import BUDGET_MS, TABLE_HASH, result, trials, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


def test_trials_carry_flat_figures_of_the_run(run):
    study, known = study_of(read_run(run)), trials().set_index("number")
    assert len(study.trials) == (known["state"] != "duplicate").sum()
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(done) == (known["state"] == "evaluated").sum()
    for trial in study.trials:
        row = known.loc[trial.user_attrs["trial"]]
        assert trial.user_attrs["arch"] == row["arch"]
        assert trial.user_attrs["predicted_ms"] == row["predicted_ms"]
        assert read_run(run).space.arch(trial.params).id == row["arch"]
        assert trial.state is TrialState.PRUNED or trial.values == [row["value"]]
    measured = {each["number"]: each["measured_ms"] for each in result()["finalists"]}
    shown = {trial.user_attrs["trial"]: trial.user_attrs.get("measured_ms") for trial in study.trials}
    assert {number: ms for number, ms in shown.items() if ms is not None} == measured
    assert study.metric_names == ["validation loss"]


def test_the_note_says_budgets_table_and_winner(run):
    note = note_of(read_run(run))
    assert f"limit {BUDGET_MS:.6g}" in note
    assert TABLE_HASH[:12] in note
    assert f"Winner: trial {result()['winner']['number']}" in note


def test_what_cannot_be_shown_is_explained(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(InputError, match=r"pip install 'millinas\[dashboard\]'"):
        serve(run)
    other = write_run(tmp_path / "other")
    (other / "best.json").unlink()
    with pytest.raises(RunError, match=r"does not know its space, efficientformer-32, or best.json is gone"):
        study_of(read_run(other))


@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="needs the extra dashboard")
def test_the_server_answers_with_the_study_its_note_and_its_files(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (run / "report.html").write_text("<p>report")
    server = subprocess.Popen([sys.executable, "-m", "nas", "dashboard", str(run), "--port", str(port)])
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/0") as answer:
                    found = json.load(answer)
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.2)
        assert found["name"] == result()["name"]
        assert found["note"]["body"] == note_of(read_run(run))
        assert {each["filename"] for each in found["artifacts"]} == {"report.html", "best.json"}
    finally:
        server.terminate()
        server.wait()
