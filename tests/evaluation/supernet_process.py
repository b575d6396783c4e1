"""A small training of a supernet, and a process of its own for it: `python -m tests.evaluation.supernet_process`."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import torch

from nas.evaluation.data import load_data
from nas.evaluation.recipe import Recipe
from nas.evaluation.supernet import Plan, train_supernet
from nas.networks.supernet import Supernet
from tests.small import TINY

STEPS = 12
RECIPE = Recipe(batch_size=16, amp="none", rand_augment="rand-m9-mstd0.5-inc1")


def draw(rng, count):
    """Networks of the space, evenly drawn from its choices."""
    own = random.Random(int(rng.integers(1 << 30)))
    return [TINY.sample(own) for _ in range(count)]


def run(folder: Path, plan: Plan = Plan(RECIPE, STEPS), **options: Any) -> dict[str, Any]:
    """Train, or go on; a checkpoint after each step."""
    torch.set_num_threads(1)
    data = load_data("digits", TINY.input_shape, limit=80)
    supernet = Supernet.fresh(TINY, seed=3)
    return train_supernet(supernet, draw, data, plan, folder, seed=3, **{"checkpoint_seconds": 0.0, **options})


def main() -> None:
    """Train into the folder named, slower and slower where `slow` is said: whoever kills it has the time to."""
    folder, *words = sys.argv[1:]
    counted = itertools.count(1)

    def told(*args: Any) -> None:
        print("step", flush=True)
        if "slow" in words and next(counted) == 5:
            sys.stdin.readline()  # never comes

    run(Path(folder), progress=told)


if __name__ == "__main__":
    main()
