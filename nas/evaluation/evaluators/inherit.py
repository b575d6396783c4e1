"""A candidate starts from slices of a trained larger network instead of from nothing.

See `nas.networks.weights` for what a slice is.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.evaluation.evaluators import LOSS, Progress, Score
from nas.evaluation.evaluators._sliced import Sliced, stamp
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import Named

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.core.space import Space
    from nas.evaluation.data import Data
    from nas.evaluation.training import Epoch
    from nas.networks.building import Network


@dataclass(frozen=True)
class Inherited(Sliced):
    """Fill a candidate with slices of trained weights, train it a little where asked to, and validate it.

    Blocks that the larger network lacks start fresh; how many do is told with each score. Without a training, figures
    are not those of a trained network, and `by` says which one counts; with one, candidates are compared by the loss.

    Attributes:
        weights: of the larger network: a file, the folder of a run, `timm` or `timm:TAG`; see `load_pretrained`.
        arch: its architecture, a preset or a file; by default the one that lies beside the weights.
        fresh: whether blocks may start fresh; otherwise such a candidate has no score.
        epochs: of training, each candidate; 0 for none.
        recipe: of that, by name or by its fields.
    """

    resumes: ClassVar[bool] = True

    _: KW_ONLY
    weights: str
    arch: str | None = None
    fresh: bool = True
    epochs: NonNegativeInt = 0
    recipe: Named = field(default_factory=lambda: Recipe(batch_size=32, lr=1e-3))

    @property
    def trains(self) -> bool:  # type: ignore[override]  # here a setting says so
        """Whether it trains what it scores."""
        return self.epochs > 0

    def prepare(
        self,
        space: Space,
        feasible: Any,
        data: Data,
        folder: Path,
        *,
        seed: int = 0,
        device: str = "cpu",
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        from nas.core.files import hash_of
        from nas.evaluation.checkpoint import write_weights
        from nas.evaluation.pretrained import arch_of, load_pretrained
        from nas.networks.building import build

        if not self.weights:
            raise InputError(
                "inherit: whose weights? Name a file or a run's folder: {inherit: {weights: runs/train-x}}"
            )
        arch = replace(arch_of(self.weights, self.arch), input_shape=space.input_shape)
        large, file = build(arch), folder / "weights.pt"
        loaded = load_pretrained(large, self.weights)
        write_weights(file, large)  # whatever becomes of the original
        found = {"file": str(file.resolve()), "hash": hash_of(file), "arch": arch.to_json()}
        return found | {"source": Path(loaded.source).name, "id": loaded.id, "notes": list(loaded.notes)}

    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        arch: Arch,
        prepared: Mapping[str, Any],
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Score:
        from nas.evaluation.devices import seeded
        from nas.evaluation.training import train
        from nas.networks.weights import inherit

        start = time.perf_counter()
        if "hash" not in prepared:
            raise InputError("inherit: nothing was prepared for this score; `prepare` finds the weights")
        file = Path(prepared["file"])
        large = _loaded(file, prepared["arch"], prepared["hash"], *stamp(file))
        with seeded(seed):
            model: Any = build_model()
        fresh = inherit(model, large)
        blocks = sum(map(len, arch.stages))
        if fresh and not self.fresh:
            raise InputError(
                f"{prepared['source']}: {len(fresh)} of {blocks} blocks of arch {arch.id} find no weights there, first "
                f"{fresh[0]}; set fresh: true to let them start fresh"
            )
        cost = f"{blocks - len(fresh)} of {blocks} blocks from {prepared['source']} ({prepared['id']})"
        if not self.epochs:
            metrics = self.reached(model, data, device)
            cost += f", no training, {self.work(data)}"
            seconds = time.perf_counter() - start
            return Score(self.compared(metrics), f"inherited_{self.measure}", seconds=seconds, cost=cost)

        def tell(epoch: Epoch) -> None:
            if on_epoch is not None:
                on_epoch(int(epoch["epoch"]), self.epochs)

        recipe = self.recipe.model_copy(update={"epochs": self.epochs, "validate_every": self.epochs})
        result = train(model, data, recipe, device=device, seed=seed, on_epoch=tell, checkpoint=checkpoint)
        cost += f", {self.epochs} epochs of {len(data.train)} images, {result.precision} on {result.device}"
        reached = {"val_loss": result.val_loss, "val_accuracy": result.val_accuracy}
        return Score(result.val_loss, LOSS, seconds=time.perf_counter() - start, cost=cost, **reached)


@functools.lru_cache(maxsize=2)
def _loaded(file: Path, arch: str, expected: str, *stamp: int) -> Network:
    """A trained network, read and checked once in a process as long as its file stays the same."""
    from nas.core.files import hash_of
    from nas.evaluation.checkpoint import read_weights
    from nas.networks.building import build, load_weights

    if not file.is_file() or hash_of(file) != expected:
        raise InputError(f"{file}: gone, or not the weights that were there before; put them back")
    network = build(Arch.from_json(arch))
    load_weights(network, read_weights(file), str(file))
    return network


EVALUATOR = Inherited
