"""The recipes of the papers, by name, and how a recipe is read from a name and single fields.

The papers' recipes train on ImageNet at 1,024 or 2,048 images a step; a machine with less memory computes a step in
parts (`accumulate`). What a paper does not tell follows DeiT's (arXiv:2012.12877): smoothing .1, five epochs of
warm-up, the final learning rate a hundredth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from nas.core.errors import InputError, suggest
from nas.evaluation.recipe import Recipe

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
DEIT: dict[str, Any] = {
    "batch_size": 1024,
    "epochs": 300,
    "lr": 1e-3,
    "warmup_fraction": 5 / 300,
    "rand_augment": RAND_AUGMENT,
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}
# arXiv:2106.02034: from the weights of its host, which is the teacher too
DYNAMICVIT: dict[str, Any] = DEIT | {
    "epochs": 30,
    "warmup_fraction": 5 / 30,
    "final_lr": 1e-3,
    "weight_decay": 0.05,
    "host_lr": 0.01,
    "host_frozen": 5,
    "start": "teacher",
    "keep": "draw",
    "ratio": 2.0,
    "distill_soft": 0.5,
    "distill_tokens": 0.5,
    "ema_decay": 0.9999,
}

RECIPES: Mapping[str, Recipe] = {
    # arXiv:2206.01191: hard distillation with two heads, the teacher is timm's regnety_160.deit_in1k
    "efficientformer-300": Recipe(
        **DEIT, weight_decay=0.025, clip=0.01, clip_mode="agc", ema_decay=0.99996, distill_hard=0.5
    ),
    # arXiv:2207.05501: 8 GPUs of 256 images; drop_path 0.2 for B and L
    "nextvit-300": Recipe(
        **DEIT | {"batch_size": 2048, "lr": 2e-3, "warmup_fraction": 20 / 300},
        weight_decay=0.1,
        drop_path=0.1,
        clip=5.0,
    ),
    # arXiv:2108.05895, as for 508M and 294M; smaller models have less of lr, weight_decay and dropout
    "mobileformer-450": Recipe(
        **DEIT
        | {"epochs": 450, "warmup_fraction": 5 / 450, "rand_augment": "rand-m9-mstd0.5"}
        | {"random_erasing": 0.2, "mixup": 0.2, "cutmix": 0.0},
        weight_decay=0.2,
        dropout=0.3,
    ),
    # arXiv:2110.02178: crops and mirrors only; 3,000 steps of warm-up in 300 epochs of 1,251; branch_dropout 0 for v2
    "mobilevit-300": Recipe(
        epochs=300,
        batch_size=1024,
        lr=2e-3,
        final_lr=0.1,
        warmup_fraction=3000 / (300 * 1251),
        weight_decay=0.01,
        ema_decay=0.9995,
        dropout=0.1,
        branch_dropout=0.1,
        multi_scale=(160, 192, 256, 288, 320),
    ),
    "dynamicvit-30": Recipe(**DYNAMICVIT),
    # its code's for DeiT-B
    "dynamicvit-b-30": Recipe(**DYNAMICVIT | {"ratio": 5.0, "drop_path": 0.2}),
    # images of 28 to 32 pixels on a CPU: no crops, small batches; 12,000 images in less than a minute
    "small": Recipe(epochs=6, batch_size=64),
}


def read_recipe(fields: Mapping[str, Any], name: str | None = None) -> Recipe:
    """A recipe with these fields; the rest is that of the recipe of this name, or the defaults.

    Raises:
        InputError: an unknown name, or naming every field that is unknown or has a bad value.
    """
    if name is not None and name not in RECIPES:
        raise InputError(suggest("recipe", name, RECIPES))
    for field in fields:
        if field not in Recipe.model_fields:
            raise InputError(suggest("recipe field", field, Recipe.model_fields))
    base = RECIPES[name].model_dump(exclude_unset=True) if name is not None else {}
    try:
        return Recipe(**base | dict(fields))
    except ValidationError as error:
        problems = [f"{_place(item['loc'])}: {item['msg']}, got {item['input']!r}" for item in error.errors()]
        raise InputError(f"recipe: {'; '.join(problems)}") from error


def _place(loc: tuple[int | str, ...]) -> str:
    """`multi_scale[1]` for the second of its sides."""
    return "".join(f"[{part}]" if isinstance(part, int) else part for part in loc)


def _named(recipe: Any) -> Any:
    return read_recipe({}, recipe) if isinstance(recipe, str) else recipe


Named = Annotated[Recipe, BeforeValidator(_named)]
"""A recipe among the settings of an evaluator, by name or by its fields."""
