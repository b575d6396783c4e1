"""Evaluators that look at candidates with slices of other weights: `supernet` and `inherit`."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import search_spaces
from nas.core.errors import InputError
from nas.core.tracing import macs_of_unit
from nas.evaluation.checkpoint import read_weights, write_weights
from nas.evaluation.data import load_data
from nas.evaluation.evaluators import LOSS, epochs_of, load_evaluator, read_asked
from nas.evaluation.metrics import evaluate
from nas.evaluation.pretrained import arch_of, load_pretrained
from nas.evaluation.recalibration import recalibrate
from nas.evaluation.recipe import Recipe
from nas.evaluation.supernet import even_over_kinds, read_supernet
from nas.evaluation.training import train
from nas.networks.building import build, cost_of
from nas.networks.supernet import Supernet
from nas.networks.weights import inherit, slices
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from search_spaces import efficientformer as ef
from tests.small import TINY

LARGE = ef.make((16, 32, 32, 48), (1, 2, 2, 2), 0, ratios=(2, 4, 2, 2), side=32, classes=10, stem_convs=1)
CHILD = ef.make((16, 16, 16, 32), (1, 1, 2, 1), 0, ratios=(2, 2, 2, 2), side=32, classes=10, stem_convs=1)
DEEPER = ef.make((16, 32, 32, 48), (1, 3, 2, 2), 0, ratios=(2, 4, 2, 2), side=32, classes=10, stem_convs=1)


@pytest.fixture(scope="module")
def data():
    return replace(load_data("digits", TINY.input_shape, limit=400), test=None)


def score(evaluator, arch, data, prepared, seed=0):
    return evaluator.score(lambda: build(arch, seed=seed), data, arch=arch, prepared=prepared, seed=seed)


def fits(most=math.inf):
    lattice = lattice_of(TINY)
    return FeasibleSet(lattice, [Sum("macs", lattice.costs(macs_of_unit), most)])


# supernet


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """An evaluator with what it prepared."""
    evaluator = load_evaluator("supernet", steps=60, recipe={"amp": "none"})
    return evaluator, evaluator.prepare(TINY, fits(), data, tmp_path_factory.mktemp("supernet"))


def with_slices(arch, prepared):
    network = build(arch)
    network.load_state_dict(read_supernet(Path(prepared["file"]), prepared["hash"]).slices(arch), strict=False)
    return network


def test_a_score_is_what_the_slice_reaches_recalibrated_and_is_no_accuracy(trained, data):
    evaluator, prepared = trained
    network = with_slices(LARGE, prepared)
    recalibrate(network, data.train, 512)
    expected = evaluate(network, data.val)
    found = score(evaluator, LARGE, data, prepared)
    assert (found.value, found.name) == (pytest.approx(1 - expected.accuracy), "supernet_error")
    assert (found.val_loss, found.val_accuracy) == (None, None)
    assert f"supernet {prepared['hash'][:12]} (60 steps)" in found.cost
    assert "recalibrated on 320 images, validated on 80" in found.cost
    by_loss = score(load_evaluator("supernet", by="loss"), LARGE, data, prepared)
    assert (by_loss.value, by_loss.name) == (pytest.approx(expected.loss), "supernet_loss")
    half = score(load_evaluator("supernet", by="loss", validate=40), LARGE, data, prepared)
    assert half.value == pytest.approx(evaluate(network, data.val, first=40).loss)


def test_recalibration_helps_once_training_has_ended(trained, data):
    """A child's own statistics against those cut out of the largest network's."""
    _, prepared = trained
    largest = with_slices(LARGE, prepared)
    recalibrate(largest, data.train, 320)
    rng, gains = random.Random(1), []
    for arch in (TINY.arch(params | {"tail": 0}) for params in (TINY.params_of(TINY.sample(rng)) for _ in range(6))):
        child = build(arch)
        child.load_state_dict(slices(largest, arch))
        cut = evaluate(child, data.train).loss
        recalibrate(child, data.train, 320)
        gains.append(cut - evaluate(child, data.train).loss)
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


def test_recalibrated_statistics_are_the_mean_over_batches(data):
    network = build(LARGE)
    recalibrate(network, data.train, 128)
    norm = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
    conv = network.stages[0][0].body[0].body[0]
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    images = data.train._fit(data.train.images[order[:128]], None)
    with torch.no_grad():
        parts = [conv(part) for part in images.split(64)]
    expected = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert (norm.momentum, norm.training) == (0.1, False)


def test_children_are_drawn_from_what_fits_alone(data, tmp_path, monkeypatch):
    run, cut = [], Supernet.slices
    monkeypatch.setattr(Supernet, "slices", lambda self, arch: run.append(arch) or cut(self, arch))
    macs = sorted(cost_of(arch).macs for arch in TINY.archs())
    most = macs[len(macs) // 2]
    load_evaluator("supernet", steps=40).prepare(TINY, fits(most), data, tmp_path)
    assert len(run) == 40
    assert max(cost_of(arch).macs for arch in run) <= most
    assert len(set(run)) > 20


def test_kinds_of_a_hybrid_space_are_drawn_equally_often_within_what_fits():
    space = search_spaces.load("hybrid-32")
    lattice = lattice_of(space)
    macs = lattice.costs(macs_of_unit)
    most = 0.5 * lattice.most(macs)
    feasible = FeasibleSet(lattice, [Sum("macs", macs, most)])
    archs = [lattice.arch(tuple(path)) for path in even_over_kinds(feasible, np.random.default_rng(0), 1500).tolist()]
    assert max(cost_of(arch).macs for arch in archs) <= most
    params = [space.params_of(arch) for arch in archs[:700]]
    for stage, kinds in ((1, 4), (2, 5), (3, 7)):
        shares = Counter(each[f"stage{stage}.kind"] for each in params)
        assert len(shares) == kinds
        assert all(0.6 / kinds < count / len(params) < 1.5 / kinds for count in shares.values())
    alone = even_over_kinds(fits(), np.random.default_rng(0), 20)  # a space without kinds
    assert np.array_equal(alone, fits().draw(np.random.default_rng(0), 20))


def test_a_sandwich_is_of_the_largest_and_the_smallest_that_fit(data, tmp_path, monkeypatch):
    run, cut = [], Supernet.slices
    monkeypatch.setattr(Supernet, "slices", lambda self, arch: run.append(cost_of(arch).macs) or cut(self, arch))
    macs = sorted(cost_of(arch).macs for arch in TINY.archs())
    most = macs[len(macs) // 2]
    load_evaluator("supernet", steps=1, sandwich=True).prepare(TINY, fits(most), data, tmp_path)
    assert run[:2] == [most, macs[0]]
    assert len(run) == 3


def test_a_supernet_that_is_gone_damaged_or_was_never_prepared_is_told(trained, data, tmp_path):
    evaluator, prepared = trained
    with pytest.raises(InputError, match="nothing was prepared"):
        score(evaluator, CHILD, data, {})
    copy = tmp_path / "supernet.pt"
    with pytest.raises(InputError, match="is gone; put it back"):
        score(evaluator, CHILD, data, {**prepared, "file": str(copy)})
    copy.write_bytes(b"something else")
    with pytest.raises(InputError, match="not the supernet that scores rest on"):
        score(evaluator, CHILD, data, {**prepared, "file": str(copy)})
    with pytest.raises(InputError, match=r"supernet of efficientformer-32: stage 2: no weights for 3 MB4D"):
        score(evaluator, DEEPER, data, prepared)


# inherit


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """What a training leaves."""
    folder = tmp_path_factory.mktemp("train")
    network = build(LARGE)
    train(network, data, Recipe(epochs=3, batch_size=32, amp="none"))
    write_weights(folder / "weights.pt", network)
    (folder / "arch.json").write_text(LARGE.to_json())
    return folder


@pytest.fixture
def prepared_of(tmp_path):
    def prepare(evaluator, data):
        (tmp_path / "prepared").mkdir(exist_ok=True)
        return evaluator.prepare(TINY, fits(), data, tmp_path / "prepared")

    return prepare


def test_a_candidate_begins_with_slices_of_the_larger_network(folder, data, prepared_of):
    evaluator = load_evaluator("inherit", weights=str(folder), by="loss")
    prepared = prepared_of(evaluator, data)
    found = score(evaluator, CHILD, data, prepared)
    large, child = build(LARGE), build(CHILD)
    large.load_state_dict(read_weights(folder / "weights.pt"))
    child.load_state_dict(slices(large, CHILD))
    recalibrate(child, data.train, 512)
    assert found.value == pytest.approx(evaluate(child, data.val).loss)
    assert (found.name, found.val_loss, found.val_accuracy) == ("inherited_loss", None, None)
    assert found.cost.startswith("11 of 11 blocks from weights.pt (")
    whole = score(evaluator, LARGE, data, prepared)
    assert whole.value == pytest.approx(evaluate(large, data.val).loss, rel=0.2)  # its statistics are others now


def test_a_little_training_makes_it_a_trained_network(folder, data, prepared_of):
    untrained = load_evaluator("inherit", weights=str(folder), by="loss")
    evaluator = load_evaluator("inherit", weights=str(folder), epochs=2)
    assert (untrained.trains, epochs_of(untrained)) == (False, None)
    assert (evaluator.trains, epochs_of(evaluator)) == (True, 2)
    prepared, told = prepared_of(evaluator, data), []
    found = evaluator.score(
        lambda: build(CHILD), data, arch=CHILD, prepared=prepared, on_epoch=lambda *epochs: told.append(epochs)
    )
    assert (found.name, found.value) == (LOSS, found.val_loss)
    assert 0 < found.val_accuracy <= 1
    assert told == [(1, 2), (2, 2)]
    assert found.value < score(untrained, CHILD, data, prepared).value
    fresh = load_evaluator("short", epochs=2, recipe=evaluator.recipe.model_dump())
    assert found.value < score(fresh, CHILD, data, {}).value


def test_blocks_that_the_larger_network_lacks_start_fresh_and_are_counted(folder, data, prepared_of):
    evaluator = load_evaluator("inherit", weights=str(folder))
    prepared = prepared_of(evaluator, data)
    first, other = score(evaluator, DEEPER, data, prepared), score(evaluator, DEEPER, data, prepared, seed=1)
    assert first.cost.startswith("13 of 14 blocks")
    assert other.cost == first.cost
    strict = load_evaluator("inherit", weights=str(folder), fresh=False)
    with pytest.raises(InputError, match=r"1 of 14 blocks of arch \w+ find no weights there, first MB4D of stage 2"):
        score(strict, DEEPER, data, prepared)


def test_a_classifier_of_other_classes_starts_fresh():
    large, network = (
        build(LARGE),
        build(
            replace(
                CHILD,
                classes=5,
                stages=ef.make(
                    (16, 16, 16, 32), (1, 1, 2, 1), 0, ratios=(2, 2, 2, 2), side=32, classes=5, stem_convs=1
                ).stages,
            )
        ),
    )
    assert inherit(network, large) == ("Logits of stage 5",)


def test_the_architecture_of_weights_lies_beside_them(folder, tmp_path):
    assert arch_of(str(folder)) == arch_of(str(folder / "weights.pt")) == LARGE
    with pytest.raises(InputError, match=r"neither weights.pt nor best.pt"):
        arch_of(str(tmp_path))
    with pytest.raises(InputError, match="there is no such file"):
        arch_of(str(tmp_path / "x.pt"))
    with pytest.raises(InputError, match="of which preset"):
        arch_of("timm")
    best = tmp_path / "best.pt"
    best.write_bytes((folder / "weights.pt").read_bytes())
    with pytest.raises(InputError, match=r"None of best.json, arch.json lies beside them; name a preset"):
        arch_of(str(best))
    assert arch_of(str(best), str(folder / "arch.json")) == LARGE
    best.with_suffix(".json").write_text(CHILD.to_json())
    with pytest.raises(InputError, match="does not fit this architecture"):
        load_pretrained(build(arch_of(str(tmp_path))), str(tmp_path))


def test_the_original_may_go_but_not_the_copy(folder, data, tmp_path, prepared_of):
    for name in ("weights.pt", "arch.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    evaluator = load_evaluator("inherit", weights=str(tmp_path))
    prepared = prepared_of(evaluator, data)
    (tmp_path / "weights.pt").unlink()
    score(evaluator, CHILD, data, prepared)
    write_weights(tmp_path / "prepared" / "weights.pt", build(LARGE, seed=5))
    with pytest.raises(InputError, match="not the weights that were there before; put them back"):
        score(evaluator, CHILD, data, prepared)


def test_a_request_without_weights_is_refused_when_it_is_read():
    with pytest.raises(InputError, match="evaluator inherit: weights"):
        read_asked("inherit")
