"""A small training of a supernet, and a process of its own for it: `python -m tests.evaluation.supernet_process`."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import torch

import search_spaces
from nas.core.arch import Arch
from nas.core.space import Space
from nas.evaluation.data import load_data
from nas.evaluation.recipe import Recipe
from nas.evaluation.supernet import Plan, drawn_by, train_supernet, train_together
from nas.networks.supernet import Supernet
from tests.small import TINY

STEPS = 12
RECIPE = Recipe(batch_size=16, amp="none", rand_augment="rand-m9-mstd0.5-inc1")
PLAN = Plan(RECIPE, STEPS)
PLAIN = Plan(Recipe(batch_size=16, amp="none", optimizer="sgd", lr=0.05, flip=False), 4, children=2)


def space_of(plan: Plan) -> Space:
    """One without batch norms for a plan in which nothing is drawn: what two processes find compares with one then."""
    return search_spaces.load("deit-32") if plan is PLAIN else TINY


def run(folder: Path, plan: Plan = PLAN, processes: int = 1, **options: Any) -> dict[str, Any]:
    """Train, or go on; a checkpoint after each step, but not in several processes."""
    torch.set_num_threads(1)
    space = space_of(plan)
    data = load_data("digits", space.input_shape, limit=80)

    def draw(rng: Any, count: int) -> list[Arch]:
        own = random.Random(int(rng.integers(1 << 30)))
        return [space.sample(own) for _ in range(count)]

    given = Supernet.fresh(space, seed=3), drawn_by(draw, plan, 3), data, plan, folder
    if processes > 1:
        return train_together(processes, *given, seed=3, **options)
    return train_supernet(*given, seed=3, **{"checkpoint_seconds": 0.0, **options})


def main() -> None:
    """Train into the folder named; waits in step 5 for whoever kills it."""
    counted = itertools.count(1)

    def told(*args: Any) -> None:
        print("step", flush=True)
        if next(counted) == 5:
            sys.stdin.readline()  # never comes

    run(Path(sys.argv[1]), progress=told)


if __name__ == "__main__":
    main()
