"""How networks would rank after a training, learned from some that were trained: what `guided` searches by, by itself.

    predictor = Predictor(trained, losses, scores_of_trained)
    expected = predictor.losses_of(others, scores_of_others)

The model is that of the sampler, `nas.search.surrogate`: it sees the choices, the blocks and the size of a network,
and beside them whatever scores are given, such as those of `naswot`. `Prior` is such a model of trainings that there
are already: what it expects of a network is a score like any other, which costs no training.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nas.core import parts
from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.space import Space
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.evaluation import truth
from nas.networks.building import with_classes
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.samplers._context import Context
from nas.search.surrogate import Encoded, Surrogate, standardized

FEWEST = 2  # networks that a model is fitted to
AUTO, NONE = "auto", "none"  # in place of a prior's name


class Predictor:
    """Expects losses of networks, learned from those of others.

    Args:
        archs: networks that were trained, two at least.
        losses: of them, smaller is better: a validation loss, or the negative of an accuracy; (n,)
        features: scores of them, (n, features); None to learn from the networks alone. Each network has all of them.
        space: that all networks are of; the first one's family where none is given.

    Raises:
        InputError: too few networks, shapes that do not fit, a value that is no number, or a network outside the space.
    """

    def __init__(
        self,
        archs: Sequence[Arch],
        losses: Sequence[float] | np.ndarray,
        features: np.ndarray | None = None,
        *,
        space: Space | None = None,
    ) -> None:
        values = np.asarray(losses, float)
        if len(archs) < FEWEST or values.shape != (len(archs),) or not np.isfinite(values).all():
            raise InputError(
                f"a predictor learns from {FEWEST} networks or more and one finite loss of each: got {len(archs)} "
                f"networks and losses of shape {values.shape}"
            )
        self.space = space_of(archs) if space is None else space
        self._features = None if features is None else _checked(features, len(archs))
        encoded = encoded_in(self.space, archs)
        if self._features is not None:
            encoded = encoded.beside(standardized(self._features, self._features))
        self.model = Surrogate(encoded, values)

    def losses_of(self, archs: Sequence[Arch], features: np.ndarray | None = None) -> np.ndarray:
        """Expected losses of networks. Shape: (n, features) -> (n,)

        Args:
            archs: of the same space.
            features: of them, the same ones in the same order as before.
        """
        encoded = encoded_in(self.space, archs)
        if (features is None) != (self._features is None):
            raise InputError("features are given both where a predictor learns and where it predicts, or at neither")
        if features is not None and self._features is not None:
            given = _checked(features, len(archs), self._features.shape[1])
            encoded = encoded.beside(standardized(self._features, given))
        return self.model.mean(encoded)


class Prior:
    """What networks are expected to reach, by trainings of others that there were before, wherever that was.

    Args:
        name: of the truth that holds them (`nas.evaluation.truth`), or its file.

    Attributes:
        name: of the score.
        space: that its networks are of.
        trainings: how many networks it learns from.

    Raises:
        InputError: there is no such truth, or its networks are of several spaces.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self._known = truth.load(name)
        self.trainings = len(self._known.networks)
        self.name = f"prior {name}"
        self.space = space_of([each.arch for each in self._known.networks])

    @functools.cached_property
    def _fitted(self) -> tuple[Predictor, dict[str, float]]:
        """The model, and what it expects of each network that it learned from by all others."""
        archs = [each.arch for each in self._known.networks]
        predictor = Predictor(archs, self._known.losses)
        return predictor, dict(zip((arch.id for arch in archs), predictor.model.held_out().tolist(), strict=True))

    def require(self, family: str) -> None:
        """Raise where the trainings say nothing of a space.

        Raises:
            InputError: they are of another one.
        """
        if family != self.space.name:
            raise InputError(
                f"{self.name}: holds networks of {self.space.name}, which say nothing of those of {family}; search in "
                f"{self.space.name}, or leave it out"
            )

    def losses_of(self, archs: Sequence[Arch]) -> np.ndarray:
        """Expected losses of networks, whatever their classes and their side; of one of the truth itself, what all
        others there let expect. Shape: (n,)

        Raises:
            InputError: a network is no point of the space.
        """
        predictor, own = self._fitted
        there = [self._there(arch) for arch in archs]
        expected = predictor.losses_of(there).tolist()
        return np.array([own.get(arch.id, loss) for arch, loss in zip(there, expected, strict=True)])

    def _there(self, arch: Arch) -> Arch:
        """A network as the trainings had it."""
        self.require(arch.family)
        return replace(with_classes(arch, self.space.classes), input_shape=self.space.input_shape)


def prior_of(asked: str, family: str) -> str:
    """The prior that a request names, for a space: a truth, its file, or `none`.

    Raises:
        InputError: there is no such truth, or it is of another space.
    """
    if asked == AUTO:
        shipped = (name for name in truth.names() if name != truth.PUBLISHED)
        return next((name for name in shipped if Prior(name).space.name == family), NONE)
    if asked != NONE:
        Prior(asked).require(family)
    return asked


def _checked(features: np.ndarray, count: int, width: int | None = None) -> np.ndarray:
    found = np.asarray(features, float)
    if found.ndim != 2 or len(found) != count or (width is not None and found.shape[1] != width):
        raise InputError(f"features: expected {count} lines of {width or 'some'} each, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise InputError(f"features: not a number in line {int(np.argwhere(~np.isfinite(found))[0][0])}")
    return found


def space_of(archs: Sequence[Arch]) -> Space:
    """The space that networks of one family are of, at the side of their images.

    Raises:
        InputError: they are of several, or of none.
    """
    kinds = {(arch.family, arch.input_shape) for arch in archs}
    if len(kinds) > 1:
        raise InputError(f"networks of several spaces: {', '.join(sorted({name for name, _ in kinds}))}")
    ((family, shape),) = kinds
    space = parts.load(family)
    return space if space.input_shape == shape else parts.load(family, shape[-1])


def encoded_in(space: Space, archs: Sequence[Arch]) -> Encoded:
    """Networks as features, centred and scaled by even draws of the whole space.

    Raises:
        InputError: a network is no point of the space.
    """
    lattice = lattice_of(space)
    return everything_of(space).encoder(np.array([lattice.path_of_arch(arch) for arch in archs]))


@functools.lru_cache(maxsize=4)
def everything_of(space: Space) -> Context:
    """What a sampler is told where everything fits."""
    lattice = lattice_of(space)
    macs, params = lattice.costs(macs_of_unit), lattice.costs(params_of_unit)
    return Context(FeasibleSet(lattice, [Sum("", macs, math.inf)]), scalars={"macs": macs, "params": params})
