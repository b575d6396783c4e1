"""Short training with a schedule of its own that anneals to the end, which ranks better than a long one cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from nas.evaluation.data import Data
from nas.evaluation.devices import seeded
from nas.evaluation.evaluators import Evaluator, Score
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import Epoch, train


@dataclass(frozen=True)
class ShortTraining(Evaluator):
    """Train a fresh model for a few epochs and validate it once, at the end.

    Attributes:
        epochs: replaces that of the recipe.
        recipe: how it is trained; small batches, because few epochs need many steps.
    """

    epochs: int = 5
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=32))

    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Score:
        recipe = self.recipe.model_copy(update={"epochs": self.epochs, "validate_every": self.epochs})
        with seeded(seed):
            model = build_model()

        def tell(epoch: Epoch) -> None:
            if on_epoch is not None:
                on_epoch(int(epoch["epoch"]), self.epochs)

        result = train(model, data, recipe, device=device, seed=seed, on_epoch=tell)
        cost = f"{self.epochs} epochs of {len(data.train)} images, {result.precision} on {result.device}"
        return Score(result.val_loss, result.val_accuracy, result.seconds, cost)


EVALUATOR = ShortTraining
