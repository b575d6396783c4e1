"""What moves the weights: parameter groups, timm's optimizers and schedule, clipping."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn

from nas.core.ops import Leaf
from nas.evaluation.network import block_modules
from nas.evaluation.recipe import Recipe

FUSED_OPTIMIZERS = {"adam", "adamw", "sgd"}


def make_optimizer(model: nn.Module, recipe: Recipe, *, in_parts: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer; vectors are not decayed. Where a step moves weights only `in_parts`, those of the fused
    ones that need a gradient of all are not.

    With a `host_lr` of its own, some ops of the host stay as they are (`Op.fixed_in_host`). With that or `host_frozen`,
    the host (`Block.in_host`) is in groups marked `host`, whose rates `Schedule` sets apart.
    """
    groups = _host_apart if recipe.host_lr != 1 or recipe.host_frozen else param_groups_weight_decay
    if recipe.host_lr != 1:
        for part in model.modules():
            if isinstance(part, Leaf) and part.op.fixed_in_host:
                part.requires_grad_(False)
    fuses = recipe.optimizer in FUSED_OPTIMIZERS - ({"sgd"} if in_parts else set())
    fused = {"fused": True} if fuses else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        param_group_fn=lambda each: groups(each, recipe.weight_decay),
        **fused,
    )
    return optimizer


def _host_apart(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """timm's two groups, decayed and not, each divided into the host and what is added to it."""
    added = {id(each) for part in block_modules(model) if not part.block.in_host for each in part.parameters()}
    found = []
    for group in param_groups_weight_decay(model, weight_decay):
        for host in (False, True):
            chosen = [each for each in group["params"] if (id(each) not in added) is host]
            found.append(group | {"params": chosen, "host": host})
    return [group for group in found if group["params"]]


class Schedule:
    """Linear warm-up, then half a cosine, by steps; rates of the host are a share of it, and 0 in its frozen epochs.

    Args:
        optimizer: whose rates are set.
        recipe: of the training.
        steps: of an epoch; where epochs differ in that, time runs in equal parts of each.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> None:
        self.optimizer, self.recipe, self.steps = optimizer, recipe, steps
        lowest, all_steps = recipe.lr * recipe.final_lr, steps * recipe.epochs
        self.cosine = CosineLRScheduler(
            optimizer,
            t_initial=all_steps,
            lr_min=lowest,
            warmup_t=int(all_steps * recipe.warmup_fraction + 1e-6),
            warmup_lr_init=lowest,
            t_in_epochs=False,
        )

    def set(self, epoch: int, step: int, steps: int) -> None:
        """Set the rates for a step, from 0, of the `steps` that an epoch, from 1, has."""
        self.cosine.step_update((epoch - 1) * self.steps + step * self.steps / steps)
        for group in self.optimizer.param_groups:
            if group.get("host"):
                group["lr"] *= 0.0 if epoch <= self.recipe.host_frozen else self.recipe.host_lr


def averaged(model: nn.Module, decay: float) -> ModelEmaV3:
    """Averaged weights: until the decay is reached, all steps count the same, (n - 1) / n of the average at step n.

    With timm's default power of 2/3 the decay .9999 would be reached after a million steps, which is more than a
    recipe of a paper has; here it is after 1 / (1 - decay).
    """
    return ModelEmaV3(model, decay, use_warmup=True, warmup_power=1.0)


def clip(model: nn.Module, recipe: Recipe) -> None:
    """Limit the gradients as the recipe says; agc spares the last layer (arXiv:2102.06171, sec. 4.1)."""
    if recipe.clip is not None:
        dispatch_clip_grad(
            model_parameters(model, exclude_head=recipe.clip_mode == "agc"), recipe.clip, recipe.clip_mode
        )
