"""Slimming: what a step may take away, what it takes, the children, and runs that are killed."""

import csv
import dataclasses
import functools
import json

import pytest
import torch

from nas.core.arch import calls_of
from nas.core.errors import BudgetError, InputError, RunError, TableError
from nas.core.ops import Choice
from nas.evaluation.checkpoint import read_weights, write_weights
from nas.evaluation.data import load_data
from nas.evaluation.metrics import evaluate
from nas.evaluation.recalibration import recalibrate
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import train
from nas.networks.building import Network, build, cost_of, load_arch, load_weights, with_classes
from nas.networks.weights import slices
from nas.search import slimming
from nas.search.limits import Estimate, Limit
from nas.search.slimming import actions_of, child_of, choose, gain_of, ordered, slim
from search_spaces import efficientformer as ef
from tests.search import fakes
from tests.search.fakes import HereWorkers, estimator_at
from tests.small import assert_close, fake_table, lively

LARGE = ef.SMALL.arch(
    {f"stage{n}.width": w for n, w in enumerate((16, 48, 64, 128), 1)}
    | {f"stage{n}.depth": d for n, d in enumerate((1, 2, 2, 2), 1)}
    | {f"stage{n}.ratio": 4 for n in range(1, 5)}
    | {"tail": 1}
)
LIMIT = 240  # images


def tiny():
    """A space with three widths in a stage, so that the nearest value matters."""
    space = fakes.tiny_space()
    stages = list(space.stages)
    stages[1] = dataclasses.replace(stages[1], width=Choice((16, 32, 48)))
    return dataclasses.replace(space, stages=tuple(stages))


def test_actions_are_all_cheaper_networks_without_one_block_or_with_one_choice_moved_to_its_nearest():
    space = tiny()
    table = fakes.fake_table(space)
    estimator = estimator_at(space, table, "latency_ms<=p20")
    known = set(space.archs())
    for arch in list(space.archs())[::7]:
        params, before = space.params_of(arch), estimator.estimate(arch)

        def saves(other, before=before):
            found = estimator.estimate(other)
            return found.used[0] < before.used[0] and found.params <= before.params

        expected = set()
        for stage, blocks in enumerate(arch.stages[:-1]):
            for place in range(1, len(blocks)):
                left = blocks[:place] + blocks[place + 1 :]
                child = dataclasses.replace(arch, stages=(*arch.stages[:stage], left, *arch.stages[stage + 1 :]))
                if child in known and saves(child):
                    expected.add((child, (stage, place)))
        shorter = {child for child, _ in expected}
        for name, choice in space.choices.items():
            at = choice.values.index(params[name])
            for values in (choice.values[:at][::-1], choice.values[at + 1 :]):
                children = [space.arch(params | {name: value}) for value in values]
                cheaper = [child for child in children if child != arch and saves(child)]
                if cheaper and cheaper[0] not in shorter:
                    expected.add((cheaper[0], None))
        got = actions_of(space, arch, estimator)
        assert {(each.arch, each.dropped) for each in got} == expected
        assert len(got) == len(expected)
        for each in got:
            assert each.gain == pytest.approx(before.used[0] - estimator.estimate(each.arch).used[0])
            assert each.gain > 0


def test_every_network_of_a_space_can_be_slimmed_to_one_that_nothing_can_be_taken_from():
    space = tiny()
    estimator = estimator_at(space, fake_table(space), "latency_ms<=p20")
    least = space.extreme(estimator.table.cost_of_row(space))[1]
    for arch in list(space.archs())[::20]:
        while actions := actions_of(space, arch, estimator):
            arch = actions[-1].arch
        assert arch == least


def test_of_several_budgets_the_gain_is_that_of_the_joint_score():
    def at(*used):
        return Estimate(None, 0, 0, used)

    limits = [Limit(metric, 1.0, metric, None, None) for metric in ("latency_ms", "params")]
    score = lambda ms, params, size=0.5: 100 * (ms / 1.0) ** -1.0 * (params / 3e6) ** -size  # noqa: E731
    for exponents, size in ((slimming.EXPONENTS, 0.5), ({"latency_ms": 1.0, "params": 0.9}, 0.9)):
        gains = [gain_of(limits, at(2.0, 4e6), at(*after), exponents) for after in ((1.8, 4e6), (2.0, 3.1e6))]
        scores = [score(*after, size) - score(2.0, 4e6, size) for after in ((1.8, 4e6), (2.0, 3.1e6))]
        assert gains[0] / gains[1] == pytest.approx(scores[0] / scores[1])  # units change nothing
    assert gain_of(limits[:1], at(2.0), at(1.8), {}) == pytest.approx(0.2)


def test_the_smallest_cost_for_what_is_saved_is_taken_and_of_free_ones_the_largest_saving():
    def action(gain):
        return slimming.Action("", LARGE, None, None, gain)

    actions = [action(1.0), action(3.0), action(2.0)]
    assert choose(actions, [0.3, 0.6, 0.5]) == 1
    assert choose(actions, [0.1, 0.6, 0.5]) == 0
    assert choose(actions, [-0.5, 0.6, -0.1]) == 2
    assert choose(actions, [None, None, 0.5]) == 2
    with pytest.raises(RunError, match="no action"):
        choose(actions, [None] * 3)


@pytest.mark.parametrize("dropped", [(1, 1), (1, 2), (2, 1), (3, 1)])
def test_a_child_without_a_block_computes_what_its_parent_does_around_it(dropped):
    parent = lively(Network(LARGE)).double().eval()
    arch = slimming._less(LARGE, dropped)
    child, fresh = child_of(parent, arch, dropped)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    streams = {"x": x}
    for stage, blocks in enumerate(parent.stages):
        for place, block in enumerate(blocks):
            if (stage, place) != dropped:
                block.advance(streams)
    assert fresh == []
    assert arch in ef.SMALL
    assert_close(child.double().eval()(x), streams["x"])


def test_a_narrower_child_has_slices_and_a_block_of_another_kind_starts_fresh():
    parent = lively(Network(LARGE)).eval()
    params = ef.SMALL.params_of(LARGE)
    narrow = ef.SMALL.arch(params | {"stage2.width": 32, "stage3.ratio": 2})
    child, fresh = child_of(parent, narrow)
    expected = slices(parent, narrow)
    assert fresh == []
    assert all(torch.equal(value, expected[name]) for name, value in child.state_dict().items())
    _, fresh = child_of(parent, ef.SMALL.arch(params | {"tail": 0}))
    assert "MB4D of stage 4" in fresh


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network trained a little on digits, and its file."""
    folder = tmp_path_factory.mktemp("trained")
    network, data = build(LARGE), load_data("digits", LARGE.input_shape, limit=LIMIT)
    train(network, data, Recipe(epochs=4, batch_size=32))
    write_weights(folder / "large.pt", network)
    (folder / "large.json").write_text(LARGE.to_json())
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return str(fake_table(ef.SMALL, networks=8).write(tmp_path_factory.mktemp("table") / "fake.csv"))


@pytest.fixture
def here(monkeypatch):
    """Actions are scored in this process."""
    monkeypatch.setattr(slimming, "Pool", lambda scorer, workers, gpus: HereWorkers(scorer, workers))


def budget_of(table, share):
    ms = slimming.Table.read(table).price(calls_of(LARGE)).total_us / 1e3
    return f"latency_ms<={share * ms:.6f}"


def run(trained, table, folder, share=0.75, **more):
    settings = {"limit": LIMIT, "device": "cpu", "recover": 0, "log": lambda line: None, "fields": {"epochs": 1}} | more
    return slim(
        str(trained / "large.json"),
        str(trained / "large.pt"),
        table,
        [budget_of(table, share)],
        "digits",
        folder,
        **settings,
    )


def test_the_order_of_the_weights_leaves_the_outputs(trained):
    network = build(LARGE)
    load_weights(network, read_weights(trained / "large.pt"), "")
    x = torch.randn(2, 3, 32, 32)
    found = ordered(network, load_data("digits", LARGE.input_shape, limit=LIMIT))
    assert_close(found(x), network.eval()(x))
    assert any(not torch.equal(value, found.state_dict()[name]) for name, value in network.state_dict().items())


def test_each_step_of_a_run_is_the_best_action_by_the_rule(trained, table, tmp_path, here):
    found = run(trained, table, tmp_path / "run")
    data = load_data("digits", LARGE.input_shape, limit=LIMIT)
    estimator = estimator_at(ef.SMALL, slimming.Table.read(table), budget_of(table, 0.75))

    def loss(network):
        recalibrate(network, data.train, 512)
        return evaluate(network, data.val).loss

    assert len(found["steps"]) > 2
    for line, following in zip(found["steps"], found["steps"][1:], strict=False):
        arch = load_arch(tmp_path / "run" / line["arch_file"])
        parent = build(arch)
        load_weights(parent, read_weights(tmp_path / "run" / line["weights"]), "")
        own = functools.partial(child_of, parent)
        now, rates = loss(own(arch)[0]), {}
        for action in actions_of(ef.SMALL, arch, estimator):
            rise = loss(own(action.arch, action.dropped)[0]) - now
            rates[action.arch.id, action.dropped] = (max(rise, 0.0) / action.gain, -action.gain)
        dropped = following["dropped"] and tuple(following["dropped"])
        taken = rates[following["arch"], dropped]
        assert taken[0] <= min(rates.values())[0] + 1e-6
        assert len(rates) == following["actions"]
        assert following["value"] == pytest.approx(now + following["cost"], abs=1e-5)
    assert [each["fits"] for each in found["steps"]] == [False] * (len(found["steps"]) - 1) + [True]
    assert found["result"]["step"] == len(found["steps"]) - 1


def test_a_finished_run_holds_every_step_the_result_and_an_export_of_it(trained, table, tmp_path, here):
    said = []
    found = run(trained, table, tmp_path / "run", 0.85, recover=1, log=said.append)
    folder = tmp_path / "run"
    with (folder / "slimming.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["latency_ms"]) for row in rows] == [each["latency_ms"] for each in found["steps"]]
    assert all(cost_of(load_arch(folder / row["arch_file"])).params == int(row["params"]) for row in rows)
    best = load_arch(folder / "arch.json")
    network = build(best)
    load_weights(network, read_weights(folder / "weights.pt"), "")
    data = load_data("digits", LARGE.input_shape, limit=LIMIT)
    assert evaluate(network, data.test).accuracy == pytest.approx(found["result"]["test_accuracy"])
    assert (folder / "best.onnx").is_file()
    assert found["result"]["onnx_difference"] < 1e-4
    assert found["result"]["measured_ms"] is None
    assert any("NOT THIS MACHINE" in line for line in said)
    assert sum(line.startswith("step ") for line in said) == len(rows) - 1
    again = run(trained, table, folder, 0.85, recover=1)
    assert again["steps"] == found["steps"]
    with pytest.raises(RunError, match="another recover"):
        run(trained, table, folder, 0.85, recover=2)
    further = run(trained, table, folder, 0.85, recover=1, until="smallest", validate=None)
    assert further["steps"][: len(rows)] == found["steps"]
    assert len(further["steps"]) > len(rows)
    assert further["result"]["arch"] == found["result"]["arch"]


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("writes", [1, 2, 5, 6, 8, 9])
def test_a_killed_run_continues_to_the_same_result(trained, table, tmp_path, here, monkeypatch, writes):
    calm = run(trained, table, tmp_path / "calm", recover=1)
    real, count = slimming.write_text, iter(range(1, 1000))

    def write(path, text):
        if next(count) == writes:
            raise Killed
        real(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(slimming, "write_text", write)
        with pytest.raises(Killed):
            run(trained, table, tmp_path / "killed", recover=1)
    killed = run(trained, table, tmp_path / "killed", recover=1)
    assert killed["steps"] == calm["steps"]
    one, two = (read_weights(tmp_path / name / "weights.pt") for name in ("calm", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_for_other_classes_are_trained_on_the_data_first(table, tmp_path, here):
    other = with_classes(LARGE, 7)
    write_weights(tmp_path / "large.pt", build(other))
    (tmp_path / "large.json").write_text(other.to_json())
    said = []
    found = run(tmp_path, table, tmp_path / "run", 0.9, log=said.append)
    assert "the original is trained on these data first" in said
    assert json.loads((tmp_path / "run" / "original" / "result.json").read_text())["epochs"] == 1
    assert found["result"]["step"] >= 1


def test_an_original_within_the_budget_is_left_alone_unless_the_whole_curve_is_asked_for(
    trained, table, tmp_path, here
):
    said = []
    found = run(trained, table, tmp_path / "run", 1.01, log=said.append)
    assert (found["result"], found["steps"]) == (None, [])
    assert "already: nothing to slim" in said[-1]
    assert not (tmp_path / "run").exists()
    found = run(trained, table, tmp_path / "run", 1.01, until="smallest", by="accuracy", validate=8)
    assert found["result"]["step"] == 0
    assert len(found["steps"]) > 1


def test_what_cannot_be_done_is_refused_before_anything_is_written(trained, table, tmp_path, here, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(BudgetError, match="is below the smallest architecture of space efficientformer-32"):
        run(trained, table, folder, 0.01)
    with pytest.raises(InputError, match="unknown rule 'dropp', did you mean 'drop'"):
        run(trained, table, folder, rule="dropp")
    teacher = tmp_path / "teacher.json"
    teacher.write_text(with_classes(LARGE, 7).to_json())
    write_weights(tmp_path / "teacher.pt", build(with_classes(LARGE, 7)))
    with pytest.raises(InputError, match="for 7 classes"):
        run(trained, table, folder, teacher=str(teacher), teacher_weights=str(tmp_path / "teacher.pt"))
    wide = fake_table(slimming.parts.load("efficientformer-32", 64)).write(tmp_path / "wide.csv")
    with pytest.raises(TableError, match="was measured for input 3x64x64"):
        slim(LARGE, str(trained / "large.pt"), str(wide), ["latency_ms<=p10"], "digits", folder)
    one = dataclasses.replace(load_data("digits", LARGE.input_shape), classes=1)
    with monkeypatch.context() as patched:
        patched.setattr(slimming, "load_data", lambda *args, **more: one)
        with pytest.raises(InputError, match="all images are of one class"):
            run(trained, table, folder)
    assert not folder.exists()
    write_weights(tmp_path / "other.pt", build(ef.SMALL.arch(ef.SMALL.params_of(LARGE) | {"stage2.width": 32})))
    with pytest.raises(InputError, match="does not fit this architecture"):
        slim(LARGE, str(tmp_path / "other.pt"), table, [budget_of(table, 0.8)], "digits", folder)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "arch.json").write_text(LARGE.to_json())
    with pytest.raises(InputError, match=r"there is arch.json of another run"):
        run(trained, table, tmp_path / "taken")
