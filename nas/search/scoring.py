"""The scorer of a real search: builds an arch, loads the data once in each worker, and asks the evaluator."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from nas.core.arch import Arch
from nas.evaluation.data import Data, load_data
from nas.evaluation.evaluators import Evaluator, Score
from nas.networks.building import build
from nas.search.workers import OnEpoch


@dataclass(frozen=True)
class TrainingScorer:
    """Scores archs with an evaluator on a data set.

    Attributes:
        evaluator: estimates the accuracy.
        dataset: as `load_data` takes it.
        input_shape: (C, H, W) of the images.
        data_seed: of the division into training and validation images, the same for all candidates.
        device: where candidates are trained.
        limit: most images of both together; None for all.
    """

    evaluator: Evaluator
    dataset: str
    input_shape: tuple[int, int, int]
    data_seed: int
    device: str
    limit: int | None = None

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch | None = None) -> Score:
        """Score an arch, given as JSON, in one thread: several workers of one thread train more than one of several."""
        torch.set_num_threads(1)
        network = functools.partial(build, Arch.from_json(arch), seed=seed)
        data = _data(self.dataset, self.input_shape, self.data_seed, self.limit)
        return self.evaluator.score(network, data, seed=seed, device=self.device, on_epoch=on_epoch)


@functools.lru_cache(maxsize=1)
def _data(dataset: str, input_shape: tuple[int, int, int], seed: int, limit: int | None) -> Data:
    return load_data(dataset, input_shape, seed=seed, limit=limit)
