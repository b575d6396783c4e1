"""The recipes of the papers, against the figures of their sheets."""

import pytest
from torch import nn

from nas.core.errors import InputError
from nas.evaluation.optimization import averaged
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import RECIPES, read_recipe

SHEETS = {
    "efficientformer-300": {
        "epochs": 300, "batch_size": 1024, "lr": 1e-3, "weight_decay": 0.025, "clip": 0.01, "clip_mode": "agc",
        "rand_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25,
        "label_smoothing": 0.1, "distill_hard": 0.5, "drop_path": 0.0,
    },
    "nextvit-300": {
        "epochs": 300, "batch_size": 2048, "lr": 5e-4 * 2048 / 512, "weight_decay": 0.1, "clip": 5.0,
        "clip_mode": "norm", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "label_smoothing": 0.1,
        "drop_path": 0.1,
    },
    "mobileformer-450": {
        "epochs": 450, "batch_size": 1024, "lr": 1e-3, "weight_decay": 0.2, "dropout": 0.3, "mixup": 0.2,
        "cutmix": 0.0, "rand_augment": "rand-m9-mstd0.5", "random_erasing": 0.2, "drop_path": 0.0,
    },
    "mobilevit-300": {
        "epochs": 300, "batch_size": 1024, "lr": 2e-3, "final_lr": 0.1, "weight_decay": 0.01, "ema_decay": 0.9995,
        "label_smoothing": 0.1, "multi_scale": (160, 192, 256, 288, 320), "rand_augment": "", "mixup": 0.0,
        "cutmix": 0.0, "random_erasing": 0.0, "dropout": 0.1, "branch_dropout": 0.1,
    },
    "dynamicvit-30": {
        "epochs": 30, "batch_size": 1024, "lr": 1e-3, "host_lr": 0.01, "host_frozen": 5, "weight_decay": 0.05,
        "ema_decay": 0.9999, "start": "teacher", "ratio": 2.0, "distill_soft": 0.5, "distill_tokens": 0.5,
        "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "label_smoothing": 0.1,
    },
    "small": {
        "epochs": 6, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.05, "warmup_fraction": 0.15,
        "label_smoothing": 0.1, "flip": True, "shift": 0,
    },
}  # fmt: skip
SHEETS["dynamicvit-b-30"] = SHEETS["dynamicvit-30"] | {"ratio": 5.0, "drop_path": 0.2}
WARM_UP_EPOCHS = {"efficientformer-300": 5, "nextvit-300": 20, "mobilevit-300": 3000 / 1251, "dynamicvit-30": 5}
WARM_UP_EPOCHS["dynamicvit-b-30"] = 5


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_named_recipe_has_the_figures_of_its_sheet(name):
    recipe = read_recipe({}, name)
    assert {field: getattr(recipe, field) for field in SHEETS[name]} == SHEETS[name]
    if name in WARM_UP_EPOCHS:
        assert recipe.warmup_fraction * recipe.epochs == pytest.approx(WARM_UP_EPOCHS[name])


def test_the_cosine_of_dynamicvit_ends_at_a_millionth():
    recipe = read_recipe({}, "dynamicvit-30")
    assert recipe.lr * recipe.final_lr == pytest.approx(1e-6)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.ema_decay is not None])
def test_the_average_reaches_the_decay_of_its_recipe_in_the_first_half_of_the_training(name):
    recipe = RECIPES[name]
    steps = 1_281_167 // recipe.batch_size * recipe.epochs  # ImageNet
    assert averaged(nn.Linear(1, 1), recipe.ema_decay).get_decay(steps // 2) == recipe.ema_decay


def test_until_then_the_average_is_the_mean_of_all_steps():
    model = nn.Linear(1, 1)
    average = averaged(model, 0.9999)
    for step in range(1, 8):
        nn.init.constant_(model.weight, step**2)
        average.update(model, step=step)
        assert average.module.weight.item() == pytest.approx(sum(n**2 for n in range(1, step + 1)) / step)


def test_single_fields_go_over_those_of_the_recipe():
    recipe = read_recipe({"epochs": 2, "multi_scale": [32, 64]}, "mobilevit-300")
    assert (recipe.epochs, recipe.multi_scale, recipe.lr) == (2, (32, 64), 2e-3)
    assert read_recipe({"lr": 1.0}) == Recipe(lr=1.0)


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({}, "dynamicvit30", "unknown recipe 'dynamicvit30', did you mean 'dynamicvit-30'"),
        ({"drop_pat": 1}, "small", "unknown recipe field 'drop_pat', did you mean 'drop_path'"),
        ({"epochs": 0, "amp": "fp8"}, None, r"epochs: .*, got 0; amp: .*, got 'fp8'"),
        ({"multi_scale": [160, 0, -32]}, None, r"multi_scale\[1\]: .*, got 0; multi_scale\[2\]: .*, got -32"),
        ({"multi_scale": [160, 32.5]}, None, r"multi_scale\[1\]: .*, got 32.5"),
        ({"rand_augment": "m9"}, None, "rand_augment: .*got 'm9'"),
    ],
)
def test_what_no_recipe_has_is_named(fields, name, message):
    with pytest.raises(InputError, match=message):
        read_recipe(fields, name)
