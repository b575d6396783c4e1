"""Evaluators through the real path of a search: settings, values that are no loss, what is prepared, features."""

import json
import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from nas.core import plugins
from nas.core.arch import Arch
from nas.core.errors import InputError, RunError
from nas.evaluation import supernet as training
from nas.evaluation.checkpoint import write_weights
from nas.evaluation.evaluators import Score, load_evaluator, read_asked, titles_of
from nas.networks.building import build, cost_of
from nas.report.front import read_trials
from nas.search import context
from nas.search.executors.local import EXECUTOR
from nas.search.finalists import Finalist, rank
from nas.search.request import Request
from nas.search.scoring import CandidateScorer, Features
from nas.search.timing import Watch
from nas.search.trials import Record, record_of
from nas.search.workers import Task, outcome_of
from tests.search import test_run
from tests.search.fakes import tiny_space, without_times
from tests.search.test_run import carry_out, request

table_path, world = test_run.table_path, test_run.world
SCORER_OF = context.scorer_of

SLIMNESS = '''
"""A score without training: parameters and a hash of the seed, so that repeats would differ."""
from dataclasses import dataclass

from nas.evaluation.evaluators import Evaluator, Score


@dataclass(frozen=True)
class Slimness(Evaluator):
    scale: float = 1e6
    calls: str = ""

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        if self.calls:
            with open(self.calls, "a") as file:
                file.write(f"{arch.id}\\n")
        params = sum(weight.numel() for weight in build_model().parameters())
        return Score(-params / self.scale + seed, "slimness")


EVALUATOR = Slimness
'''
PREPARED = """
from dataclasses import dataclass
from pathlib import Path

from nas.core.files import write_text
from nas.evaluation.evaluators import Evaluator, Score


@dataclass(frozen=True)
class Prepared(Evaluator):
    def prepare(self, space, feasible, data, folder, *, seed=0, device="cpu", threads=1, progress=None):
        for step in range(3):
            progress(step, 3, None, f"step {step}")
            if (folder / f"{step}").is_file():
                continue
            if (folder / "stop").is_file() and step == 1:
                (folder / "stop").unlink()
                raise KeyboardInterrupt
            write_text(folder / f"{step}", str(len(data.train)))
        content = (folder / "2").read_text()
        return {"file": str(folder / "2"), "fits": feasible.about, "content": content, "space": space.name}

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        assert Path(prepared["file"]).read_text() == prepared["content"]
        return Score(int(arch.id[:6], 16) / 16**6, "made up")


EVALUATOR = Prepared
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of evaluators outside the package."""
    for name in [name for name in sys.modules if name.split(".")[0] == plugins.OUTSIDE]:
        monkeypatch.delitem(sys.modules, name)
    made = tmp_path / "plugins"
    made.mkdir()
    (made / "slimness.py").write_text(SLIMNESS)
    (made / "prepared.py").write_text(PREPARED)
    monkeypatch.setenv("NAS_PLUGINS", str(made))
    return made


@pytest.fixture
def real(world, folder, monkeypatch):
    """The world of `test_run`, but with the scorers of a real search."""
    monkeypatch.setattr(context, "scorer_of", SCORER_OF)
    return world


# settings


def test_the_spellings_of_an_evaluator_are_equal():
    old = Request(evaluator="short", epochs=2)
    for spelled in ({"short": {"epochs": 2}}, [{"short": {"epochs": 2}}], "{short: {epochs: 2}}"):
        assert Request(evaluator=spelled) == old
        assert Request(evaluator=spelled, epochs=2) == old
    assert Request() == Request(evaluator="short") == Request(evaluator={"short": None}) == Request(epochs=4)
    assert old != Request()
    old.require_same(Request(evaluator={"short": {"epochs": 2}}))
    with pytest.raises(RunError, match=r"evaluator: .*'epochs': 2.* there, .*'epochs': 4"):
        Request().require_same(old)


def test_epochs_beside_the_evaluator_change_those_of_a_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("evaluator: {short: {epochs: 2, recipe: small}}\n")
    assert Request.read(path, epochs=6).evaluator[0]["short"] == {
        "epochs": 6,
        "recipe": {"epochs": 6, "batch_size": 64},  # of the recipe; its epochs do not count
    }
    assert Request.read(path).with_(epochs=3).evaluator[0]["short"]["epochs"] == 3
    path.write_text("evaluator: short\nepochs: 2\n")
    assert Request.read(path, epochs=6) == Request(epochs=6)
    assert Request.read(path, evaluator="short") == Request()  # the epochs were those of what is replaced
    path.write_text("evaluator: {short: {epochs: 2}}\nepochs: 3\n")
    with pytest.raises(InputError, match="short has epochs: 2, and epochs: 3 stands beside it; choose one"):
        Request.read(path)


def test_a_saved_request_spells_the_evaluator_with_all_its_settings(tmp_path):
    (tmp_path / "r.yaml").write_text(Request(features=["short"], final_recipe="small").to_yaml())
    text = (tmp_path / "r.yaml").read_text()
    assert "evaluator:\n  short:\n    epochs: 4\n    recipe:\n      batch_size: 32\n" in text
    assert "\nepochs" not in text
    assert Request.read(tmp_path / "r.yaml") == Request(features=["short"], final_recipe="small")


@pytest.mark.parametrize(
    ("spelled", "says"),
    [
        ({"short": {"epoch": 2}}, "unknown setting of evaluator short 'epoch', did you mean 'epochs'"),
        ({"short": {"epochs": "many"}}, "evaluator short: epochs: .*valid integer.*, got 'many'"),
        ({"short": {"epochs": 0}}, "evaluator short: epochs: .*greater than 0"),
        ({"short": {"recipe": "smal"}}, "unknown recipe 'smal', did you mean 'small'"),
        ({"short": 3}, "short: expected its settings"),
        ({"short": {}, "other": {}}, "expected a name, such as short"),
        ([], "expected an evaluator, such as short, got none"),
        ("shrt", "unknown evaluator 'shrt', did you mean 'short'"),
        ("{short", "cannot be read as YAML"),
    ],
)
def test_a_wrong_evaluator_says_what_is_wrong(spelled, says):
    with pytest.raises(InputError, match=f"evaluator: .*{says}"):
        Request(evaluator=spelled)


def test_epochs_of_an_evaluator_without_them_are_refused(folder):
    with pytest.raises(InputError, match="evaluator slimness has no epochs, but epochs: 3 is asked for"):
        Request(evaluator="slimness", epochs=3)


def test_several_evaluators_are_read_in_their_order_and_none_twice_the_same():
    asked = Request(evaluator=["naswot", "short"], epochs=3)
    assert [list(each) for each in asked.evaluator] == [["naswot"], ["short"]]
    assert asked.evaluator[1]["short"]["epochs"] == 3
    twice = Request(evaluator="[naswot, {short: {epochs: 2}}, {short: {epochs: 6}}]")
    assert titles_of(twice.evaluator) == ["naswot", "short (epochs 2)", "short (epochs 6)"]
    with pytest.raises(InputError, match="evaluator: short: stands there twice with the same settings"):
        Request(evaluator=["short", {"short": {"epochs": 4}}])
    with pytest.raises(InputError, match="features: short: stands there twice"):
        Request(features=["short", {"short": {"epochs": 2}}])


def test_settings_are_those_of_the_evaluator():
    assert load_evaluator("short").epochs == 4
    ((settings,),) = (each.values() for each in read_asked({"short": {"recipe": {"lr": 0.1}}}))
    assert load_evaluator("short", **settings).recipe.lr == 0.1


# values that are no loss


def test_a_search_compares_by_a_score_without_training(tmp_path, table_path, real):
    calls = tmp_path / "calls"
    asked = request(
        tmp_path, table_path, evaluator={"slimness": {"calls": str(calls)}}, trials=6, finalists=2, repeats=3
    )
    folder, result = carry_out(asked, real)
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    assert trials["value"].tolist() == pytest.approx((-trials["params"] / 1e6).tolist())
    assert set(trials["score"]) == {"slimness"} == {result["score"]}
    assert trials["val_loss"].isna().all()
    assert trials["val_accuracy"].isna().all()
    assert (trials["seconds"] > 0).all()
    assert len(calls.read_text().splitlines()) == 6  # no finalist again, though its score would be another
    winner = result["winner"]
    assert winner["arch"] == trials.nsmallest(1, "value")["arch"].item()
    assert (winner["val_losses"], winner["val_accuracies"]) == ([], [])
    assert winner["values"] == [pytest.approx(-winner["params"] / 1e6)]
    assert winner["training"]["test_accuracy"] == 0.5  # it is trained all the same
    assert "ordered by slimness, for which nothing was trained" in result["ranking"]["text"]
    assert not any("Candidates trained" in line or "repeats" in line for line in result["warnings"])
    assert any("slimness -0." in line for line in real.lines)
    assert not any("loss" in line for line in real.lines if line.startswith("trial"))
    report = (folder / "report.html").read_text()
    assert "the lowest slimness within the budget" in report
    assert '<th class="number">slimness</th>' in report
    assert "val. accuracy" not in report
    assert '"text":"slimness"' in report  # an axis
    before = calls.read_text()
    carry_out(asked, real)
    assert "is finished" in "".join(real.lines)
    assert calls.read_text() == before


def rungs_of(tmp_path, table_path, **more):
    """A request whose first rung, slimness, and second, what was prepared, order candidates differently."""
    first = {"slimness": {"calls": str(tmp_path / "first")}}
    last = {"slimness": {"calls": str(tmp_path / "last"), "scale": 1e3}}
    return request(tmp_path, table_path, evaluator=[first, "prepared", last], trials=12, **more)


def test_the_rungs_of_a_run_are_told_in_its_results_its_report_and_its_log(tmp_path, table_path, real):
    folder, result = carry_out(rungs_of(tmp_path, table_path), real)
    trials = read_trials(folder / "trials.csv")
    counts = [int(trials[f"rung.{rung}.value"].notna().sum()) for rung in range(3)]
    assert [rung["scored"] for rung in result["rungs"]] == counts
    assert counts[0] == 12
    assert counts[1] >= 4
    assert counts[2] >= math.ceil(counts[1] / 3)
    assert [rung["score"] for rung in result["rungs"]] == ["slimness", "made up", "slimness"]
    evaluated = trials[trials["state"] == "evaluated"]
    assert len(evaluated) == result["counts"]["evaluated"] == counts[2]
    assert result["counts"]["stopped"] == 12 - counts[2] == sum(rung["stopped"] for rung in result["rungs"])
    assert evaluated["value"].tolist() == pytest.approx((-evaluated["params"] / 1e3).tolist())
    assert {each["arch"] for each in result["finalists"]} <= set(evaluated["arch"])
    assert result["winner"]["arch"] == evaluated.nsmallest(1, "value")["arch"].item()
    lines = [(tmp_path / name).read_text().splitlines() for name in ("first", "last")]
    assert list(map(len, lines)) == [counts[0], counts[2]]
    assert any("stopped at rung 1 of 3, slimness" in line for line in real.lines)
    assert any(f"12 of 12; {counts[2]} at the last rung" in line for line in real.lines)
    report = (folder / "report.html").read_text()
    assert f'<td>prepared</td><td>made up</td><td class="number">{counts[1]}</td>' in report
    carry_out(rungs_of(tmp_path, table_path), real)
    assert any("is finished" in line for line in real.lines)
    assert [(tmp_path / name).read_text().splitlines() for name in ("first", "last")] == lines


def test_a_front_of_several_rungs_is_that_of_the_last(tmp_path, table_path, real):
    folder, result = carry_out(rungs_of(tmp_path, table_path, objective="front"), real)
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    points = trials[["predicted_ms", "value"]].to_numpy()
    kept = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert len((folder / "front.csv").read_text().splitlines()) - 1 == sum(kept)
    assert result["rungs"][0]["scored"] == 12
    assert "two\n    standard deviations" in (folder / "report.html").read_text()


def test_a_run_of_rungs_that_is_interrupted_goes_on_with_its_scores(tmp_path, table_path, real, monkeypatch):
    calm, _ = carry_out(rungs_of(tmp_path, table_path, out=str(tmp_path / "calm"), workers=1), real)
    before = [(tmp_path / name).read_text().splitlines() for name in ("first", "last")]
    for name in ("first", "last"):
        (tmp_path / name).unlink()
    watched = Watch.rung

    def interrupted(watch, now):
        watched(watch, now)
        if now.rungs[0] in (4, 9) and len(now.record.rungs) == 1 and now.rungs not in seen:
            seen.append(now.rungs)
            raise KeyboardInterrupt

    seen: list = []
    monkeypatch.setattr(Watch, "rung", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            carry_out(rungs_of(tmp_path, table_path, workers=1), real)
    folder, _ = carry_out(rungs_of(tmp_path, table_path, workers=1), real)
    assert without_times(without_seconds(read_trials(folder / "trials.csv"))) == without_times(
        without_seconds(read_trials(calm / "trials.csv"))
    )
    assert [(tmp_path / name).read_text().splitlines() for name in ("first", "last")] == before


def without_seconds(frame):
    return frame[[name for name in frame if not (name.startswith("rung") and name.endswith("seconds"))]]


def test_a_front_of_a_score_without_training(tmp_path, table_path, real):
    folder, _ = carry_out(request(tmp_path, table_path, evaluator="slimness", objective="front", trials=8), real)
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    front = (folder / "front.csv").read_text().splitlines()
    points = trials[["predicted_ms", "value"]].to_numpy()
    kept = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert len(front) - 1 == sum(kept)
    assert "the front of slimness and latency" in (folder / "report.html").read_text()


def test_minutes_of_a_search_without_training_are_kept_by_trying_an_epoch_out(tmp_path, table_path, real, monkeypatch):
    tried = []

    def seconds(arch, data, fields, **settings):
        tried.append(arch.id)
        return 5.0

    clock = test_run.Clock()
    monkeypatch.setattr("nas.search.run.clock", clock)
    monkeypatch.setattr(context, "epoch_seconds", seconds)
    asked = request(tmp_path, table_path, evaluator="slimness", minutes=2, final_epochs=100, trials=3)
    _, result = carry_out(asked, real)
    assert result["counts"]["evaluated"] == 3
    assert result["winner"]["arch"] in tried
    assert len(tried) == len(set(tried))
    cut = [line for line in result["warnings"] if "To end in 2 minutes" in line]
    assert "1 of 100 epochs of the winner" in cut[0]  # what stands for the training here says one


def test_an_epoch_that_is_tried_out_is_that_of_the_whole(monkeypatch, rng):
    from types import SimpleNamespace

    import search_spaces
    from nas.evaluation import runs
    from nas.evaluation.data import load_data

    asked = []

    def train(model, data, recipe, **settings):
        asked.append((len(data.train), recipe.epochs, recipe.batch_size))
        return SimpleNamespace(seconds=2.0)

    monkeypatch.setattr(runs, "train", train)
    arch = search_spaces.load("efficientformer-32").sample(rng)
    data = load_data("digits", (3, 32, 32))
    seconds = runs.epoch_seconds(arch, data, {"batch_size": 16})
    ((few, epochs, batch),) = asked
    assert (epochs, batch) == (1, 16)
    assert 3 * 16 <= few <= 4 * 16
    assert seconds == pytest.approx(2.0 * len(data.train) / few)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Score(float("nan"), "slimness"), "the slimness is nan"),
        (Score(float("inf"), "val_loss"), "the validation loss is inf"),
        (0.5, "the evaluator gave 0.5, which is no Score"),
    ],
)
def test_what_is_no_score_fails_that_candidate_with_its_reason(given, says):
    outcome = outcome_of(lambda arch, seed, on_epoch: given, Task(3, "", 0), lambda stage: None)
    assert (outcome.score, outcome.reason) == (None, says)


def test_a_score_that_is_the_same_for_all_is_said(tmp_path, table_path, real):
    asked = request(tmp_path, table_path, evaluator={"slimness": {"scale": float("inf")}}, trials=4)
    _, result = carry_out(asked, real)
    assert any("All 4 candidates have the same slimness, 0" in line for line in result["warnings"])


def test_finalists_without_training_have_no_sure_order():
    both = [
        Finalist(number, None, Record("evaluated", value=value, score="slimness"), values=(value,))
        for number, value in enumerate((1.0, 2.0))
    ]
    assert rank(both, trained=False).pairs_sure is None


def test_a_record_of_the_version_before_has_a_value():
    from types import SimpleNamespace

    old = {"state": "evaluated", "arch": "a", "val_loss": 0.5, "val_accuracy": 0.8}
    record = record_of(SimpleNamespace(user_attrs={"nas": old}))
    assert (record.value, record.score, record.val_loss) == (0.5, "val_loss", 0.5)


# what is prepared


def test_what_is_prepared_once_reaches_every_score_and_is_prepared_again_when_it_is_gone(tmp_path, table_path, real):
    asked = request(tmp_path, table_path, evaluator="prepared", limit=200, workers=2)
    folder, _ = carry_out(asked, real)
    kept = json.loads((folder / "steps.json").read_text())["prepare"]["output"]
    ((key, given),) = kept["prepared"].items()
    assert (given["content"], given["space"]) == ("160", "efficientformer-32")
    assert given["fits"] > 1000
    assert sorted(kept["files"]) == [f"prepared/{key}/{number}" for number in range(3)]
    carry_out(asked, real)
    assert "is finished" in "".join(real.lines)
    (folder / "prepared" / key / "2").unlink()
    carry_out(asked, real)
    assert (folder / "prepared" / key / "2").read_text() == "160"
    carry_out(asked, real)
    assert "is finished" in "".join(real.lines)


def test_a_kill_while_an_evaluator_prepares_costs_only_what_was_not_yet_kept(tmp_path, table_path, real, folder):
    asked = request(tmp_path, table_path, evaluator="prepared", limit=200)
    (own,) = [context.key_of(each) for each in asked.evaluator]
    place = tmp_path / "r" / "prepared" / own
    place.mkdir(parents=True)
    (place / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked, real)
    assert (place / "0").is_file()
    assert not (place / "1").exists()
    begun = (place / "0").stat().st_mtime_ns
    _, result = carry_out(asked, real)
    assert result["counts"]["evaluated"] == 5
    assert (place / "0").stat().st_mtime_ns == begun


def test_scores_that_would_rest_on_something_else_are_refused(tmp_path, table_path, real):
    asked = request(tmp_path, table_path, evaluator="prepared", limit=200)
    folder, _ = carry_out(asked, real)
    (key,) = json.loads((folder / "steps.json").read_text())["prepare"]["output"]["prepared"]
    (folder / "prepared" / key / "2").write_text("161")
    with pytest.raises(RunError, match=rf"evaluator {key}: what it prepared now is not what the scores"):
        carry_out(request(tmp_path, table_path, evaluator="prepared", limit=200, trials=9), real)


def test_what_is_prepared_reaches_the_processes_that_score(tmp_path, table_path, real, monkeypatch):
    monkeypatch.setattr(context, "load_executor", lambda name: EXECUTOR)
    asked = request(tmp_path, table_path, evaluator="prepared", limit=200, trials=3, workers=2)
    _, result = carry_out(asked, real)
    assert result["counts"]["evaluated"] == 3


# features


def test_features_of_a_few_candidates_a_trial_guide_the_sampler(tmp_path, table_path, real):
    calls = tmp_path / "calls"
    asked = request(
        tmp_path,
        table_path,
        evaluator="slimness",
        features=[{"slimness": {"calls": str(calls), "scale": 1.0}}],
        trials=24,
        start="none",
    )
    folder, _ = carry_out(asked, real)
    known = dict(json.loads(line) for line in (folder / context.FEATURES).read_text().splitlines())
    assert sorted(known) == sorted(set(calls.read_text().split()))  # each once
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    scored = [arch for arch in trials["arch"] if arch in known]
    assert len(scored) >= 12
    by_arch = dict(zip(trials["arch"], trials["params"], strict=True))
    assert [known[arch][0] for arch in scored] == [-by_arch[arch] for arch in scored]
    assert len(known) <= 9 * 24
    with pytest.raises(RunError, match=r"features: .* there, "):
        carry_out(request(tmp_path, table_path, evaluator="slimness", trials=30), real)


def test_a_model_that_is_told_the_score_itself_finds_the_best_of_the_shortlist():
    from nas.search.surrogate import Surrogate
    from tests.search.fakes import ToySpace, any_of

    known = any_of(ToySpace())
    rng = np.random.default_rng(0)
    paths = known.feasible.draw(rng, 40)
    hidden = rng.normal(size=40)  # no sum over steps
    encoded = known.encoder(paths)
    model = Surrogate(_part(encoded.beside(hidden[:, None]), slice(0, 30)), hidden[:30])
    expected = model.mean(_part(encoded.beside(hidden[:, None]), slice(30, 40)))
    assert np.argmin(expected) == np.argmin(hidden[30:])


def _part(encoded, places):
    groups = {name: found[places] for name, found in encoded.groups.items()}
    return type(encoded)(groups, encoded.middles, encoded.numbers[places])


def test_kept_features_survive_a_torn_line_and_an_arch_without_one_is_named(tmp_path, rng):
    import search_spaces

    space = search_spaces.load("efficientformer-32")
    archs = [space.sample(rng) for _ in range(3)]
    asked = []

    def scorer(arch, seed):
        asked.append(arch)
        return Score(float(cost_of(Arch.from_json(arch)).params), "params")

    file = tmp_path / "features.jsonl"
    first = Features({"params": scorer}, 0, file)
    assert first(archs[:2]).tolist() == [[cost_of(arch).params] for arch in archs[:2]]
    os.truncate(file, file.stat().st_size - 3)
    again = Features({"params": scorer}, 0, file)
    assert again(archs).tolist() == [[cost_of(arch).params] for arch in archs]
    assert len(asked) == 4  # the torn one again
    assert Features({"params": scorer}, 0, file)(archs).shape == (3, 1)
    assert len(asked) == 4
    nan = Features({"broken": lambda arch, seed: Score(float("nan"), "x")}, 0, tmp_path / "other.jsonl")
    with pytest.raises(RunError, match=rf"feature broken of arch {archs[0].id}: RunError: the x is nan"):
        nan(archs)


# the winner's training


def test_the_winner_is_trained_with_the_recipe_and_teacher_asked_for(tmp_path, table_path, world, monkeypatch):
    import torch

    from nas.networks.building import build

    trained = []

    def train(model, data, recipe, *, teacher=None, **settings):
        trained.append(
            (recipe.batch_size, recipe.epochs, recipe.distill_soft, None if teacher is None else teacher.name)
        )
        return test_run.untrained(model, data, recipe, **settings)

    monkeypatch.setattr("nas.evaluation.runs.train", train)
    folder, _ = carry_out(request(tmp_path, table_path, repeats=0, final_recipe="small"), world)
    assert trained == [
        (64, 1, 0.0, None)
    ]  # final_epochs, which the request of these tests sets, are more than the recipe's
    arch = Arch.from_json((folder / "best.json").read_text())
    (tmp_path / "teacher.json").write_text(arch.to_json())
    torch.save(build(arch, seed=9).state_dict(), tmp_path / "teacher.pt")
    taught = {
        "final_recipe": {"name": "small", "distill_soft": 0.5},
        "final_teacher": str(tmp_path / "teacher.json"),
        "final_teacher_weights": str(tmp_path / "teacher.pt"),
    }
    before = test_run.evaluations(tmp_path)
    carry_out(request(tmp_path, table_path, repeats=0, **taught), world)
    assert trained[1:] == [(64, 1, 0.5, str(tmp_path / "teacher.json"))]
    assert test_run.evaluations(tmp_path) == before  # only the winner is trained again
    with pytest.raises(InputError, match="the recipe learns from a teacher: name one"):
        carry_out(request(tmp_path, table_path, repeats=0, final_recipe={"distill_soft": 0.5}), world)
    with pytest.raises(InputError, match=r"asks nothing of teacher .*teacher\.json"):
        carry_out(request(tmp_path, table_path, repeats=0, **taught | {"final_recipe": {}}), world)
    assert len(trained) == 2


def test_the_epochs_of_the_winner_are_the_recipes_where_none_are_asked_for():
    assert Request().final_epochs == 40
    assert Request(final_recipe="efficientformer-300").final_epochs == 300
    assert Request(final_recipe="efficientformer-300", final_epochs=7).final_epochs == 7
    assert Request(final_recipe={"name": "small", "lr": 0.1}).final_recipe == {"epochs": 6, "batch_size": 64, "lr": 0.1}
    with pytest.raises(InputError, match="final_recipe: unknown recipe 'smal', did you mean 'small'"):
        Request(final_recipe="smal")
    with pytest.raises(InputError, match="final_recipe: unknown recipe field 'lrr', did you mean 'lr'"):
        Request(final_recipe={"lrr": 1})


# slices of other weights


def test_a_search_by_slices_of_a_supernet_trains_it_once_and_says_which(tmp_path, table_path, real, monkeypatch):
    runs = []
    run = training._Training.run
    monkeypatch.setattr(training._Training, "run", lambda self, *args: runs.append(self.steps) or run(self, *args))
    supernet = {"supernet": {"steps": 3, "validate": 40, "recalibrate": 64}}
    asked = request(tmp_path, table_path, evaluator=supernet, features=[supernet], sampler="guided", limit=200)
    folder, result = carry_out(asked, real)
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    assert len(trials) == 5
    assert set(trials["score"]) == {"supernet_error"} == {result["score"]}
    assert trials["val_accuracy"].isna().all()
    ((key, prepared),) = json.loads((folder / "steps.json").read_text())["prepare"]["output"]["prepared"].items()
    assert prepared["file"] == f"{{RUN}}/prepared/{key}/supernet.pt"  # the folder may lie elsewhere later
    assert trials["cost"].str.contains(prepared["hash"][:12]).all()
    carry_out(asked, real)
    assert runs == [0]
    (folder / "prepared" / key / "supernet.pt").unlink()
    carry_out(asked, real)  # it comes out as it was, so that the scores stand
    assert runs == [0, 0]
    assert json.loads((folder / "steps.json").read_text())["prepare"]["output"]["prepared"] == {key: prepared}


def test_a_search_by_slices_of_what_another_search_trained(tmp_path, table_path, real, rng):
    arch = test_run.SPACE.sample(rng)
    write_weights(tmp_path / "best.pt", build(arch))
    (tmp_path / "best.json").write_text(arch.to_json())
    asked = request(tmp_path, table_path, evaluator={"inherit": {"weights": str(tmp_path), "validate": 40}}, limit=200)
    folder, _ = carry_out(asked, real)
    trials = read_trials(folder / "trials.csv").query("state == 'evaluated'")
    assert set(trials["score"]) == {"inherited_error"}
    assert trials["cost"].str.contains("blocks from best.pt").all()


# what a lost worker costs


class Lost(BaseException):
    """Stands for the death of a worker."""


@pytest.mark.parametrize("damaged", [False, True])
def test_a_training_whose_worker_is_lost_goes_on_from_its_last_epoch_to_the_same_score(tmp_path, rng, damaged):
    arch = tiny_space().sample(rng).to_json()
    short = load_evaluator("short", epochs=3)
    scorer = CandidateScorer(short, "digits", (3, 32, 32), 0, "cpu", 80, checkpoints=tmp_path / "c")
    calm = replace(scorer, checkpoints=None)(arch, 1)

    def dies(epoch, epochs):
        if epoch == 2:
            raise Lost

    with pytest.raises(Lost):
        scorer(arch, 1, dies)
    (checkpoint,) = (tmp_path / "c").iterdir()
    if damaged:
        checkpoint.write_bytes(b"torn")
    told = []
    found = scorer(arch, 1, lambda epoch, epochs: told.append(epoch))
    assert told == ([1, 2, 3] if damaged else [3])
    assert (found.value, found.val_accuracy) == (calm.value, calm.val_accuracy)
    assert not list((tmp_path / "c").iterdir())


def test_a_run_leaves_no_checkpoint_of_a_candidate(tmp_path, table_path, real):
    folder, _ = carry_out(
        request(tmp_path, table_path, evaluator={"short": {"epochs": 1}}, trials=2, limit=120, repeats=1), real
    )
    assert not (folder / context.CANDIDATES).exists()
