"""How fast archs are priced, listed and sampled; every figure beside its goal.

Uses made-up row times: pricing does not depend on them. Run: python benchmarks/pricing.py [SPACE]
"""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
from made_up import made_up_table

import search_spaces
from nas.core.arch import calls_of


def timed(label: str, goal: str, start: float, count: int | None = None) -> None:
    """Print seconds since `start`, or a rate where `count` things were done."""
    took = time.perf_counter() - start
    figure = f"{took:.3f} s" if count is None else f"{count / took:,.0f} per second"
    print(f"{label}: {figure} (goal {goal})")


def main(name: str, count: int = 2000) -> None:
    """Measure and print."""
    space = search_spaces.load(name)
    start = time.perf_counter()
    rows = space.rows()
    timed(f"list {len(rows)} rows of {name}, first time", "under 5 s", start)
    table = made_up_table(space)
    rng = random.Random(0)
    start = time.perf_counter()
    archs = [space.sample(rng) for _ in range(count)]
    timed("sample archs", "over 1,000 per second", start, len(archs))
    start = time.perf_counter()
    one_by_one = [table.price(calls_of(arch)).total_us for arch in archs]
    timed("price one by one", "over 5,000 per second", start, len(archs))
    matrix = np.tile(space.encode(archs), (100, 1))
    start = time.perf_counter()
    many = table.price_matrix(space, matrix)
    timed("price a matrix of row numbers", "over 1,000,000 per second", start, len(matrix))
    np.testing.assert_allclose(many[: len(archs)], one_by_one)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nas", "--help"], capture_output=True, check=True)
    timed("nas --help", "under 0.3 s", start)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "efficientformer")
