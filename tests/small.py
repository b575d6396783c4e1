"""A space small enough to list, and weights that show block errors; for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from nas.core.arch import Arch, calls_of
from nas.core.ops import one_of
from nas.core.space import Repeat, Space
from nas.core.tracing import macs_of_unit
from nas.networks.building import cost_of
from nas.tables.table import Entry, Header, NetworkEntry, Table, scope_of
from search_spaces.efficientformer import HEAD, MB3D, MB4D, Embedding, Stem

TINY = Space(
    name="efficientformer-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(Stem(convs=1), MB4D(2), width=16, depth=1),
        Repeat(Embedding(), MB4D(one_of(2, 4)), width=one_of(16, 32), depth=one_of(1, 2)),
        Repeat(Embedding(), MB4D(2), width=one_of(16, 32), depth=one_of(1, 2), tail=MB3D(2)),
        Repeat(Embedding(), MB4D(2), width=one_of(32, 48), depth=one_of(1, 2), tail=MB3D(2)),
    ),
    head=HEAD,
    tail=one_of(0, 1, 2, 3),
)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that matters, so that a block that is wrong shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            values = 1 + 0.3 * noise.abs() if "running_var" in name or tensor.ndim == 1 else 0.1 * noise
            tensor.copy_(values)
    return model


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near one, so that softmax and every norm matter to the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                positive = name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1)
                scaled = noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.3 * noise
                tensor.copy_(1 + 0.3 * noise.abs() if positive else scaled)
    return model


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The largest difference is small beside the largest value; NaN is not."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def fake_us(row: object) -> float:
    """A made-up but plausible latency of a row: a fixed part and a part for its multiply-adds."""
    return 3.0 + macs_of_unit(row) / 2e4  # type: ignore[arg-type]


def fake_table(space: Space, *, networks: int = 8, error: float = 0.0, seed: int = 0, **header: object) -> Table:
    """A table of made-up rows for a space; its networks take 1.1 times their sum, off by `error` up and down."""
    import random

    rng = random.Random(seed)
    values: dict[str, object] = {
        "device": "testbox",
        "cpu": "test cpu",
        "cores": 2,
        "runtime": "fake",
        "runtime_version": "1",
        "precision": "fp32",
        "threads": 1,
        "level": "block",
        "variant": "default",
        "spaces": (scope_of(space),),
        "method": "chains",
        "date": "2026-11-21",
        "protocol": "made up",
        "sentinel_us": 1000.0,
    }
    rows = Table(Header(**(values | header)), [Entry(row, fake_us(row), 0.1, 5) for row in space.rows()])  # type: ignore[arg-type]
    measured = []
    for number in range(networks):
        arch = space.sample(rng)
        us = 1.1 * rows.raw_us(calls_of(arch)) * (1 + error * (-1) ** number)
        measured.append(NetworkEntry(arch, us, 0.1, 3))
    unique = {network.arch: network for network in measured}
    return Table(rows.header, rows.entries, unique.values())


def write_truth(file: Path, archs: Sequence[Arch], band: int, accuracies: Callable[[int], Sequence[float]]) -> Path:
    """A made-up truth: the first `band` networks are its band; `accuracies` gives those of each place's trainings."""
    lines = [
        {"arch": json.loads(arch.to_json()), "set": "band" if place < band else "broad", "seed": seed}
        | {"test_accuracy": accuracy, "recipe": "small", "images": 100}
        for place, arch in enumerate(archs)
        for seed, accuracy in enumerate(accuracies(place))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def by_macs(count: int, space: Space = TINY) -> list[Arch]:
    """Networks of the space by increasing MACs, no two alike."""
    rng, found = random.Random(0), {}
    while len(found) < count:
        arch = space.sample(rng)
        found[cost_of(arch).macs] = arch
    return [found[macs] for macs in sorted(found)]
