"""Pieces of a recipe, each by what it does to a training: parts of a step, number formats, resolutions, kept tokens."""

import csv
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from nas.core.errors import InputError
from nas.evaluation.augmentation import RandAugment
from nas.evaluation.data import load_data
from nas.evaluation.devices import seeded
from nas.evaluation.log import TrainingLog
from nas.evaluation.optimization import Schedule, make_optimizer
from nas.evaluation.recipe import Recipe
from nas.evaluation.teacher import Teacher
from nas.evaluation.training import train
from nas.networks.building import build
from search_spaces.deit import PatchTokens, ViTBlock
from search_spaces.dynamicvit import make
from tests.evaluation.trainer_process import network

HOST = PatchTokens(patch=2), ViTBlock(2, head_dim=8)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", (1, 8, 8), limit=160)


class Net(nn.Module):
    """No norm and nothing random: a step depends on its images only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def net() -> Net:
    with seeded(0):
        return Net()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_a_step_in_parts_is_the_step_as_a_whole(data):
    whole, parts = net(), net()
    for model, accumulate in ((whole, 1), (parts, 4)):
        recipe = Recipe(epochs=2, batch_size=32, accumulate=accumulate, amp="none", optimizer="sgd", lr=0.1)
        result = train(model, data, recipe)
        assert result.history[0]["steps"] == 4
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights(whole), weights(net()))


def test_a_batch_that_does_not_divide_into_its_parts_is_refused(data):
    with pytest.raises(InputError, match="batch_size 32 is no multiple of the 3 parts"):
        train(net(), data, Recipe(batch_size=32, accumulate=3))


def test_fp16_with_scaled_gradients_comes_close_to_fp32_and_says_so(data):
    results = [train(net(), data, Recipe(epochs=2, amp=amp)) for amp in ("none", "fp16")]
    assert [result.precision for result in results] == ["fp32", "fp16"]
    assert results[1].val_loss != results[0].val_loss
    assert results[1].val_loss == pytest.approx(results[0].val_loss, rel=0.02)


def test_one_model_trains_at_several_resolutions_and_the_log_says_at_which(data, tmp_path):
    model = network("convolutions")
    images = load_data("digits", (1, 16, 16), limit=160)
    recipe = Recipe(epochs=2, batch_size=16, multi_scale=(16, 24, 32), lr=1e-3)
    result = train(model, images, recipe, log=tmp_path)
    table = pd.read_csv(tmp_path / "training.csv")
    assert list(table["epoch"]) == [1, 2]
    assert {"train_loss", "val_loss", "val_accuracy", "lr", "images_per_second", "resolution"} <= set(table.columns)
    assert table["resolution"].between(16, 32, inclusive="neither").all()
    assert (table["images"] >= 128).all()
    assert list(table["val_loss"]) == pytest.approx([entry["val_loss"] for entry in result.history])


def test_the_log_of_a_resumed_training_has_every_epoch_once(data, tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    def stop(entry):
        raise Stop

    given = {"checkpoint": tmp_path / "checkpoint.pt", "log": tmp_path}
    with pytest.raises(Stop):
        train(net(), data, Recipe(epochs=3), on_epoch=stop, **given)
    train(net(), data, Recipe(epochs=3), **given)
    with (tmp_path / "training.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_tensorboard_shows_what_the_log_says(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(net(), data, Recipe(epochs=2), log=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train_loss", "val_accuracy", "lr", "images_per_second", "resolution"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(entry["epoch"], pytest.approx(entry[name], rel=1e-6)) for entry in result.history]


def test_tensorboard_shows_every_epoch_once_though_one_was_lost_between_checkpoint_and_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = [{"epoch": epoch, "train_loss": 1.0 / epoch} for epoch in (1, 2, 3, 4)]
    before, after = TrainingLog(tmp_path), TrainingLog(tmp_path)
    before.write(history[:1])
    before.close()  # killed after it saved epoch 2
    time.sleep(1.1)  # TensorBoard orders its files by seconds
    after.write(history[:3])
    after.write(history)
    after.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train_loss")
    assert [(event.step, event.value) for event in events] == [(n, pytest.approx(1 / n)) for n in (1, 2, 3, 4)]


def test_prediction_modules_have_a_rate_of_their_own_and_the_host_waits():
    model = build(make(HOST, 16, 3, (1,), (50,), side=8, classes=10))
    recipe = Recipe(epochs=4, lr=0.5, host_lr=0.1, host_frozen=2, warmup_fraction=0.0)
    optimizer = make_optimizer(model, recipe)
    schedule = Schedule(optimizer, recipe, steps=10)
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [(group["host"], {names[id(w)] for w in group["params"]}) for group in optimizer.param_groups]
    host = set().union(*(found for is_host, found in groups if is_host))
    predicting = set().union(*(found for is_host, found in groups if not is_host))
    assert predicting == {name for name in names.values() if name.startswith("stages.0.3.")}
    frozen = {"stages.0.0.body.1.body.token", "stages.0.0.body.1.body.positions"}
    assert host == set(names.values()) - predicting - frozen
    for epoch in (1, 2, 3, 4):
        schedule.set(epoch, 5, 10)
        rates = {group["host"]: group["lr"] for group in optimizer.param_groups}
        assert rates[True] == pytest.approx(0.0 if epoch <= 2 else 0.1 * rates[False])
        assert rates[False] > 0.005


def test_a_host_of_the_same_rate_waits_for_its_epochs_too(data):
    """After the first of two epochs only prediction modules have moved; nothing but the epochs says otherwise."""
    arch = replace(make(HOST, 16, 2, (1,), (50,), side=8, classes=10), input_shape=(1, 8, 8))
    model = build(arch)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    moved = []

    def look(entry):
        moved.append({name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])})

    train(model, data, Recipe(epochs=2, batch_size=32, amp="none", host_frozen=1), on_epoch=look)
    assert moved[0] == {name for name in before if name.startswith("stages.0.3.")}
    assert moved[1] == before.keys()


def test_the_share_of_tokens_that_are_kept_learns_to_be_what_is_asked_for():
    """In small: `benchmarks/training.py` does the same on Fashion-MNIST."""
    torch.set_num_threads(1)
    data = load_data("digits", (1, 8, 8), limit=600)
    arch = replace(make(HOST, 32, 3, (1, 2), (70, 70), side=8, classes=10), input_shape=(1, 8, 8))
    model = build(arch)
    train(model, data, Recipe(epochs=5, batch_size=16, amp="none", keep="draw"), seed=0)
    with seeded(0), torch.no_grad():
        model.train()
        kept = torch.cat([model.streams(images)["kept"] for images, _ in data.val.batches(60)])
    assert kept.mean((0, 2)).tolist() == pytest.approx([0.7, 0.49], abs=0.03)


def test_a_teacher_is_asked_for_and_none_is_idle(data):
    for recipe in (Recipe(distill_hard=0.5), Recipe(distill_soft=1.0), Recipe(start="teacher")):
        with pytest.raises(InputError, match="the recipe learns from a teacher: name one"):
            train(net(), data, recipe)
    with pytest.raises(InputError, match="the recipe asks nothing of teacher idle"):
        train(net(), data, Recipe(), teacher=Teacher("idle", net(), None, 8))


def test_a_good_teacher_helps_where_labels_are_few(data):
    whole = load_data("digits", (1, 8, 8))
    guide = net()
    train(guide, whole, Recipe(epochs=10, batch_size=16))
    few = load_data("digits", (1, 8, 8), limit=40)
    losses = []
    for recipe in (Recipe(epochs=20, batch_size=16), Recipe(epochs=20, batch_size=16, distill_soft=4.0)):
        teacher = Teacher("guide", guide, None, 8) if recipe.distills else None
        model = net()
        train(model, few, recipe, teacher=teacher)
        images, labels = next(whole.val.batches(len(whole.val)))
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(model(images), labels)))
    assert losses[1] < losses[0]


def test_rand_augment_keeps_size_and_kind_and_is_decided_by_the_seed():
    augment = RandAugment("rand-m9-mstd0.5-inc1")
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.randint(256, (channels, 12, 12), dtype=torch.uint8, generator=generator)
        changed = []
        for seed in (1, 1, 2, 3, 4):
            with seeded(seed):
                changed.append(augment(image))
        assert {(each.shape, each.dtype) for each in changed} == {(image.shape, torch.uint8)}
        assert torch.equal(changed[0], changed[1])
        assert len({each.numpy().tobytes() for each in changed}) > 2


def test_rand_augment_survives_its_own_extremes():
    augment = RandAugment("rand-m10-inc1-n8")
    image = torch.arange(3 * 64, dtype=torch.uint8).view(3, 8, 8)
    for seed in range(40):
        with seeded(seed):
            assert augment(image).shape == (3, 8, 8)
