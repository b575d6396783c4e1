"""The contract of every space and preset; a new family is tested on the day its file appears."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re

import onnxruntime
import optuna
import pytest
import torch
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from torch.nn.modules.batchnorm import _BatchNorm

import search_spaces
from nas.core.arch import Arch, calls_of, steps_of
from nas.core.errors import InputError
from nas.core.ops import BlockModule, Leaf
from nas.core.tracing import calls_of_unit, fuse_in_place, trace
from nas.evaluation.data import load_data
from nas.evaluation.evaluators import Score, load_evaluator
from nas.networks.building import Network, build, cost_of, fuse, input_shape_of
from nas.networks.export import export
from nas.networks.features import FeatureNetwork
from nas.search.study import distributions_of
from nas.search.trials import record_of
from tests.search.fakes import HereWorkers, estimator_at, fake_table, make_engine, make_study
from tests.small import randomize

FAMILIES = {name: search_spaces.family(name) for name in search_spaces.families()}
SPACES = search_spaces.spaces()
PRESETS = search_spaces.presets()
SMALL = {name: space for name, space in SPACES.items() if space.input_shape[1] <= 64}


def at_one_resolution():
    """The spaces of every family, those of one resolution together."""
    for name, module in FAMILIES.items():
        spaces = (module.SPACE, *getattr(module, "SPACES", ()))
        for side, group in itertools.groupby(sorted(spaces, key=side_of), side_of):
            yield pytest.param(list(group), most_rows(name, side), id=f"{name}-{side}")


def side_of(space):
    return space.input_shape[1]


def most_rows(family, side):
    """How many rows may have to be profiled."""
    return {"hybrid": (90, 1500)}.get(family, (60, 600))[side > 64]


def made_up_us(row):
    """A time that depends on everything in a row's key."""
    return 1.0 + sum(str(row).encode()) % 97


def no_gradient(network, image):
    """Names of the parameters that should learn from an image and do not."""
    network.zero_grad()
    outputs = network(image)
    sum(each.square().sum() for each in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))).backward()
    return [key for key, each in network.named_parameters() if each.requires_grad and each.grad is None]


def no_maps(arch):
    """The block from which on there are no maps, None where there is none."""
    return next((block for stage in arch.stages for block in stage if block.no_map), None)


def is_plain(arch):
    """Whether a class token stands in front of the map's: then the network keeps one resolution to its end."""
    return any(block.prefix_tokens for stage in arch.stages for block in stage)


# Data


@pytest.mark.parametrize("name", SPACES)
def test_a_sampled_arch_survives_json(name, rng):
    for _ in range(20):
        arch = SPACES[name].sample(rng)
        assert Arch.from_json(arch.to_json()) == arch
        assert Arch.from_text(arch.to_text(), arch.family, arch.input_shape, arch.classes) == arch


@pytest.mark.parametrize("name", SPACES)
def test_parameters_go_through_optuna_to_an_arch_and_back(name):
    space = SPACES[name]
    distributions = distributions_of(space.choices)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(10):
        drawn = study.ask(distributions).params
        assert drawn.keys() == space.choices.keys()
        arch = space.arch(drawn)
        canonical = space.params_of(arch)
        assert space.arch(canonical) == arch
        study.enqueue_trial(canonical)
        again = study.ask(distributions).params
        assert again == canonical
        assert space.params_of(space.arch(again)) == canonical


@pytest.mark.parametrize("name", SPACES)
def test_a_neighbour_is_another_arch_of_the_space(name, rng):
    space = SPACES[name]
    arch = space.sample(rng)
    for _ in range(5):
        neighbour = space.mutate(arch, rng)
        assert neighbour != arch
        assert neighbour in space
        arch = neighbour


@pytest.mark.parametrize("name", SPACES)
def test_there_are_at_least_as_many_archs_as_were_seen(name, rng):
    assert SPACES[name].count() >= len({SPACES[name].sample(rng) for _ in range(200)}) > 20


@pytest.mark.parametrize("name", SPACES)
def test_no_arch_is_beyond_the_extremes(name, rng):
    space = SPACES[name]
    (least, small), (most, large) = (space.extreme(made_up_us, largest) for largest in (False, True))
    for arch, total in ((small, least), (large, most)):
        assert arch in space
        assert sum(made_up_us(call.row) for call in steps_of(arch)) == pytest.approx(total)
    for _ in range(50):
        assert least <= sum(made_up_us(call.row) for call in steps_of(space.sample(rng))) <= most


# Rows


@pytest.mark.parametrize("name", SPACES)
def test_no_arch_needs_a_row_outside_the_listing(name, rng):
    space = SPACES[name]
    rows, op_rows = set(space.rows()), set(space.op_rows())
    for _ in range(100):
        calls = calls_of(space.sample(rng))
        assert rows.issuperset(call.row for call in calls)
        assert op_rows.issuperset(op.row for call in calls for op in call.ops)


@pytest.mark.parametrize(("spaces", "most"), list(at_one_resolution()))
def test_the_rows_of_one_resolution_are_few_enough_to_profile(spaces, most):
    assert 0 < len({row for space in spaces for row in space.rows()}) <= most


@pytest.mark.parametrize("name", SPACES)
def test_every_listed_row_computes_something(name):
    assert [str(row) for row in SPACES[name].rows() if not calls_of_unit(row).ops] == []


@pytest.mark.parametrize("name", SPACES)
def test_a_row_builds_on_its_own(name):
    for row in SPACES[name].rows()[::9]:
        with torch.device("meta"):
            module = row.unit.module(*row.inputs)
        assert isinstance(module, BlockModule)
        assert calls_of_unit(row).outputs


@pytest.mark.parametrize("name", [*SPACES, *PRESETS])
def test_composed_calls_equal_the_trace_of_the_whole_model(name, rng):
    for arch in [PRESETS[name]] if name in PRESETS else [SPACES[name].sample(rng) for _ in range(3)]:
        with torch.device("meta"):
            network = fuse_in_place(Network(arch))
        traced, composed = trace(network, input_shape_of(arch)), steps_of(arch)
        assert [(call.row, call.outputs, call.ops) for call in traced] == [
            (call.row, call.outputs, call.ops) for call in composed
        ]
        assert calls_of(arch) == tuple(call for call in composed if call.ops)
        assert composed[-1].outputs == ((1, arch.classes),)


@pytest.mark.parametrize("name", SPACES)
def test_parameters_composed_of_blocks_are_those_of_the_model(name, rng):
    arch = SPACES[name].sample(rng)
    with torch.device("meta"):
        assert cost_of(arch).params == sum(parameter.numel() for parameter in Network(arch).parameters())


@pytest.mark.parametrize("name", SPACES)
def test_what_is_as_large_as_the_map_is_a_table_that_another_side_resizes(name, rng):
    arch = SPACES[name].sample(rng)
    side = {32: 64, 64: 96, 224: 192, 256: 320}[arch.input_shape[1]]
    other = dataclasses.replace(arch, input_shape=(3, side, side))
    with torch.device("meta"):
        before, network = Network(arch).state_dict(), Network(other)
    after = network.state_dict()
    leaves = {place: leaf.op for place, leaf in network.named_modules() if isinstance(leaf, Leaf)}
    for key in (key for key in before if before[key].shape != after[key].shape):
        op = next(op for place, op in leaves.items() if key.startswith(f"{place}.body."))
        change = op.tables()[key.rpartition(".body.")[2]]
        assert change(torch.ones(before[key].shape)).shape == after[key].shape


# Networks


@pytest.mark.parametrize("name", [*SPACES, *PRESETS])
def test_every_parameter_that_is_not_frozen_gets_a_gradient(name, rng):
    """A block freezes a parameter by `requires_grad=False`; one that learns nothing otherwise has no place in it."""
    arch = PRESETS[name] if name in PRESETS else SPACES[name].sample(rng)
    with torch.device("meta"):
        network, image = Network(arch).train(), torch.empty(input_shape_of(arch, 2))
        assert no_gradient(network, image) == []
        if no_maps(arch) is None:
            assert no_gradient(FeatureNetwork(arch, list(network.stages)), image) == []


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_finite(name, rng):
    for _ in range(3):
        network = build(SMALL[name].sample(rng)).train()
        assert no_gradient(network, torch.randn(input_shape_of(network.arch, 4))) == []
        assert [
            key for key, each in network.named_parameters() if each.requires_grad and not each.grad.isfinite().all()
        ] == []


@pytest.mark.parametrize("name", SMALL)
def test_the_deployed_form_gives_the_same_outputs(name, rng):
    for _ in range(3):
        arch = SMALL[name].sample(rng)
        network = randomize(build(arch)).double().eval()
        x = torch.randn(input_shape_of(arch, 2), dtype=torch.float64)
        with torch.no_grad():
            expected, got = network(x), fuse(network)(x)
        assert got.shape == (2, arch.classes)
        assert expected.isfinite().all()
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert [str(part) for part in fuse(network).modules() if isinstance(part, _BatchNorm)] == []


@pytest.mark.parametrize("name", SMALL)
def test_an_exported_network_gives_the_same_outputs(name, rng, tmp_path):
    for number in range(2):
        network = build(SMALL[name].sample(rng), seed=number).eval()
        shape = input_shape_of(network.arch)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # so that scales of 1e-5 hide no branch
            x = torch.randn(shape)
            expected = network(x)
        path = export(network, [shape], tmp_path / f"{number}.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"input0": x.numpy()})
        assert abs(torch.from_numpy(got) - expected).max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", [*SPACES, *PRESETS])
def test_a_backbone_gives_a_map_for_every_resolution(name, rng):
    """Presets as detectors use them, for larger images than they were published for."""
    arch = PRESETS[name] if name in PRESETS else SPACES[name].sample(rng)
    if name in PRESETS:
        arch = dataclasses.replace(arch, input_shape=(3, 320, 320))
    if no_maps(arch) is not None:
        with torch.device("meta"), pytest.raises(InputError, match=re.escape(no_maps(arch).no_map)):
            build(arch, features_only=True)
        return
    with torch.device("meta"):
        network = FeatureNetwork(arch, list(Network(arch).stages))
        maps = network.eval()(torch.empty(input_shape_of(arch, 2)))
    strides, channels = network.feature_info.reduction(), network.feature_info.channels()
    assert strides == sorted(set(strides))
    assert is_plain(arch) or len(strides) >= 3
    assert strides[-1] == (16 if is_plain(arch) else 32) or name not in PRESETS
    sides = [math.ceil(arch.input_shape[1] / stride) for stride in strides]
    expected = [(2, width, side, side) for width, side in zip(channels, sides, strict=True)]
    assert [tuple(found.shape) for found in maps] == expected


@pytest.mark.parametrize("name", SMALL)
def test_the_maps_of_a_backbone_are_those_inside_the_whole_network(name, rng):
    arch = next(arch for arch in (SMALL[name].sample(rng) for _ in range(100)) if no_maps(arch) is None)
    whole, backbone = randomize(build(arch)).eval(), build(arch, features_only=True).eval()
    backbone.load_state_dict(whole.state_dict())
    seen = []
    for module in backbone.feature_info.module_name():
        block = whole.get_submodule(module)
        place = block.block.gives.index("x")
        block.register_forward_hook(lambda _, inputs, y, at=place: seen.append(y[at] if isinstance(y, tuple) else y))
    x = torch.randn(input_shape_of(arch, 2))
    with torch.no_grad():
        whole(x)
        maps = backbone(x)
    assert len(maps) == len(seen)
    for found, inside in zip(maps, seen, strict=True):
        positions = found.shape[2] * found.shape[3]  # tokens in front of the map's are none of it
        same = inside.flatten(2) if inside.ndim == 4 else inside.transpose(1, 2)[:, :, -positions:]
        assert torch.equal(found.flatten(2), same)


# Presets and searches


@pytest.mark.parametrize("module", FAMILIES.values(), ids=list(FAMILIES))
def test_what_is_published_of_presets_says_where_it_stands(module):
    known = getattr(module, "PUBLISHED", {})
    assert set(known) <= set(getattr(module, "PRESETS", {}))
    for each in known.values():
        assert 0.6 < each.top1 < 0.87  # of networks this small that learned from ImageNet-1K alone
        assert re.match(r"arXiv:\d{4}\.\d{5}|github\.com/[\w-]+/[\w-]+, ", each.source)


def test_every_preset_has_a_field_for_what_is_published_of_it():
    found = search_spaces.published()
    assert found.keys() == PRESETS.keys()
    assert found["swin-xt"] == search_spaces.Published(None, "", "")  # nothing is known, and nothing is made up


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_point_of_its_space(name):
    arch = PRESETS[name]
    space = search_spaces.load(arch.family)
    assert space.arch(space.params_of(arch)) == arch
    assert Arch.from_json(arch.to_json()) == arch


@functools.cache
def few_images(input_shape):
    return load_data("digits", input_shape, limit=40)


def trained_a_little(arch, seed, on_epoch):
    """A score from one epoch on few images."""
    found = Arch.from_json(arch)
    evaluator = load_evaluator("short", epochs=1)
    score = evaluator.score(functools.partial(build, found, seed=seed), few_images(found.input_shape), seed=seed)
    assert isinstance(score, Score)
    return score


@pytest.mark.parametrize("name", SMALL)
def test_a_space_is_searched_under_a_budget(name):
    space = SMALL[name]
    table = fake_table(space)
    study = make_study(InMemoryStorage(), space, "tpe")
    make_engine(study, space, estimator_at(space, table, "latency_ms<=p60"), HereWorkers(trained_a_little), 3).run()
    records = [record_of(trial) for trial in study.get_trials()]
    evaluated = [record for record in records if record.state == "evaluated"]
    assert len(evaluated) == 3
    assert {record.state for record in records} <= {"evaluated", "infeasible", "duplicate"}
    assert all(math.isfinite(record.val_loss) for record in evaluated)
    for trial, record in zip(study.get_trials(), records, strict=True):
        assert record.predicted_us == pytest.approx(table.price(calls_of(space.arch(trial.params))).total_us)


def test_fresh_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone(rng):
    arch = search_spaces.load("efficientformer-32").sample(rng)
    before = torch.random.get_rng_state()
    first, second, other = build(arch, seed=1), build(arch, seed=1), build(arch, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(network.parameters()) for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
