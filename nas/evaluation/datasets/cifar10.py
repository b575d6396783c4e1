"""CIFAR-10: 60,000 colour photographs, 32x32, ten classes."""

from __future__ import annotations

from torchvision.datasets import CIFAR10

from nas.evaluation.data import Data, DataRequest
from nas.evaluation.datasets._cifar import load_cifar


def load(request: DataRequest) -> Data:
    return load_cifar(request, CIFAR10, classes=10)


DATASET = load
