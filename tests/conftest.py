"""What all tests share: seeded randomness and one thread."""

from __future__ import annotations

import random

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def rng() -> random.Random:
    """A fresh, seeded source of randomness."""
    return random.Random(0)
