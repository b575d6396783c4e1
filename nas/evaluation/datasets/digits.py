"""Handwritten digits of scikit-learn: 1,797 real images, 8x8, 17 shades of grey, ten classes, part of that package.

The test half of "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, Alpaydin and Kaynak 1998.
A fifth of it, always the same images, is our test split. So little data shows that a search works, and ranks weakly.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from nas.core.errors import InputError
from nas.evaluation.data import Data, DataRequest, in_memory, stratified_order

TEST_IMAGES = 360
TEST_SEED = 0


def load(request: DataRequest) -> Data:
    if request.path is not None:
        raise InputError(f"dataset digits comes with scikit-learn and takes no folder, but got {str(request.path)!r}")
    values, labels = load_digits(return_X_y=True)  # shades 0..16
    images = torch.from_numpy(np.round(values * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    order = stratified_order(targets, TEST_SEED)
    test, rest = order[:TEST_IMAGES], order[TEST_IMAGES:]
    parts = [(images[chosen], targets[chosen]) for chosen in (rest, test)]
    return in_memory(request, 10, *parts, mirrors=False, class_names=[str(digit) for digit in range(10)])


DATASET = load
