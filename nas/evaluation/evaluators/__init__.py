"""How good is an architecture? One file an evaluator; the file is the registration.

Such a file ends in a constant `EVALUATOR`, a class derived from `Evaluator` whose fields are its settings.
Candidates are compared by validation loss: between runs it repeats better than accuracy does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from nas.core import plugins
from nas.core.errors import InputError, suggest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.evaluation.data import Data


@dataclass(frozen=True)
class Score:
    """An estimate of how good an architecture is.

    Attributes:
        val_loss: cross entropy on the validation split in nats, lower is better; what candidates are compared by.
        val_accuracy: share of right answers there, 0..1.
        seconds: wall-clock time that this score took.
        cost: what was spent on it, in words.
    """

    val_loss: float
    val_accuracy: float
    seconds: float
    cost: str


@dataclass(frozen=True)
class Evaluator(ABC):
    """Estimates the accuracy of architectures; its fields are its settings, plain data."""

    @abstractmethod
    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Score the model that `build_model` returns; its weights and everything else random are drawn from `seed`.

        Reads `data.train` and `data.val`, never `data.test`. One that trains calls `on_epoch` with the epochs done and
        those in all, for whoever waits.

        Raises:
            TrainingDiverged, OutOfMemory: this candidate has no score; others may.
        """


def names() -> list[str]:
    """All evaluators, sorted; see `nas.core.plugins` for where they are found."""
    return plugins.names("evaluators")


def load_evaluator(name: str, **settings: Any) -> Evaluator:
    """The evaluator `name` with these settings, its defaults for the rest.

    Raises:
        InputError: unknown evaluator or setting, naming the legal ones, or a file that cannot be loaded, naming it.
    """
    kind: type[Evaluator] = plugins.load("evaluators", name)
    legal = [field.name for field in fields(kind)]
    for setting in settings:
        if setting not in legal:
            raise InputError(suggest(f"setting of evaluator {name}", setting, legal))
    return kind(**settings)
