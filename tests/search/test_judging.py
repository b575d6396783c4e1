"""Scores judged by networks of known accuracy; what is known of the networks here is made up."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import search_spaces
from nas.core.errors import InputError
from nas.networks.building import cost_of
from nas.search import judging
from tests.search.fakes import HereWorkers
from tests.small import by_macs, write_truth

PLUGIN = """
import os
from dataclasses import dataclass
from nas.evaluation.evaluators import Evaluator, Score

@dataclass(frozen=True)
class Oracle(Evaluator):
    kind: str = "macs"

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        from nas.networks.building import cost_of
        with open(os.environ["ORACLE_LOG"], "a") as log:
            log.write(arch.id + "\\n")
        if self.kind == "failing" and arch.id == os.environ["ORACLE_ID"]:
            raise RuntimeError("no such kernel")
        value = {"macs": -cost_of(arch).macs, "constant": 1.0, "failing": -cost_of(arch).params, "nan": float("nan")}
        return Score(value[self.kind], "-oracle", seconds=0.25)

EVALUATOR = Oracle
"""


@pytest.fixture
def archs(tmp_path, monkeypatch):
    """Twelve networks, and an evaluator `oracle` that knows their MACs."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "oracle.py").write_text(PLUGIN)
    monkeypatch.setenv("NAS_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ORACLE_LOG", str(tmp_path / "asked"))
    judging.remembered.cache_clear()
    return by_macs(12)


@pytest.fixture
def here(monkeypatch):
    """Scores in this process."""
    monkeypatch.setattr(judging, "Pool", HereWorkers)


def written(file, archs, band=8, seeds=1):
    return write_truth(file, archs, band, lambda place: [0.8 + 0.01 * place + 0.02 * seed for seed in range(seeds)])


def by_name(found):
    return {each["name"]: each for each in found["scores"]}


def test_a_new_score_is_judged_in_a_process_and_asked_once_for_each_network(archs, tmp_path, monkeypatch):
    file, log = tmp_path / "digits.jsonl", tmp_path / "asked"
    judging.judge(["oracle"], written(file, archs[:7]))  # as if it had been killed after seven
    monkeypatch.setattr(judging, "Pool", HereWorkers)
    found = judging.judge(["oracle"], written(file, archs, seeds=2))
    assert sorted(log.read_text().split()) == sorted(arch.id for arch in archs)
    judging.remembered.cache_clear()  # as another process finds it
    assert judging.judge(["oracle"], file) == found
    assert len(log.read_text().split()) == 12
    oracle = by_name(found)["oracle"]
    for statistic, part in itertools.product(("kendall", "spearman"), ("", "_band")):
        assert oracle[f"{statistic}{part}"] == pytest.approx(1)
        assert oracle[f"{statistic}_low{part}"] == oracle[f"{statistic}_high{part}"] == pytest.approx(1)
    assert oracle["seconds"] > 0
    assert (oracle["regret"], oracle["regret_band"], oracle["failed"], oracle["remark"]) == (0, 0, [], "")
    assert (found["networks"], found["networks_band"], found["trainings"]) == (12, 8, 24)
    assert found["noise"] == pytest.approx(0.02 / np.sqrt(2))
    assert 0.5 < found["ceiling"]["kendall_band"] < 0.95
    json.dumps(found, allow_nan=False)


def test_baselines_stand_beside_each_score(archs, tmp_path, here):
    found = by_name(judging.judge(["oracle"], written(tmp_path / "digits.jsonl", archs)))
    assert list(found) == ["params", "macs", "oracle"]  # one score has nothing to be combined with
    params = [cost_of(arch).params for arch in archs]
    places = np.arange(12)
    assert found["params"]["kendall"] == pytest.approx(stats.kendalltau(params, places)[0])
    assert found["params"]["spearman_band"] == pytest.approx(stats.spearmanr(params[:8], places[:8])[0])
    assert found["params"]["kendall_over_macs_band"] == pytest.approx(stats.kendalltau(params[:8], places[:8])[0] - 1)
    assert found["oracle"]["kendall_over_macs_high"] == 0
    assert found["macs"]["kendall_over_macs"] is None


def test_a_score_that_says_nothing_is_caught(archs, tmp_path, here, monkeypatch):
    monkeypatch.setenv("ORACLE_ID", archs[3].id)
    file = written(tmp_path / "digits.jsonl", archs)
    asked = ["[oracle: {kind: constant}, oracle: {kind: failing}]", "oracle: {kind: nan}"]
    found = by_name(judging.judge(asked, file))
    constant, failing, nan = (found[f"oracle: {{kind: {kind}}}"] for kind in ("constant", "failing", "nan"))
    assert constant["kendall"] is constant["kendall_band"] is constant["regret"] is None
    assert "gives all 12 networks the same value: ranks nothing" in constant["remark"]
    assert failing["failed"] == [{"network": archs[3].id, "reason": "RuntimeError: no such kernel"}]
    assert f"1 of 12 networks have no score, which leaves the figures to the others; {archs[3].id}" in failing["remark"]
    others = [place for place in range(12) if place != 3]
    params = [cost_of(archs[place]).params for place in others]
    assert failing["kendall"] == pytest.approx(stats.kendalltau(params, others)[0])
    assert nan["networks"] == 0
    assert nan["seconds"] is None
    assert len(nan["failed"]) == 12
    assert "12 of 12 networks have no score; " in nan["remark"]
    assert "is nan" in nan["remark"]
    assert "rank average" not in found  # of one score that ranks
    before = (tmp_path / "asked").read_text()
    judging.judge(["oracle: {kind: failing}"], file)  # what failed is tried again, the others are known
    assert (tmp_path / "asked").read_text() == before + f"{archs[3].id}\n"


def test_no_figure_of_all_is_given_without_one_of_the_band(archs, tmp_path, here):
    found = judging.judge(["oracle"], written(tmp_path / "digits.jsonl", archs, band=4))
    for each in found["scores"]:
        assert {each[key] for key in each if key.startswith(("kendall", "spearman", "regret"))} == {None}
        assert each["remark"] == ""
    assert found["remark"].startswith(
        "no figures: 4 networks are in the band, and it takes 5; no network was trained tw"
    )
    assert set(found["ceiling"].values()) == {None}


def test_networks_of_a_truth_may_take_images_of_several_sizes(archs, tmp_path, here):
    large = [replace(arch, input_shape=(3, 64, 64)) for arch in archs[8:]]
    found = judging.judge(["oracle"], written(tmp_path / "digits.jsonl", archs[:8] + large))
    assert by_name(found)["oracle"]["networks"] == 12
    assert sorted((tmp_path / "asked").read_text().split()) == sorted(arch.id for arch in archs[:8] + large)


def test_the_images_of_a_truth_are_known_or_named(archs, tmp_path, here):
    mine = written(tmp_path / "mine.jsonl", archs)
    with pytest.raises(InputError, match=r"mine.jsonl does not say which images .*--data.*fashion-mnist"):
        judging.judge(["oracle"], mine)
    assert judging.judge(["oracle"], mine, "digits")["data"] == "digits"
    assert judging.judge(["oracle"], written(tmp_path / "digits-12.jsonl", archs))["data"] == "digits"


def test_an_evaluator_prepares_for_the_whole_space_in_a_folder_that_stays(archs, tmp_path, here):
    ready = """
    def prepare(self, space, feasible, data, folder, **more):
        import numpy as np
        (folder / "done").write_text(space.name)
        return {"drawn": feasible.draw(np.random.default_rng(0), 3).tolist()}

    def score("""
    plugin = PLUGIN.replace("\n    def score(", ready).replace(
        "if self", "assert len(prepared['drawn']) == 3\n        if self"
    )
    (tmp_path / "plugins" / "ready.py").write_text(plugin)
    found = judging.judge(["ready"], written(tmp_path / "digits.jsonl", archs))
    assert by_name(found)["ready"]["kendall"] == pytest.approx(1)
    assert [path.read_text() for path in (tmp_path / "cache").glob("judged/*/done")] == ["efficientformer-32"]


def test_a_score_that_does_not_get_ready_does_not_keep_the_others_from_being_judged(archs, tmp_path, here):
    broken = """
    def prepare(self, space, feasible, data, folder, **more):
        raise RuntimeError("no such weights")

    def score("""
    (tmp_path / "plugins" / "broken.py").write_text(PLUGIN.replace("\n    def score(", broken))
    found = by_name(judging.judge(["broken", "oracle"], written(tmp_path / "digits.jsonl", archs)))
    assert found["oracle"]["kendall"] == pytest.approx(1)
    assert found["broken"]["kendall"] is None
    assert "12 of 12 networks have no score" in found["broken"]["remark"]
    assert "does not get ready: RuntimeError: no such weights" in found["broken"]["remark"]


def test_settings_that_only_a_score_reads_share_what_is_prepared(archs, tmp_path, here):
    sharing = """
    late = frozenset({"kind"})

    def prepare(self, space, feasible, data, folder, **more):
        with (folder / "done").open("a") as file:
            file.write("once ")
        return {}

    def score("""
    (tmp_path / "plugins" / "sharing.py").write_text(PLUGIN.replace("\n    def score(", sharing))
    judging.judge(["sharing", "sharing: {kind: failing}"], written(tmp_path / "digits.jsonl", archs))
    assert [path.read_text() for path in (tmp_path / "cache").glob("judged/*/done")] == ["once once "]


def test_what_earlier_trainings_let_expect_is_judged_as_a_score(archs, tmp_path, here):
    networks = by_macs(40, search_spaces.load("efficientformer-32"))
    others = write_truth(tmp_path / "before.jsonl", networks[1::2], 4, lambda place: [0.6 + 0.01 * place])
    found = judging.judge(["oracle"], written(tmp_path / "digits.jsonl", networks[::2]), prior=str(others))
    prior = by_name(found)[f"prior {others}"]
    assert prior["kendall"] > 0.8
    assert prior["seconds"] == 0
    assert by_name(found)["ridge"]["of"] == ["oracle", f"prior {others}"]
