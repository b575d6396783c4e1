"""CIFAR-100: 60,000 colour photographs, 32x32, a hundred classes."""

from __future__ import annotations

from torchvision.datasets import CIFAR100

from nas.evaluation.data import Data, DataRequest
from nas.evaluation.datasets._cifar import load_cifar


def load(request: DataRequest) -> Data:
    return load_cifar(request, CIFAR100, classes=100)


DATASET = load
