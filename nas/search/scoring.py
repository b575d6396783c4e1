"""The scorers of a real search: they build an arch, load the data once in each process, and ask an evaluator."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.core.arch import Arch
from nas.core.errors import InputError, RunError
from nas.core.files import writing
from nas.evaluation.data import Data, load_data
from nas.evaluation.evaluators import Evaluator, Score
from nas.networks.building import build
from nas.search.workers import OnEpoch, checked


@dataclass(frozen=True)
class CandidateScorer:
    """Scores archs with an evaluator on a data set.

    Attributes:
        evaluator: scores them.
        dataset: as `load_data` takes it.
        input_shape: (C, H, W) of the images.
        data_seed: of the division into training and validation images, the same for all candidates.
        device: where candidates are trained.
        limit: most images of both together; None for all.
        prepared: what the evaluator prepared for the search.
        checkpoints: folder where trainings that can go on do so after their worker was lost; None for nowhere.
    """

    evaluator: Evaluator
    dataset: str
    input_shape: tuple[int, int, int]
    data_seed: int
    device: str
    limit: int | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Path | None = None

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch | None = None) -> Score:
        """Score an arch, given as JSON, in one thread: several workers of one thread train more than one of several."""
        torch.set_num_threads(1)
        network = Arch.from_json(arch)
        score: Callable[..., Score] = functools.partial(
            self.evaluator.score,
            functools.partial(build, network, seed=seed),
            data_of(self.dataset, self.input_shape, self.data_seed, self.limit),
            arch=network,
            prepared=self.prepared,
            seed=seed,
            device=self.device,
            on_epoch=on_epoch,
        )
        if self.checkpoints is None or not self.evaluator.resumes:
            return score()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError:  # a machine that does not see the run's folder
            return score()
        checkpoint = self.checkpoints / f"{network.id}-{seed}.pt"
        try:
            found = score(checkpoint=checkpoint)
        except InputError:
            if not checkpoint.is_file():
                raise
            checkpoint.unlink()  # it is damaged, or of another version
            found = score(checkpoint=checkpoint)
        checkpoint.unlink(missing_ok=True)
        return found


@functools.lru_cache(maxsize=1)
def data_of(dataset: str, input_shape: tuple[int, int, int], seed: int, limit: int | None) -> Data:
    """A data set, loaded once in a process."""
    return load_data(dataset, input_shape, seed=seed, limit=limit)


class Features:
    """Scores of archs for a sampler to learn from, each asked for once in the life of a run.

    They are computed where they are asked for, in one thread, so it matters for how many archs a sampler asks.

    Args:
        scorers: by name, one a feature.
        seed: of everything random in them.
        file: where they are kept, a line of JSON an arch.
    """

    def __init__(self, scorers: Mapping[str, CandidateScorer], seed: int, file: Path) -> None:
        self.names = tuple(scorers)
        self._scorers, self._seed, self._file = scorers, seed, file
        self._known: dict[str, list[float]] = {}
        for line in self._whole_lines():
            arch, values = json.loads(line)
            self._known[arch] = values

    def _whole_lines(self) -> list[bytes]:
        """Those of the file; what a killed process left of a line is cut off."""
        content = self._file.read_bytes() if self._file.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._file, len(whole))
        return whole.splitlines()

    def __call__(self, archs: Sequence[Arch]) -> np.ndarray:
        """The features of archs. Shape: (n, features)

        Raises:
            RunError: an arch has no such score, naming both.
        """
        for arch in archs:
            if arch.id not in self._known:
                self._keep(arch.id, [self._value(name, arch) for name in self.names])
        return np.array([self._known[arch.id] for arch in archs]).reshape(len(archs), len(self.names))

    def _value(self, name: str, arch: Arch) -> float:
        try:
            return checked(self._scorers[name](arch.to_json(), self._seed)).value
        except Exception as error:
            raise RunError(
                f"feature {name} of arch {arch.id}: {type(error).__name__}: {error}. Mend that evaluator, or begin a "
                "run without it in `features`"
            ) from error

    def _keep(self, arch: str, values: list[float]) -> None:
        with writing(self._file), self._file.open("ab") as file:
            file.write(json.dumps([arch, values]).encode() + b"\n")
        self._known[arch] = values
