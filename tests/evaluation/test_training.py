"""Training, evaluation, checkpoints and evaluators, on nets of a few hundred weights."""

import errno
import functools
import json
import math
import os
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

import search_spaces
from nas.core.errors import InputError, RunError
from nas.core.files import whole
from nas.core.tracing import macs_of_unit
from nas.evaluation import evaluators, training
from nas.evaluation.augmentation import distorted
from nas.evaluation.checkpoint import write_weights
from nas.evaluation.data import load_data
from nas.evaluation.devices import OutOfMemory, pick_device, seeded, step_dtype
from nas.evaluation.evaluators import LOSS, load_evaluator
from nas.evaluation.optimization import make_optimizer
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import TrainingDiverged, evaluate, train
from nas.networks import building as networks
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from search_spaces.deit import PatchTokens, ViTBlock
from search_spaces.dynamicvit import make

EVERYTHING = Recipe(
    epochs=3,
    batch_size=16,
    shift=1,
    rand_augment="rand-m5-mstd0.5",
    random_erasing=0.3,
    mixup=0.2,
    cutmix=0.5,
    ema_decay=0.9,
    clip=0.05,
    clip_mode="agc",
)


class TwoHeads(nn.Module):
    """Small enough for a test, with all that makes a resumed training differ: dropout, batch norm, two heads."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU(), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleList(nn.Linear(width * 16, classes) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        features = self.body(x).flatten(1)
        logits = tuple(head(features) for head in self.heads)
        return logits if self.training else torch.stack(logits).mean(0)


def build(seed: int = 0, **options) -> TwoHeads:
    with seeded(seed):
        return TwoHeads(**options)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", (1, 8, 8), seed=0, limit=160)


class Interrupted(Exception):  # noqa: N818
    """Stands for a kill between two epochs."""


def stop_after(epoch: int):
    def stop(entry):
        if entry["epoch"] == epoch:
            raise Interrupted

    return stop


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_times(history) -> list[dict]:
    return [{key: value for key, value in entry.items() if "second" not in key} for entry in history]


def test_training_learns_digits_and_reports_what_scikit_learn_computes():
    data = load_data("digits", (1, 8, 8), seed=0)
    model = build(width=16)
    result = train(model, data, Recipe(epochs=4, batch_size=32), test=True)
    for split, loss, accuracy in (
        (data.val, result.val_loss, result.val_accuracy),
        (data.test, result.test_loss, result.test_accuracy),
    ):
        images, labels = next(split.batches(len(split)))
        with torch.no_grad():
            chances = model(images).double().softmax(1).numpy()
        assert loss == pytest.approx(log_loss(labels, chances, labels=range(10)), rel=1e-5)
        assert accuracy == pytest.approx(accuracy_score(labels, chances.argmax(1)))
    assert result.val_accuracy > 0.9
    assert not model.training


def test_the_test_split_is_read_only_if_asked(data, monkeypatch):
    monkeypatch.setattr(
        type(data), "test", property(lambda self: pytest.fail("the test split was read")), raising=False
    )
    result = train(build(), data, Recipe(epochs=1))
    assert (result.test_loss, result.test_accuracy) == (None, None)


def test_evaluation_does_not_depend_on_the_batch_size_and_leaves_the_mode(data):
    model = build().train()
    whole, parts = (evaluate(model, data.val, batch_size=n) for n in (1000, 7))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.accuracy, parts.n) == (whole.accuracy, len(data.val))
    assert model.training


def test_a_seed_decides_everything_and_the_callers_generators_stay_as_they_were(data):
    def trained(seed: int) -> tuple[nn.Module, list[dict]]:
        model = build()
        return model, without_times(train(model, data, EVERYTHING, seed=seed).history)

    for seed in (11, 12):  # another state of the global generators before each training
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        model, history = trained(seed=3)
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        if seed == 11:
            first, first_history = model, history
    assert same_weights(first, model)
    assert first_history == history
    assert not same_weights(first, trained(seed=4)[0])


@pytest.mark.parametrize("recipe", [Recipe(epochs=3, batch_size=16), EVERYTHING, Recipe(epochs=3, optimizer="lion")])
@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_training_ends_with_the_very_weights_of_an_uninterrupted_one(data, tmp_path, recipe, stop):
    whole = build()
    expected = train(whole, data, recipe, seed=5)
    path = tmp_path / "new" / "model.pt"
    with pytest.raises(Interrupted):
        train(build(), data, recipe, seed=5, checkpoint=path, on_epoch=stop_after(stop))
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]
    resumed, seen = build(seed=99), []
    result = train(resumed, data, recipe, seed=5, checkpoint=path, on_epoch=seen.append)
    assert same_weights(resumed, whole)
    assert without_times(result.history) == without_times(expected.history)
    assert [entry["epoch"] for entry in seen] == list(range(stop + 1, 4))


def test_a_finished_training_is_not_repeated(data, tmp_path):
    first, again = build(), build(seed=99)
    expected = train(first, data, EVERYTHING, checkpoint=tmp_path / "model.pt")
    assert train(again, data, EVERYTHING, checkpoint=tmp_path / "model.pt") == expected
    assert same_weights(first, again)


def test_a_write_that_fails_halfway_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    path, recipe = tmp_path / "model.pt", Recipe(epochs=3)
    calls = []

    def fail_the_second_time(file, content):
        calls.append(file)
        with whole(file) as temporary:
            temporary.write_bytes(content if len(calls) == 1 else content[:100])
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nas.evaluation.checkpoint.write_bytes", fail_the_second_time)
        with pytest.raises(RunError, match="no space left"):
            train(build(), data, recipe, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    epochs = []
    train(build(), data, recipe, checkpoint=path, on_epoch=lambda entry: epochs.append(entry["epoch"]))
    assert epochs == [2, 3]


def test_a_new_checkpoint_is_moved_over_the_old_one_and_not_written_into_it(data, tmp_path):
    path, old, kept = tmp_path / "model.pt", tmp_path / "old.pt", []

    def keep_the_first(entry):
        if not kept:
            os.link(path, old)  # a second name of the same file
            kept.append(path.read_bytes())

    train(build(), data, Recipe(epochs=2), checkpoint=path, on_epoch=keep_the_first)
    assert old.read_bytes() == kept[0]
    assert path.read_bytes() != kept[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(epochs=2, lr=1e-3)}, r"recipe\.lr is 0.003 there, 0.001 here"),
        ({"seed": 1}, r"training\.seed is 0 there, 1 here"),
        ({"model": TwoHeads(width=9)}, r"model\.parameters"),
        ({"data": load_data("digits", (1, 8, 8), seed=1, limit=160)}, r"data\.seed is 0 there, 1 here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_kept(data, tmp_path, change, message):
    path = tmp_path / "model.pt"
    given = {"model": build(), "data": data, "recipe": Recipe(epochs=2)}
    train(**given, checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(InputError, match=message):
        train(**given | change, checkpoint=path)
    assert path.read_bytes() == content


def test_a_checkpoint_of_another_architecture_with_the_same_parameters_is_refused(tmp_path):
    host = PatchTokens(patch=4), ViTBlock(2, head_dim=8)
    archs = [make(host, 16, 2, (1,), (keep,), side=16, classes=10) for keep in (50, 70)]
    models = [networks.build(replace(arch, input_shape=(1, 16, 16))) for arch in archs]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    data, path = load_data("digits", (1, 16, 16), limit=40), tmp_path / "model.pt"
    recipe = Recipe(epochs=1, batch_size=16, amp="none")
    train(models[0], data, recipe, checkpoint=path)
    with pytest.raises(InputError, match=rf"model\.arch is '{models[0].arch.id}' there, '{models[1].arch.id}' here"):
        train(models[1], data, recipe, checkpoint=path)


class Attack:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_is_read_without_executing_code(data, tmp_path):
    path, victim = tmp_path / "model.pt", tmp_path / "victim"
    torch.save({"identity": Attack(victim)}, path)
    with pytest.raises(InputError, match=r"model\.pt: not a readable checkpoint"):
        train(build(), data, Recipe(epochs=1), checkpoint=path)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the attack is real
    assert victim.exists()


@pytest.mark.parametrize("content", [b"", b"torn", pickle.dumps([1, 2], protocol=2), "half"])
def test_a_damaged_checkpoint_is_named(data, tmp_path, content):
    path = tmp_path / "model.pt"
    if content == "half":
        train(build(), data, Recipe(epochs=1), checkpoint=path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt: not a readable checkpoint"):
        train(build(), data, Recipe(epochs=1), checkpoint=path)


def test_two_equal_heads_train_like_one(data):
    class One(nn.Module):
        def __init__(self, copies: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
            self.copies = copies

        def forward(self, x):
            logits = self.layers(x)
            return (logits,) * self.copies if self.training and self.copies > 1 else logits

    one, two = One(1), One(2)
    two.load_state_dict(one.state_dict())
    for model in (one, two):
        train(model, data, Recipe(epochs=1, amp="none"))
    assert same_weights(one, two)


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine(data, monkeypatch):
    rates = []
    update = training._Trainer._update
    monkeypatch.setattr(
        training._Trainer,
        "_update",
        lambda self: (update(self), rates.append(self.optimizer.param_groups[0]["lr"]))[0],
    )
    train(build(), data, Recipe(epochs=5, batch_size=16, lr=0.2, warmup_fraction=0.25, final_lr=0.1))
    steps, warmup = 40, 10
    expected = [0.02 + 0.18 * t / warmup for t in range(warmup)] + [
        0.02 + 0.18 * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(warmup, steps)
    ]
    assert rates == pytest.approx(expected)


def test_biases_and_norms_are_not_decayed(data):
    model = build()
    decays = {
        id(weight): group["weight_decay"]
        for group in make_optimizer(model, Recipe(weight_decay=0.3)).param_groups
        for weight in group["params"]
    }
    assert {name: decays[id(weight)] for name, weight in model.named_parameters()} == {
        "body.0.weight": 0.3,
        "body.1.weight": 0.0,
        "body.1.bias": 0.0,
        "heads.0.weight": 0.3,
        "heads.0.bias": 0.0,
        "heads.1.weight": 0.3,
        "heads.1.bias": 0.0,
    }


def test_adaptive_clipping_bounds_all_gradients_but_those_of_the_last_layer(data):
    model, limit = build(), 0.01
    train(model, data, Recipe(epochs=1, batch_size=128, clip=limit, clip_mode="agc", lr=1e-30, weight_decay=0))

    def exceeds(name: str) -> bool:
        """arXiv:2102.06171, eq. 3, one unit a row, with the smallest weight norm 1e-3 of sec. 4.1."""
        weight, gradient = (x.flatten(1) for x in (model.get_parameter(name), model.get_parameter(name).grad))
        return bool((gradient.norm(dim=1) > 1.0001 * limit * weight.norm(dim=1).clamp_min(1e-3)).any())

    assert {name: exceeds(name) for name in ("body.0.weight", "heads.0.weight", "heads.1.weight")} == {
        "body.0.weight": False,
        "heads.0.weight": False,
        "heads.1.weight": True,
    }


def test_images_are_mirrored_only_where_the_data_allow_it():
    images = torch.arange(64 * 8.0).view(64, 1, 2, 4)
    with seeded(0):
        flipped = distorted(images, Recipe(), mirrors=True)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert torch.equal(distorted(images, Recipe(), mirrors=False), images)


class SpoiltAtCall(nn.Module):
    """A model whose output for its n-th training batch is spoilt."""

    def __init__(self, model: nn.Module, n: int, poison: float) -> None:
        super().__init__()
        self.model, self.left, self.poison = model, n, poison

    def forward(self, x):
        self.left -= self.training
        output = self.model(x)
        return tuple(logits * self.poison for logits in output) if self.training and self.left == 0 else output


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_epoch_and_step(data, poison):
    with pytest.raises(TrainingDiverged, match="epoch 2, step 2"):
        train(SpoiltAtCall(build(), 6, poison), data, Recipe(epochs=3, batch_size=32))


def test_too_high_a_learning_rate_is_an_error_and_not_a_bad_score(data):
    with pytest.raises(TrainingDiverged, match="lower lr"):
        train(build(), data, Recipe(epochs=2, optimizer="sgd", lr=1e30, warmup_fraction=0))


def test_a_model_whose_held_out_loss_is_no_number_has_no_score(data):
    model = build()
    model.body[1].running_var.fill_(float("nan"))  # read in evaluation only
    with pytest.raises(TrainingDiverged, match="the loss on 32 held-out images is nan"):
        evaluate(model, data.val)


class Greedy(nn.Module):
    """Asks for a petabyte."""

    def forward(self, x):
        return torch.empty(2**50, dtype=torch.uint8)


def raising(error: Exception) -> nn.Module:
    module = nn.Module()
    module.forward = lambda x: (_ for _ in ()).throw(error)
    return module


@pytest.mark.parametrize(
    "model", [Greedy(), raising(MemoryError()), raising(torch.OutOfMemoryError("CUDA out of memory. Tried ..."))]
)
def test_running_out_of_memory_names_batch_input_and_device(data, model):
    model.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(OutOfMemory, match="cpu with batches of 24 images 1x8x8"):
        train(model, data, Recipe(epochs=1, batch_size=24))
    with pytest.raises(OutOfMemory, match="cpu with batches of 30 images 1x8x8"):
        evaluate(model, data.val, batch_size=30)


def test_other_errors_of_a_model_stay_what_they_are(data):
    model = raising(RuntimeError("shapes cannot be multiplied"))
    model.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(model, data, Recipe(epochs=1))


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        (TwoHeads(classes=12), Recipe(), r"\(64, 12\) logits, the data has 10 classes"),
        (TwoHeads(), Recipe(batch_size=129), "batch_size 129 exceeds the 128 training images of digits"),
        (TwoHeads(), Recipe(batch_size=15, mixup=0.1), "even batch_size, not 15"),
        (TwoHeads(), Recipe(optimizer="adamww"), "did you mean 'adamw'"),
    ],
)
def test_what_does_not_fit_together_is_refused(data, model, recipe, message):
    with pytest.raises(InputError, match=message):
        train(model, data, recipe)


def test_a_recipe_rejects_unknown_fields_and_impossible_numbers():
    for wrong in ({"epoch": 3}, {"epochs": 0}, {"lr": -1}, {"amp": "fp8"}, {"ema_decay": 1.0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Recipe(**wrong)


def test_validation_can_be_rarer_than_epochs_but_the_last_is_validated(data):
    result = train(build(), data, Recipe(epochs=5, validate_every=2))
    assert [entry["epoch"] for entry in result.history if "val_loss" in entry] == [2, 4, 5]
    assert result.val_loss == result.history[-1]["val_loss"]


def test_averaged_weights_are_the_result(data):
    plain, averaged = build(), build()
    train(plain, data, Recipe(epochs=2))
    result = train(averaged, data, Recipe(epochs=2, ema_decay=0.99))
    assert not same_weights(plain, averaged)
    assert evaluate(averaged, data.val).loss == pytest.approx(result.val_loss)


def test_bf16_is_chosen_only_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, expected in (
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert (step_dtype("auto", cpu) == torch.bfloat16) is expected
        assert step_dtype("none", cpu) == torch.float32
        assert step_dtype("bf16", cpu) == torch.bfloat16
        assert step_dtype("fp16", cpu) == torch.float16


def test_training_in_bf16_comes_close_to_fp32_and_says_so(data):
    results = [train(build(), data, Recipe(epochs=2, amp=amp)) for amp in ("none", "bf16")]
    assert [result.precision for result in results] == ["fp32", "bf16"]
    assert results[1].val_loss != results[0].val_loss
    assert results[1].val_loss == pytest.approx(results[0].val_loss, rel=0.05)


def test_devices_are_named_and_unknown_ones_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda' is not on this machine; here are cpu"):
        pick_device("cuda")
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        pick_device("cudaa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="'cuda:2' is not on this machine"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", evaluators.names())
def test_an_evaluator_scores_the_same_candidate_the_same_way_and_never_reads_test(name, tmp_path):
    space = search_spaces.load("deit-32")
    arch = space.sample(random.Random(0))
    data = replace(load_data("digits", arch.input_shape, limit=400), test=None)
    (tmp_path / "arch.json").write_text(arch.to_json())
    write_weights(tmp_path / "weights.pt", networks.build(arch, seed=9))
    settings = {"supernet": {"steps": 1}, "inherit": {"weights": str(tmp_path)}, "short": {"epochs": 1}}
    evaluator = load_evaluator(name, **settings.get(name, {}))
    lattice = lattice_of(space)
    fits = FeasibleSet(lattice, [Sum("", lattice.costs(macs_of_unit), math.inf)])
    prepared = json.loads(json.dumps(evaluator.prepare(space, fits, data, tmp_path)))

    def score(seed):
        model = functools.partial(networks.build, arch, seed=seed)
        return evaluator.score(model, data, arch=arch, prepared=prepared, seed=seed)

    first, again, other = score(1), score(1), score(2)
    assert math.isfinite(first.value)
    assert (first.value, first.val_accuracy) == (again.value, again.val_accuracy)
    assert first.value != other.value or name in ("size", "supernet", "inherit")  # which look at no fresh weights
    assert (first.val_accuracy is None) == (first.name != LOSS)
    assert first.seconds > 0
    assert first.cost


def test_short_training_spends_the_epochs_it_was_given(data):
    few, more = (load_evaluator("short", epochs=epochs).score(TwoHeads, data) for epochs in (1, 12))
    assert more.val_loss < few.val_loss
    assert more.cost.startswith("12 epochs of 128 images")


def test_unknown_evaluators_and_settings_are_named():
    with pytest.raises(InputError, match="did you mean 'short'"):
        load_evaluator("shrot")
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        load_evaluator("short", epoch=3)
