"""The scorer of a real search: builds an arch, loads the data once in each worker, and asks the evaluator."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from nas.core.arch import Arch
from nas.evaluation.data import Data, load_data
from nas.evaluation.evaluators import Evaluator, Score
from nas.networks.building import build


@dataclass(frozen=True)
class TrainingScorer:
    """Scores archs with an evaluator on a data set.

    Attributes:
        evaluator: estimates the accuracy.
        dataset: as `load_data` takes it.
        input_shape: (C, H, W) of the images.
        data_seed: of the division into training and validation images, the same for all candidates.
        device: where candidates are trained.
    """

    evaluator: Evaluator
    dataset: str
    input_shape: tuple[int, int, int]
    data_seed: int
    device: str

    def __call__(self, arch: str, seed: int) -> Score:
        """Score an arch, given as JSON, in one thread: several workers of one thread train more than one of several."""
        torch.set_num_threads(1)
        network = functools.partial(build, Arch.from_json(arch), seed=seed)
        data = _data(self.dataset, self.input_shape, self.data_seed)
        return self.evaluator.score(network, data, seed=seed, device=self.device)


@functools.lru_cache(maxsize=1)
def _data(dataset: str, input_shape: tuple[int, int, int], seed: int) -> Data:
    return load_data(dataset, input_shape, seed=seed)
