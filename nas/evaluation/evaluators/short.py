"""Short training with a schedule of its own that anneals to the end, which ranks better than a long one cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from nas.evaluation.evaluators import LOSS, Evaluator, Score
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import Named

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from nas.core.arch import Arch
    from nas.evaluation.data import Data
    from nas.evaluation.training import Epoch


@dataclass(frozen=True)
class ShortTraining(Evaluator):
    """Train a fresh model for a few epochs and validate it once, at the end.

    Attributes:
        epochs: replaces that of the recipe.
        recipe: how it is trained, by name or by its fields; small batches, because few epochs need many steps.
    """

    trains: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    epochs: PositiveInt = 4
    recipe: Named = field(default_factory=lambda: Recipe(batch_size=32))

    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        arch: Arch | None = None,
        prepared: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Score:
        from nas.evaluation.devices import seeded
        from nas.evaluation.training import train

        recipe = self.recipe.model_copy(update={"epochs": self.epochs, "validate_every": self.epochs})
        with seeded(seed):
            model = build_model()

        def tell(epoch: Epoch) -> None:
            if on_epoch is not None:
                on_epoch(int(epoch["epoch"]), self.epochs)

        result = train(model, data, recipe, device=device, seed=seed, checkpoint=checkpoint, on_epoch=tell)
        cost = f"{self.epochs} epochs of {len(data.train)} images, {result.precision} on {result.device}"
        reached = {"val_loss": result.val_loss, "val_accuracy": result.val_accuracy}
        return Score(result.val_loss, LOSS, seconds=result.seconds, cost=cost, **reached)


EVALUATOR = ShortTraining
