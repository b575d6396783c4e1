"""The loss of a training: labels, a teacher and keep ratios, as far as the recipe and the model have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from nas.core.errors import InputError
from nas.evaluation.losses import hard_loss, ratio_loss, soft_loss, token_logits_loss, token_loss
from nas.evaluation.metrics import check_classes
from nas.evaluation.network import block_modules
from nas.evaluation.optimization import prediction_modules
from nas.evaluation.recipe import Recipe
from nas.evaluation.teacher import Answer, Teacher
from search_spaces.dynamicvit import Prune


class Criterion:
    """The loss of a batch, from all streams of a network.

    Of two heads both learn the labels; where a teacher answers, the first learns the labels and the last the answer
    (arXiv:2012.12877, sec. 3). One head learns both.

    Args:
        recipe: the weights.
        model: whose outputs are judged.
        classes: of the data.
        teacher: where the recipe distils.
        device: of the training.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, classes: int, teacher: Teacher | None, device: torch.device
    ) -> None:
        self.recipe, self.classes = recipe, classes
        self.teacher = teacher.to(device) if teacher is not None and recipe.distills else None
        mixes = bool(recipe.mixup or recipe.cutmix)  # then the smoothing is in the targets
        self.labels = SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        keeps = [cast(Prune, part.block).keep for part in prediction_modules(model)]
        self.ratios = torch.tensor([math.prod(keep) / 100 ** len(keep) for keep in keeps], device=device)
        blocks = block_modules(model)
        self.classify = getattr(blocks[-1].body, "token_logits", None) if blocks else None

    def __call__(self, streams: Mapping[str, Any], images: Tensor, targets: Tensor) -> Tensor:
        """The loss, from streams by name, the images (N, C, H, W) they came from, and classes (N,) or chances."""
        logits = streams["x"]
        heads = [each.float() for each in (logits if isinstance(logits, tuple) else (logits,))]
        for head in heads:
            check_classes(head, self.classes)
        recipe = self.recipe
        answers = self.teacher is not None and (recipe.distill_hard or recipe.distill_soft)
        loss = torch.stack([self.labels(head, targets) for head in (heads[:1] if answers else heads)]).mean()
        if self.teacher is not None:
            answer = self.teacher(images, tokens=recipe.distill_tokens > 0)
            if recipe.distill_hard:
                loss = (1 - recipe.distill_hard) * loss + recipe.distill_hard * hard_loss(heads[-1], answer.logits)
            if recipe.distill_soft:
                loss = loss + recipe.distill_soft * soft_loss(heads[-1], answer.logits, recipe.temperature)
            if recipe.distill_tokens:
                loss = loss + recipe.distill_tokens * self._tokens(streams, answer)
        if recipe.keep == "draw" and recipe.ratio and len(self.ratios):
            loss = loss + recipe.ratio * ratio_loss(streams["kept"], self.ratios)
        return loss

    def _tokens(self, streams: Mapping[str, Any], answer: Answer) -> Tensor:
        """The distance from the teacher's tokens: between logits of tokens where both classify them (LV-ViT)."""
        if "tokens" not in streams or answer.tokens is None:
            raise InputError("distill_tokens: the student gives no tokens; it is for DynamicViT")
        kept, classify = streams["kept"], self.classify
        seen = kept[:, -1].detach() if kept.shape[1] else torch.ones_like(streams["tokens"][:, 1:, 0])
        if classify is not None and answer.token_logits is not None:
            return token_logits_loss(classify(streams["tokens"])[:, 1:].float(), answer.token_logits, seen)
        ours = streams["tokens"][:, 1:].float()
        if ours.shape != answer.tokens.shape:
            raise InputError(
                f"distill_tokens: the student has tokens {tuple(ours.shape)}, the teacher "
                f"{tuple(answer.tokens.shape)}; take the host of the student as teacher"
            )
        return token_loss(ours, answer.tokens, seen)
