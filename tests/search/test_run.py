"""Whole runs on the made-up runtime: what they leave, how they go on, what they refuse.

What is slow is made up: scores, measurements, and but for one test the training of the winner.
"""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

import search_spaces
from nas.core import parts
from nas.core.arch import Arch, calls_of
from nas.core.errors import BudgetError, InputError, MissingLatency, RunError, TableError
from nas.core.files import lock
from nas.evaluation import runs
from nas.evaluation.data import load_data
from nas.evaluation.training import TrainResult
from nas.networks.building import build, cost_of, with_classes
from nas.profiling.machine import this_machine
from nas.report.front import front_data, read_trials
from nas.search import context, resolved, run
from nas.search.archs import load_arch
from nas.search.finalists import Timing
from nas.search.limits import Survey
from nas.search.request import Request
from nas.search.resolved import _table
from nas.tables.table import Entry, Table
from tests.search.fakes import FakeScorer, fake_table, here

SPACE = search_spaces.load("efficientformer-32")
REAL = {"nas.evaluation.runs.train": runs.train, "nas.search.context.load_executor": context.load_executor}
SCORER_OF = context.scorer_of


@pytest.fixture(scope="module")
def table_path(tmp_path_factory):
    machine = this_machine()
    table = fake_table(SPACE, device=machine.slug, cpu=machine.cpu, runtime_version="1")
    return table.write(tmp_path_factory.mktemp("tables") / "t.csv")


class World:
    """How much longer networks take than predicted, what was measured, and what was said."""

    def __init__(self):
        self.slower, self.noise, self.measured, self.weighed, self.lines = 1.0, 0.0, [], [], []

    def measure(self, arch, table):
        self.measured.append(arch.id)
        us = self.slower * table.price(calls_of(arch)).total_us
        return Timing(us, 1.0, self.noise, self.noise > 0, f"machine disturbed by {self.noise}")

    def weigh(self, arch, table):
        self.weighed.append(arch.id)
        return round(1.01 * table.memory(arch))


def untrained(model, data, recipe, *, checkpoint, **settings):
    """Stands for a training of one epoch; leaves a checkpoint as that does."""
    assert "request.yaml" not in {path.name for path in checkpoint.parent.iterdir()}
    checkpoint.touch()
    model.eval()
    epoch = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 0.1}
    return TrainResult(1.0, 0.5, 1.0, 0.5, 0.1, 1, 1.0, (epoch,), "cpu", "fp32")


@pytest.fixture
def world(monkeypatch, tmp_path):
    made = World()
    monkeypatch.setattr(context, "scorer_of", lambda found, asked: FakeScorer(calls=str(tmp_path / "calls")))
    monkeypatch.setattr("nas.search.steps.measure.measure_arch", made.measure)
    monkeypatch.setattr("nas.search.steps.measure.weigh_arch", made.weigh)
    monkeypatch.setattr("nas.evaluation.runs.train", untrained)
    monkeypatch.setattr(context, "load_executor", here)
    monkeypatch.setattr(Survey.__init__, "__defaults__", (200,))
    return made


def request(tmp_path, table_path, **changes):
    given = {"name": "r", "out": str(tmp_path / "r"), "table": str(table_path), "budgets": ["latency_ms<=p40"]}
    small = {"trials": 5, "workers": 1, "finalists": 2, "repeats": 1, "final_epochs": 1, "device": "cpu"}
    return Request(**given | small | changes)


def carry_out(asked, world):
    world.lines.clear()
    folder = run.run_search(asked, log=world.lines.append)
    return folder, json.loads((folder / "result.json").read_text())


def evaluations(tmp_path):
    path = tmp_path / "calls"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_leaves_everything_that_its_report_and_its_user_need(tmp_path, table_path, world, monkeypatch):
    for name, real in REAL.items():
        monkeypatch.setattr(name, real)
    folder, result = carry_out(request(tmp_path, table_path), world)
    trials = read_trials(folder / "trials.csv")
    counts = trials["state"].value_counts()
    assert result["counts"]["evaluated"] == counts["evaluated"] == 5
    assert result["counts"]["proposed"] == len(trials)
    (budget,) = result["budgets"]
    evaluated = trials[trials["state"] == "evaluated"]
    assert (evaluated["predicted_ms"] <= budget["limit"]).all()
    assert (trials[trials["state"] == "infeasible"]["predicted_ms"] > budget["limit"]).all()
    assert set(trials["table_hash"]) == {Table.read(table_path).hash} == {result["provenance"]["table_hash"]}
    best = evaluated.nsmallest(2, "val_loss")["arch"].tolist()
    assert [finalist["arch"] for finalist in result["finalists"]] == best == world.measured
    repeats = {item["arch"]: item["val_losses"][1] for item in result["finalists"]}  # the first chose the finalists
    assert result["winner"]["arch"] == min(repeats, key=repeats.get)
    arch = Arch.from_json((folder / "best.json").read_text())
    assert arch.id == result["winner"]["arch"]
    assert result["winner"]["predicted_ms"] == pytest.approx(
        Table.read(table_path).price(calls_of(arch)).total_us / 1000
    )
    assert sum(block["us"] for block in result["winner"]["blocks"]) / 1000 <= 1.0001 * result["winner"]["predicted_ms"]
    assert len(front_data(trials)) == len((folder / "front.csv").read_text().splitlines()) - 1
    assert (folder / "report.html").stat().st_size > 1e6
    assert not list(folder.rglob("checkpoint*"))
    assert not (folder / "next").exists()
    assert result["winner"]["onnx"]["images"] == 32
    assert 0 < result["winner"]["onnx"]["difference"] < 1e-4
    assert Request.read(folder / "request.yaml").trials == 5


def test_the_exported_network_computes_what_the_trained_one_does(tmp_path, table_path, world):
    folder, _ = carry_out(request(tmp_path, table_path, finalists=1, repeats=0), world)
    model = build(Arch.from_json((folder / "best.json").read_text()))
    model.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    x = torch.randn(1, 3, 32, 32)
    session = onnxruntime.InferenceSession(folder / "best.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input0": x.numpy()})
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    assert abs(got - expected).max() <= 1e-4 * abs(expected).max()


def test_a_finished_run_only_gets_its_report_again(tmp_path, table_path, world):
    asked = request(tmp_path, table_path)
    folder, before = carry_out(asked, world)
    begun = evaluations(tmp_path)
    (folder / "report.html").unlink()
    _, after = carry_out(asked, world)
    assert after == before
    assert "is finished" in "".join(world.lines)
    assert evaluations(tmp_path) == begun
    assert len(world.measured) == 2
    assert (folder / "report.html").exists()


def test_a_run_with_more_trials_goes_on_after_the_last(tmp_path, table_path, world):
    carry_out(request(tmp_path, table_path), world)
    folder, result = carry_out(request(tmp_path, table_path, trials=8), world)
    assert result["counts"]["evaluated"] == 8
    searched = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    assert searched["arch"].is_unique
    assert len(evaluations(tmp_path)) <= 8 + 4  # with one repeat of each finalist of either time
    assert Request.read(folder / "request.yaml").trials == 8


def test_a_winner_at_chance_level_is_said_everywhere_and_not_in_green(tmp_path, table_path, world, monkeypatch):
    def guessing(*args, **settings):
        return replace(untrained(*args, **settings), test_accuracy=36 / 360)

    monkeypatch.setattr("nas.evaluation.runs.train", guessing)
    folder, result = carry_out(request(tmp_path, table_path), world)
    chance = result["winner"]["training"]["chance"]
    assert (chance["images"], chance["beyond"]) == (360, False)
    assert chance["level"] == pytest.approx(37 / 360)  # the largest class of the test images
    assert "no better than chance: 10.0% of 360 images" in result["warnings"][0]
    assert f"WARNING: {result['warnings'][0]}" in world.lines
    report = (folder / "report.html").read_text()
    assert "It fits, but it is no better than chance." in report
    assert 'class="good">It fits' not in report
    assert result["warnings"][0].replace("'", "&#39;") in report


def test_a_run_measured_on_a_disturbed_machine_says_so_and_a_quiet_repeat_mends_it(
    tmp_path, table_path, world, monkeypatch
):
    world.noise, world.slower = 0.4, 0.9
    folder, result = carry_out(request(tmp_path, table_path), world)
    assert len(world.measured) == 2 * 2  # each finalist twice
    assert all(finalist["measured_disturbed"] for finalist in result["finalists"])
    disturbed = [line for line in result["warnings"] if "machine disturbed by 0.4" in line]
    assert len(disturbed) == 2
    assert "machine disturbed by 0.4" in (folder / "report.html").read_text()
    assert any("measured (machine disturbed by 0.4)" in line for line in world.lines)
    trained = result["winner"]["training"]
    begun, weights = evaluations(tmp_path), (folder / "best.pt").read_bytes()
    world.noise, world.slower = 0.0, 0.8
    monkeypatch.setattr("nas.evaluation.runs.train", None)  # nothing is trained again
    folder, result = carry_out(request(tmp_path, table_path), world)
    assert not any(finalist["measured_disturbed"] for finalist in result["finalists"])
    assert result["winner"]["measured_ms"] == pytest.approx(0.8 * result["winner"]["predicted_ms"])
    assert not any("disturbed" in line for line in result["warnings"])
    assert (result["winner"]["training"], evaluations(tmp_path)) == (trained, begun)
    assert (folder / "best.pt").read_bytes() == weights
    carry_out(request(tmp_path, table_path), world)
    assert "is finished" in "".join(world.lines)
    assert len(world.measured) == 2 * 2 + 2


def test_a_table_of_a_noisy_machine_is_said_with_the_command_that_profiles_again(tmp_path, world):
    machine = this_machine()
    table = fake_table(SPACE, device=machine.slug, cpu=machine.cpu, runtime_version="1", noise=0.6)
    path = table.write(tmp_path / "noisy.csv")
    folder, result = carry_out(request(tmp_path, path), world)
    (warning,) = [line for line in result["warnings"] if "noisy machine (60% of samples in slow spells)" in line]
    assert f"nas profile {SPACE.name} --runtime fake --threads 1 --precision fp32 --level block --table FILE" in warning
    assert world.lines.count(f"WARNING: {warning}") == 2  # before the search and with its result
    assert "60% of samples in slow spells" in (folder / "report.html").read_text()


# With minutes: every candidate takes 20 s, a measurement 6 s, an epoch of the winner 5 s of a clock that is made up.


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(world, monkeypatch):
    made = Clock()

    def score(arch, seed, on_epoch):
        made.now += 20
        return replace(FakeScorer()(arch, seed), seconds=20.0)

    def measure(arch, table):
        made.now += 6
        return world.measure(arch, table)

    def train(model, data, recipe, **settings):
        made.now += 5 * recipe.epochs
        return replace(untrained(model, data, recipe, **settings), epochs=recipe.epochs)

    monkeypatch.setattr(run, "clock", made)
    monkeypatch.setattr(context, "scorer_of", lambda found, asked: score)
    monkeypatch.setattr("nas.search.steps.measure.measure_arch", measure)
    monkeypatch.setattr("nas.evaluation.runs.train", train)
    return made


@pytest.mark.parametrize("minutes", [1, 4, 8, 20])
def test_a_search_ends_in_time_with_measured_and_trained_finalists(tmp_path, table_path, world, clock, minutes):
    wanted = {"trials": 30, "finalists": 2, "repeats": 2, "final_epochs": 40}
    folder, result = carry_out(request(tmp_path, table_path, minutes=minutes, **wanted), world)
    done, epochs = result["counts"]["evaluated"], result["winner"]["training"]["epochs"]
    assert clock.now <= 60 * minutes
    assert result["winner"]["measured_ms"] is not None
    assert (folder / "best.onnx").exists()
    cut = [line for line in result["warnings"] if f"To end in {minutes} minutes, the search made" in line]
    if minutes == 20:  # all of it takes 30 * 20 + 2 * 6 + 4 * 20 + 40 * 5 = 892 s
        assert (clock.now, done, epochs, cut) == (892, 30, 40, [])
    else:
        assert clock.now >= 0.5 * 60 * minutes
        assert 1 <= done < 30
        assert 1 <= epochs <= 40
        assert f"{done} of 30 candidates" in cut[0]
        assert any(f"ends after {done} of 30 candidates" in line for line in world.lines)


def test_minutes_may_change_and_without_them_a_run_goes_on(tmp_path, table_path, world, clock):
    wanted = {"trials": 8, "finalists": 1, "repeats": 0, "final_epochs": 10}
    asked = request(tmp_path, table_path, minutes=3, **wanted)
    _, first = carry_out(asked, world)
    assert first["counts"]["evaluated"] < 8
    at = clock.now
    carry_out(asked, world)  # the same again has nothing to do
    assert "is finished" in "".join(world.lines)
    assert clock.now == at
    _, result = carry_out(request(tmp_path, table_path, **wanted), world)
    assert result["counts"]["evaluated"] == 8
    assert result["winner"]["training"]["epochs"] == 10


def test_a_limit_of_images_reaches_every_training_and_is_compared(tmp_path, table_path, world, monkeypatch):
    trained = []

    def train(model, data, recipe, **settings):
        trained.append(len(data.train) + len(data.val))
        return untrained(model, data, recipe, **settings)

    monkeypatch.setattr("nas.evaluation.runs.train", train)
    carry_out(request(tmp_path, table_path, limit=300), world)
    assert trained == [300]
    with pytest.raises(RunError, match="limit: 300 there, None now"):
        carry_out(request(tmp_path, table_path), world)


def test_the_scorer_gets_the_limit(tmp_path):
    asked, found = Request(limit=300), SimpleNamespace(space=SPACE)
    run = SimpleNamespace(request=asked, found=found, folder=tmp_path, prepared=lambda asked: {})
    assert SCORER_OF(run, asked.evaluator[0]).limit == 300


@pytest.mark.parametrize(
    "broken",
    [
        "nas.search.steps.measure.with_measurements",
        "nas.search.steps.repeat.with_repeats",
        "nas.evaluation.runs.train",
        "nas.evaluation.runs.write_history",
        "nas.search.steps.export.export_onnx",
        "nas.search.steps.export.check_onnx",
        "nas.search.steps.export.result_data",
        "nas.search.steps.export.swap",
        "nas.search.steps.report.write_report",
    ],
)
def test_a_run_that_ends_in_the_middle_of_finishing_does_no_step_twice(
    tmp_path, table_path, world, monkeypatch, broken
):
    asked = request(tmp_path, table_path)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(broken, die)
        with pytest.raises(KeyboardInterrupt):
            carry_out(asked, world)
    _, result = carry_out(asked, world)
    assert result["counts"]["evaluated"] == 5
    assert len(evaluations(tmp_path)) == 5 + 2
    assert len(world.measured) == len(set(world.measured)) == 2


def test_a_run_tells_what_a_model_of_its_candidates_believes(tmp_path, table_path, world):
    folder, result = carry_out(request(tmp_path, table_path, trials=12), world)
    belief, trials = result["belief"], read_trials(folder / "trials.csv")
    assert belief["candidates"] == 12
    best = trials[trials["state"] == "evaluated"].nsmallest(1, "val_loss").iloc[0]
    assert (belief["best_trained"]["arch"], belief["best_trained"]["number"]) == (best["arch"], best["number"])
    assert belief["best"]["predicted_ms"] <= result["budgets"][0]["limit"]
    assert belief["effects"]
    assert 'id="belief"' in (folder / "report.html").read_text()


def test_a_front_is_searched_and_its_finalists_lie_along_it(tmp_path, table_path, world):
    asked = request(tmp_path, table_path, objective="front", trials=8, finalists=3, budgets=[], sampler="nsga2")
    folder, result = carry_out(asked, world)
    front = front_data(read_trials(folder / "trials.csv"))
    chosen = [finalist["arch"] for finalist in result["finalists"]]
    assert set(chosen) <= set(front["arch"])
    assert front["arch"].iloc[-1] in chosen
    assert len(chosen) == min(3, len(front))


def test_over_the_measured_budget_nobody_wins_and_the_nearest_miss_is_named(tmp_path, table_path, world):
    world.slower = 3.0
    asked = request(tmp_path, table_path)
    with pytest.raises(RunError, match=r"none of the 5 candidates measured keeps its budget\. The nearest miss"):
        carry_out(asked, world)
    folder = asked.run_dir
    assert (folder / "trials.csv").exists()
    assert (folder / "front.csv").exists()
    assert not (folder / "result.json").exists()
    world.slower = 0.9
    _, result = carry_out(request(tmp_path, table_path, trials=8), world)  # new candidates are measured
    fitting = [finalist["arch"] for finalist in result["finalists"] if finalist["fits"]]
    assert len(fitting) == asked.finalists < len(result["finalists"])  # measured until enough of them fit
    assert result["winner"]["arch"] in fitting


def test_on_another_machine_nothing_is_measured_and_that_is_said(tmp_path, world, monkeypatch):
    path = fake_table(SPACE, device="a-phone", cpu="a phone's").write(tmp_path / "phone.csv")
    folder, result = carry_out(request(tmp_path, path), world)
    report = (folder / "report.html").read_text()
    assert "Not this machine" in report
    assert "was not measured" in report
    assert world.measured == []
    assert "NOT THIS MACHINE" in world.lines[0]
    assert "a phone's" in world.lines[0]
    assert result["provenance"]["not_this_machine"] is True
    assert result["winner"]["measured_ms"] is None
    assert result["winner"]["fits"] is True


def test_a_contradicting_request_is_refused_and_changes_nothing(tmp_path, table_path, world):
    folder, _ = carry_out(request(tmp_path, table_path), world)
    stored = (folder / "request.yaml").read_text()
    with pytest.raises(RunError, match=r"seed: 0 there, 1 now"):
        carry_out(request(tmp_path, table_path, seed=1), world)
    assert (folder / "request.yaml").read_text() == stored


def test_a_changed_table_is_refused(tmp_path, table_path, world):
    mine = tmp_path / "mine.csv"
    mine.write_text(table_path.read_text())
    carry_out(request(tmp_path, mine), world)
    table = Table.read(mine)
    Table(table.header, table.entries, table.networks[1:]).write(mine)
    with pytest.raises(RunError, match="is not the one this run was begun with"):
        carry_out(request(tmp_path, mine), world)


def test_a_command_that_leaves_the_table_out_is_told_so(tmp_path, table_path, world):
    carry_out(request(tmp_path, table_path, space=SPACE.name), world)
    with pytest.raises(RunError, match="was begun with a table that this command does not name"):
        carry_out(request(tmp_path, "", table=None, space=SPACE.name, runtime="fake"), world)


@pytest.mark.parametrize("kind", ["sqlite:///{}/s.db", "{}/shared.journal"])
def test_a_study_goes_on_in_another_folder(tmp_path, table_path, world, kind):
    storage, other = kind.format(tmp_path), str(tmp_path / "other")
    first, _ = carry_out(request(tmp_path, table_path, storage=storage, trials=3), world)
    with pytest.raises(RunError, match=r"seed: 0 there, 1 now"):
        carry_out(request(tmp_path, table_path, storage=storage, out=other, seed=1), world)
    assert not (tmp_path / "other" / "request.yaml").exists()
    then, result = carry_out(request(tmp_path, table_path, storage=storage, out=other, trials=5), world)
    assert any("begun in another folder" in line for line in world.lines)
    before, after = read_trials(first / "trials.csv"), read_trials(then / "trials.csv")
    assert after["arch"].tolist()[: len(before)] == before["arch"].tolist()
    assert result["counts"]["evaluated"] == 5
    assert (then / "report.html").is_file()


def test_a_default_journal_that_another_run_names_is_refused(tmp_path, table_path, world):
    folder, _ = carry_out(request(tmp_path, table_path, trials=2), world)
    with lock(folder / "study.journal.owner", "x"), pytest.raises(RunError, match="is in use by process"):
        carry_out(request(tmp_path, table_path, trials=3), world)


def test_a_study_that_is_none_of_a_run_is_refused(tmp_path, table_path, world):
    import optuna

    storage = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(study_name="r", storage=storage)
    study.tell(study.ask(), 1.0)
    with pytest.raises(RunError, match="has trials already"):
        carry_out(request(tmp_path, table_path, storage=storage), world)


def test_a_journal_that_another_run_writes_is_refused(tmp_path, table_path, world):
    asked = request(tmp_path, table_path, storage=str(tmp_path / "shared.journal"))
    with lock(tmp_path / "shared.journal.owner", "x"), pytest.raises(RunError, match="is in use by process"):
        carry_out(asked, world)


def test_a_run_in_use_is_refused(tmp_path, table_path, world):
    asked = request(tmp_path, table_path)
    with lock(asked.run_dir / "lock", asked.run_dir), pytest.raises(RunError, match="is in use by process"):
        carry_out(asked, world)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"budgets": ["latency_ms<=0.0001"]}, BudgetError, "smallest architecture"),
        ({"space": "efficientformer"}, TableError, "3x32x32"),
        ({"space": "efficientformr"}, InputError, "did you mean 'efficientformer'"),
        ({"table": "no/such.csv"}, InputError, "no/such.csv"),
        ({"table": None}, InputError, "neither a space nor a table"),
        ({"device": "cudda"}, InputError, "cudda"),
        ({"budgets": ["latency_ms[no/such.csv]<=5"]}, InputError, "no/such.csv"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_trained(tmp_path, table_path, world, changes, error, says):
    asked = request(tmp_path, table_path, **changes)
    with pytest.raises(error, match=says):
        carry_out(asked, world)
    assert evaluations(tmp_path) == []
    assert not (asked.run_dir / "request.yaml").exists()  # so that a corrected request contradicts nothing


def test_a_storage_that_cannot_be_used_is_said_before_this_machine_is_profiled(
    tmp_path, table_path, world, monkeypatch
):
    monkeypatch.setattr("nas.search.resolved.profiler.profile", None)
    asked = request(tmp_path, table_path, table=None, space=SPACE.name, runtime="fake", storage="nonsense://x")
    with pytest.raises(InputError, match="storage: Optuna cannot use 'nonsense://x'"):
        carry_out(asked, world)


def test_an_uncalibrated_table_is_refused_unless_asked_for(tmp_path, table_path, world):
    table = Table.read(table_path)
    path = Table(table.header, table.entries).write(tmp_path / "raw.csv")
    with pytest.raises(TableError, match=r"is not calibrated.*allow_uncalibrated"):
        carry_out(request(tmp_path, path), world)
    _, result = carry_out(request(tmp_path, path, allow_uncalibrated=True, repeats=0, finalists=1), world)
    assert result["provenance"]["calibration"] is None


def sure_table(tmp_path):
    """A table of this machine with 48 calibration networks, which take 4 kB for each parameter and 1 MB."""
    machine = this_machine()
    table = fake_table(SPACE, 48, device=machine.slug, cpu=machine.cpu, runtime_version="1")
    networks = [replace(item, peak_bytes=4000 * cost_of(item.arch).params + 10**6) for item in table.networks]
    return Table(table.header, table.entries, networks).write(tmp_path / "sure.csv")


def test_a_budget_with_confidence_and_one_on_memory_are_kept_and_reported(tmp_path, world):
    path = sure_table(tmp_path)
    table = Table.read(path)
    budgets = ["latency_ms<=p60 @ 0.95", "memory_mb<=p60"]
    folder, result = carry_out(request(tmp_path, path, budgets=budgets), world)
    latency, memory = result["budgets"]
    assert (latency["asked"], latency["confidence"], memory["confidence"]) == ("latency_ms<=p60 @ 0.95", 0.95, None)
    factor = table.calibrations[SPACE.input_shape].bound(0.95)
    trials = read_trials(folder / "trials.csv")
    evaluated = trials[trials["state"] == "evaluated"]
    assert (factor * evaluated["predicted_ms"] <= latency["limit"] * (1 + 1e-9)).all()
    arch = Arch.from_json((folder / "best.json").read_text())
    expected = (4000 * cost_of(arch).params + 10**6) / 1e6
    assert result["winner"]["memory_mb"] == pytest.approx(expected, rel=0.01)
    assert memory["used"] == result["winner"]["measured_memory_mb"] <= memory["limit"]
    assert memory["used"] == pytest.approx(1.01 * result["winner"]["memory_mb"])
    assert sorted(world.weighed) == sorted(world.measured)
    assert latency["used"] == result["winner"]["measured_ms"]
    assert result["winner"]["unmeasured_percent"] == 0
    assert any("with 95 % confidence" in line for line in world.lines)
    assert "kept with 95 % confidence" in (folder / "report.html").read_text()


def test_a_confidence_that_the_table_cannot_give_is_refused(tmp_path, table_path, world):
    with pytest.raises(BudgetError, match=r"needs 40 calibration networks .* has 12; .*nas profile"):
        carry_out(request(tmp_path, table_path, budgets=["latency_ms<=1 @ 0.95"]), world)


def test_a_search_that_profiles_measures_as_many_networks_as_its_confidences_need(tmp_path, table_path, monkeypatch):
    wanted = []

    def profile(space, *, networks, **settings):
        wanted.append(networks)
        return Table.read(table_path)

    monkeypatch.setattr(resolved.profiler, "profile", profile)
    for confidences in ([], [0.95], [0.9, 0.99]):
        budgets = ["latency_ms<=p90", *(f"latency_ms<=50 @ {sure}" for sure in confidences)]
        asked = request(tmp_path, table_path, table=None, space=SPACE.name, runtime="fake", budgets=budgets)
        with contextlib.suppress(BudgetError):  # the table has 12
            named = resolved.name_request(asked, print)
            table = resolved.complete_table(named, print, lambda *facts: None)
            resolved.resolve_request(named, table, print)
    assert wanted == [12, 40, 99]


def test_the_level_picks_the_twin_of_a_table(tmp_path, table_path):
    block = Table.read(table_path)
    header = replace(block.header, level="op")
    path = block.write(tmp_path / "t.csv")
    twin = Table(header, [Entry(row, 1.0, 0.1, 3) for row in SPACE.op_rows()]).write(tmp_path / "t-op.csv")
    assert _table(str(path), None).header.level == "block"
    assert _table(str(path), "block").header.level == "block"
    assert _table(str(path), "op").path == twin
    assert _table(str(twin), "op").path == twin
    assert _table(str(twin), "block").path == path
    twin.unlink()
    with pytest.raises(
        TableError, match=r"no t-op.csv beside it; make it: nas profile SPACE .*--level op --table .*t-op"
    ):
        _table(str(path), "op")
    block.write(twin)
    with pytest.raises(TableError, match=r"t-op.csv is a table of block rows"):
        _table(str(path), "op")
    for field, other in {
        "device": "pixel7",
        "cpu": "A78",
        "runtime": "ncnn",
        "precision": "int8",
        "threads": 4,
    }.items():
        Table(replace(header, **{field: other}), [Entry(row, 1.0, 0.1, 3) for row in SPACE.op_rows()]).write(twin)
        with pytest.raises(TableError, match=rf"t-op\.csv is no twin of .*t\.csv: its {field} is {other!r}, not "):
            _table(str(path), "op")


def test_the_level_is_one_of_two():
    with pytest.raises(InputError, match="level: expected 'block' or 'op', got 'node'"):
        Request(level="node")


def test_a_classifier_that_the_table_lacks_is_measured_on_the_spot_into_a_copy(
    tmp_path, table_path, world, monkeypatch
):
    asked = []

    def profile(space, *, path, rows, **settings):
        asked.append((space.classes, {type(row.unit).__name__ for row in rows}, len(rows), settings["runtime"]))
        table = Table.read(path)
        return Table(table.header, [*table.entries, *(Entry(row, 1.0, 0.0, 1) for row in rows)], table.networks, path)

    seven = replace(load_data("digits", (3, 32, 32)), classes=7)
    monkeypatch.setattr("nas.search.resolved.load_data", lambda *args, **settings: seven)
    monkeypatch.setattr("nas.evaluation.runs.load_data", lambda *args, **settings: seven)
    monkeypatch.setattr("nas.search.resolved.profiler.profile", profile)
    before = table_path.read_text()
    folder, result = carry_out(request(tmp_path, table_path), world)
    assert asked == [(7, {"Logits"}, 2, "fake")]
    assert table_path.read_text() == before
    assert result["provenance"]["table"] == str(folder / f"table-{Table.read(table_path).hash[:8]}.csv")
    assert Arch.from_json((folder / "best.json").read_text()).classes == 7
    assert "searching it with 7" in world.lines[0]


def test_a_table_that_lacks_many_rows_is_refused_naming_them(tmp_path, table_path, world):
    table = Table.read(table_path)
    path = Table(table.header, table.entries[:10], table.networks[:0]).write(tmp_path / "few.csv")
    with pytest.raises(MissingLatency, match="lacks 46 of 56 block rows"):
        carry_out(request(tmp_path, path, allow_uncalibrated=True), world)


def test_the_real_scorer_trains_and_repeats_itself(table_path):
    from nas.evaluation.evaluators import load_evaluator
    from nas.metrics import load_metric
    from nas.search.scoring import CandidateScorer

    _, arch = load_metric("macs").smallest(SPACE, Table.read(table_path))
    scorer = CandidateScorer(load_evaluator("short", epochs=1), "digits", (3, 32, 32), 0, "cpu")
    first, again, other = (scorer(arch.to_json(), seed) for seed in (0, 0, 1))
    assert first.val_loss == again.val_loss != other.val_loss
    assert 0.1 < first.val_accuracy <= 1


def test_a_run_holds_choices_and_a_side_and_goes_on_with_them(tmp_path, world):
    space = parts.load("efficientformer-32", 48)
    path = tmp_path / "t.csv"
    fake_table(space).write(path)
    fix = {"stage1.width": 16, "stage2.width": [32, 48], "tail": 1}
    asked = request(tmp_path, path, space="efficientformer-32", side=48, fix=fix)
    folder, result = carry_out(asked, world)
    part = parts.load("efficientformer-32", 48, fix)
    trials = read_trials(folder / "trials.csv")
    evaluated = trials[trials["state"] == "evaluated"]
    archs = [load_arch(f"{folder}@{number}") for number in evaluated["number"]]
    assert all(arch in part for arch in archs)
    assert {arch.input_shape for arch in archs} == {(3, 48, 48)}
    assert result["feasible"]["archs"] == part.count()
    stored = Request.read(folder / "request.yaml")
    assert (stored.side, stored.fix["tail"]) == (48, (1,))
    again, _ = carry_out(asked.with_(trials=7), world)
    assert len(read_trials(again / "trials.csv")) == 7
    with pytest.raises(RunError, match="fix: "):
        carry_out(asked.with_(fix={"tail": 1}), world)


def test_a_search_says_what_fits_before_it_trains(tmp_path, table_path, world):
    folder, result = carry_out(request(tmp_path, table_path), world)
    (line,) = [line for line in world.lines if "networks of" in line and " fit (" in line]
    found = result["feasible"]
    assert f"{found['smallest_ms']:.4g} to {found['largest_ms']:.4g} ms" in line
    assert found["fit"] <= found["archs"]
    assert [each["asked"] for each in found["budgets"]] == ["latency_ms<=p40"]
    assert "What fits" in (folder / "report.html").read_text()
    assert list(folder.glob("feasible-*.npz"))


SMALL_PART = {
    **{f"stage{n}.width": width for n, width in ((1, 16), (2, 32), (3, 48), (4, 96))},
    **{f"stage{n}.ratio": 2 for n in (1, 2, 3, 4)},
    **{"stage1.depth": 1, "stage2.depth": 1, "stage3.depth": 1, "tail": [0, 1]},
}


def test_a_set_that_is_exhausted_ends_the_search_with_what_was_found(tmp_path, table_path, world):
    part = parts.load(SPACE.name, fix=SMALL_PART)
    asked = request(tmp_path, table_path, space=SPACE.name, fix=SMALL_PART, budgets=["latency_ms<=p70"], trials=60)
    folder, result = carry_out(asked, world)
    fits = result["feasible"]["fit"]
    assert 0 < fits < part.count() < 60
    trials = read_trials(folder / "trials.csv")
    assert set(trials["state"]) == {"evaluated"}
    assert len(set(trials["arch"])) == len(trials) == fits
    assert any("every network that fits was proposed" in line for line in world.lines)
    assert result["winner"]["arch"] in set(trials["arch"])


def space_values(name):
    return list(SPACE.choices[name].values)


def test_a_budget_that_only_what_is_held_keeps_from_being_met_says_what_to_loosen(tmp_path, table_path, world):
    table = Table.read(table_path)
    fix = {"stage4.width": 128, "stage1.ratio": 2}
    needed = table.extremes(parts.load(SPACE.name, fix=fix))[0][0] / 1000
    without = {
        f"{name}={value}": table.extremes(parts.load(SPACE.name, fix=fix | {name: space_values(name)}))[0][0] / 1000
        for name, value in fix.items()
    }
    limit = (min(without.values()) + needed) / 2
    helps = [text for text, smallest in without.items() if smallest <= limit]
    assert helps
    asked = request(tmp_path, table_path, space=SPACE.name, fix=fix, budgets=[f"latency_ms<={limit!r}"])
    with pytest.raises(BudgetError) as caught:
        carry_out(asked, world)
    assert str(caught.value).endswith(f"some do where fix does not hold {' or not '.join(helps)}")
    assert not evaluations(tmp_path)
    assert not (tmp_path / "r" / "request.yaml").exists()


def test_published_networks_of_its_image_size_stand_beside_a_run_which_begins_with_those_that_fit(
    tmp_path, table_path, world, monkeypatch
):
    table = Table.read(table_path)
    (_, fast), (_, slow) = table.extremes(SPACE)
    presets = {
        "fast": with_classes(fast, 1000),
        "slow": slow,
        "unpublished": slow,
        "elsewhere": replace(fast, input_shape=(3, 64, 64)),
    }
    reported = {
        "fast": search_spaces.Published(0.7, "arXiv:1", "300 epochs"),
        "slow": search_spaces.Published(0.8, "arXiv:2"),
        "elsewhere": search_spaces.Published(0.9, "arXiv:3"),
    }
    monkeypatch.setattr(search_spaces, "presets", lambda: presets)
    monkeypatch.setattr(
        search_spaces, "published", lambda: {name: reported.get(name, search_spaces.Published()) for name in presets}
    )
    _, result = carry_out(request(tmp_path, table_path), world)
    assert [(each["name"], each["top1"]) for each in result["published"]] == [("fast", 0.7), ("slow", 0.8)]
    for each, arch in zip(result["published"], (fast, slow), strict=True):  # both with the classes of the run
        latency = table.price(calls_of(arch))
        assert each["predicted_ms"] == latency.total_us / 1000
        assert (each["params"], each["macs"]) == (cost_of(arch).params, cost_of(arch).macs)
    trials = read_trials(tmp_path / "r" / "trials.csv")
    assert result["begun_with"] == {"fast": 0}
    assert trials["arch"][0] == fast.id
    assert slow.id not in trials["arch"].tolist()
    page = " ".join((tmp_path / "r" / "report.html").read_text().split())
    assert f"The sampler began with the published networks that fit: fast (<code>{tmp_path / 'r'}@0</code>)." in page
    assert "All 2 published networks on this table" in page
    _, result = carry_out(request(tmp_path, table_path, name="s", out=str(tmp_path / "s"), start="none"), world)
    assert result["begun_with"] == {}
    assert [each["name"] for each in result["published"]] == ["fast", "slow"]
