"""One set of weights for the whole space, trained once; a candidate is scored with its slice of them.

See `nas.networks.supernet` for what is shared and `nas.evaluation.supernet` for its training.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat, PositiveInt

from nas.core.errors import InputError
from nas.evaluation.evaluators import Progress, Score
from nas.evaluation.evaluators._sliced import Sliced, stamp
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import Named

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from nas.core.arch import Arch
    from nas.core.space import Space
    from nas.evaluation.data import Data
    from nas.networks.supernet import Supernet


@dataclass(frozen=True)
class SupernetSlice(Sliced):
    """Train a supernet on networks drawn from those that fit; score a candidate with its slice.

    Its figures are not those of a trained network, and lie below them.

    Attributes:
        steps: of the training, one batch each.
        minutes: instead, how long it lasts, whatever the machine does in that time; then it cannot be repeated exactly.
        recipe: of the training, by name or by its fields; epochs are not counted.
        children: networks drawn for each step.
        even: whether `kinds` of a stage are drawn equally often, or `networks`, of which a hybrid space has more of
            some kinds: after 1,000 steps on hybrid-32 rare ones had hardly been trained, and the ranks of 31 networks
            were those of their kinds (Kendall -.16); after 400 steps even over kinds, 26 of them had .57.
        sandwich: train the largest and the smallest network that fits at every step, too; for GPUs, since most of a
            step goes into the largest one then.
        distill: let all others learn the answers of the largest instead of labels; with `sandwich`.
        processes: that train together on this machine, on CUDA one a GPU.
    """

    steps: PositiveInt = 3000
    minutes: PositiveFloat | None = None
    recipe: Named = field(default_factory=Recipe)
    children: PositiveInt = 1
    even: Literal["kinds", "networks"] = "kinds"
    sandwich: bool = False
    distill: bool = False
    processes: PositiveInt = 1

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
        from nas.core.tracing import macs_of_unit
        from nas.evaluation.supernet import Plan, drawn_by, even_over_kinds, train_supernet, train_together
        from nas.networks.supernet import Supernet

        lattice = feasible.lattice

        def draw(rng: np.random.Generator, count: int) -> list[Arch]:
            paths = even_over_kinds(feasible, rng, count) if self.even == "kinds" else feasible.draw(rng, count)
            return [lattice.arch(tuple(map(int, path))) for path in paths]

        ends: list[Arch] = []
        if self.sandwich:
            macs = lattice.costs(macs_of_unit)
            ends = [lattice.arch(path) for costs in (macs, [-cost for cost in macs]) for path in feasible.best(costs)]
        plan = Plan(self.recipe, self.steps, self.minutes, self.children, tuple(ends), self.distill)
        given = Supernet.fresh(space, seed), drawn_by(draw, plan, seed), data, plan, folder
        options: dict[str, Any] = {"seed": seed, "device": device, "threads": threads, "progress": progress}
        return (
            train_supernet(*given, **options)
            if self.processes == 1
            else train_together(self.processes, *given, **options)
        )

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
    ) -> Score:
        if "hash" not in prepared:
            raise InputError("supernet: nothing was prepared for this score; it takes a supernet that `prepare` trains")
        start = time.perf_counter()
        file = Path(prepared["file"])
        supernet = _loaded(file, prepared["hash"], *stamp(file))
        model = build_model()
        model.load_state_dict(supernet.slices(arch), strict=False)
        metrics = self.reached(model, data, device)
        cost = f"slice of supernet {prepared['hash'][:12]} ({prepared['steps']} steps), {self.work(data)}"
        seconds = time.perf_counter() - start
        return Score(self.compared(metrics), f"supernet_{self.measure}", seconds=seconds, cost=cost)


@functools.lru_cache(maxsize=2)
def _loaded(file: Path, expected: str, *stamp: int) -> Supernet:
    """A supernet, read and checked once in a process as long as its file stays the same."""
    from nas.evaluation.supernet import read_supernet

    return read_supernet(file, expected).requires_grad_(False)


EVALUATOR = SupernetSlice
