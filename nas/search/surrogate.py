"""A model of loss learned from few candidates: Bayesian ridge on sums over steps, and a Gaussian process on the rest.

Both are one Gaussian process: each group of features (counts of rows, choices, numbers such as multiply-adds) has a
linear kernel with a variance of its own; pairs of choices, likeness of choices and curves of the numbers have kernels
that are no sums over steps. Variances and noise are those of the highest posterior density (Rasmussen and Williams,
sec. 5.4.1); whether the kernels that are no sums belong to the model is decided by the predictive density of each
candidate from all others, which has a closed form (sec. 5.4.2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, sparse, stats

from nas.search.lattice import Costs

MOST_TUNED = 120  # candidates that variances are chosen on
CURVED = ("pairs", "alike", "curves")
VARIANCE, NOISE = 0.3, 0.03  # of standardized losses: the middle of what is expected before anything is known
OFFSET = 1.0  # variance of the level of all losses, beyond their mean
DECADES = 1.0  # how many factors of ten off that are one standard deviation
BOUNDS = (1e-5, 1e2)


@dataclass(frozen=True)
class Encoded:
    """Candidates as features.

    Attributes:
        groups: linear features, scaled so that lines less the reference's middle have length one on average; by group,
            (n, features).
        middles: the reference's middle of each group; (features,)
        numbers: (n, scalars), as standardized logarithms.
    """

    groups: dict[str, sparse.csr_matrix]
    middles: dict[str, np.ndarray]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, places: np.ndarray) -> Encoded:
        """Some of the candidates, by their numbers."""
        groups = {name: found[places] for name, found in self.groups.items()}
        return Encoded(groups, self.middles, self.numbers[places])

    @functools.cached_property
    def shifts(self) -> dict[str, np.ndarray]:
        """Products of lines with the middle; (n,)"""
        return {name: found @ self.middles[name] for name, found in self.groups.items()}

    def beside(self, features: np.ndarray) -> Encoded:
        """With further numbers, standardized, as a group of their own; (n, features)"""
        groups = self.groups | {"features": sparse.csr_matrix(features / features.shape[1] ** 0.5)}
        middles = self.middles | {"features": np.zeros(features.shape[1])}
        return Encoded(groups, middles, np.concatenate([self.numbers, features], 1))

    @functools.cached_property
    def _across(self) -> dict[str, np.ndarray]:
        """Lines as dense columns: products with them take a tenth of the time of sparse ones."""
        return {name: found.T.toarray(order="C") for name, found in self.groups.items()}

    def squares(self, name: str) -> np.ndarray:
        """Squared lengths of the centred lines of a group; (n,)"""
        own = np.asarray(self.groups[name].multiply(self.groups[name]).sum(1)).ravel()
        return np.asarray(np.maximum(own - 2 * self.shifts[name] + self.middles[name] @ self.middles[name], 0.0))

    def products(self, name: str, other: Encoded) -> np.ndarray:
        """Inner products of the centred lines of a group. Shape: n lines, m lines -> (n, m)"""
        middle = self.middles[name]
        found = self.groups[name] @ other._across[name]
        found += middle @ middle - self.shifts[name][:, None] - other.shifts[name][None]
        return np.asarray(found)


def standardized(known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores as features of a model that learns from `known` ones: with their mean 0 and their standard deviation 1.

    Shape: known (n, features), scores (m, features) -> (m, features)
    """
    return np.asarray((scores - known.mean(0)) / np.maximum(known.std(0), 1e-12))


class Encoder:
    """Turns paths into features.

    Args:
        groups: features of every step by group, see `Lattice.groups`.
        scalars: numbers of every step.
        reference: paths that features are centred and scaled by.
    """

    def __init__(
        self, groups: dict[str, list[sparse.csr_matrix]], scalars: Sequence[Costs], reference: np.ndarray
    ) -> None:
        layers = range(reference.shape[1])
        steps = {name: sparse.vstack(found, format="csr") for name, found in groups.items()}
        if scalars:
            numbers = [np.stack([cost[layer] for cost in scalars], 1) for layer in layers]
            steps["numbers"] = sparse.csr_matrix(np.concatenate(numbers))
        sizes = [found.shape[0] for found in next(iter(groups.values()))]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self._scalars = steps.get("numbers")
        chosen = self._chosen(reference)
        self._steps, self._middles = {}, {}
        for name, found in steps.items():
            known = (chosen @ found).toarray()
            scale = known.std(0)
            if name == "numbers":
                scale = np.maximum(scale, 1e-12) * len(scale) ** 0.5
            else:
                scale = np.full(len(scale), max(float(np.sqrt((scale**2).sum())), 1e-12))
            self._steps[name] = sparse.csr_matrix(found.multiply(1 / scale[None]))
            self._middles[name] = known.mean(0) / scale
        logs = self._logs(chosen)
        self._log_middle, self._log_scale = logs.mean(0), np.maximum(logs.std(0), 1e-12)

    def _chosen(self, paths: np.ndarray) -> sparse.csr_matrix:
        """Which of all steps candidates take. Shape: (n, layers) -> (n, steps)"""
        count, layers = paths.shape
        places = (np.asarray(paths) + self._first[:-1]).ravel()
        return sparse.csr_matrix(
            (np.ones(len(places)), places, np.arange(0, len(places) + 1, layers)), (count, self._first[-1])
        )

    def _logs(self, chosen: sparse.csr_matrix) -> np.ndarray:
        if self._scalars is None:
            return np.zeros((chosen.shape[0], 0))
        return np.asarray(np.log(np.maximum((chosen @ self._scalars).toarray(), 1e-12)))

    def __call__(self, paths: np.ndarray) -> Encoded:
        """Features of candidates. Shape: (n, layers) -> n lines"""
        chosen = self._chosen(paths)
        groups = {name: chosen @ found for name, found in self._steps.items()}
        return Encoded(groups, self._middles, (self._logs(chosen) - self._log_middle) / self._log_scale)

    def scores(self, weights: dict[str, np.ndarray]) -> Costs:
        """What steps add to a weighted sum of the linear features, up to a constant."""
        total = np.zeros(self._first[-1])
        for name, found in weights.items():
            total += self._steps[name] @ found
        return [total[first:last] for first, last in zip(self._first[:-1], self._first[1:], strict=True)]


def kernels(one: Encoded, two: Encoded, curved: bool = True) -> dict[str, np.ndarray]:
    """The kernel of each part of the model, or only of those that are sums over steps. Shape: (n, m) each"""
    found = {name: one.products(name, two) for name in one.groups}
    if not curved:
        return found
    if "choices" in one.groups:
        mine, theirs = one.squares("choices")[:, None], two.squares("choices")[None]
        found["pairs"] = found["choices"] ** 2 / np.maximum(mine * theirs, 1e-12)
        found["alike"] = np.exp(-np.maximum(mine + theirs - 2 * found["choices"], 0.0))
    if one.numbers.shape[1]:
        gaps = ((one.numbers[:, None] - two.numbers[None]) ** 2).mean(2)
        found["curves"] = np.exp(-gaps / 2)
    return found


@dataclass(frozen=True)
class Fit:
    """Variances of the parts of the model and of noise, and how well each candidate is predicted from the others.

    Attributes:
        variances: by part.
        noise: variance.
        held_out: the mean of each candidate, predicted from all others; (n,)
        density: mean logarithm of its predictive density there.
    """

    variances: dict[str, float]
    noise: float
    held_out: np.ndarray
    density: float


def fit(parts: dict[str, np.ndarray], y: np.ndarray) -> Fit:
    """The variances of the highest posterior density.

    Args:
        parts: kernel of each part; (n, n)
        y: (n,), with mean 0 and variance 1
    """
    names, count = list(parts), len(y)
    stack = np.stack([*parts.values(), np.eye(count)]).reshape(len(names) + 1, -1)
    middle = np.log(np.array([VARIANCE] * len(names) + [NOISE]))
    width = DECADES * np.log(10.0)

    def solved(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        matrix = (np.exp(logs) @ stack).reshape(count, count) + OFFSET
        factor = linalg.cholesky(matrix, lower=True, check_finite=False)
        half, failed = linalg.lapack.dpotri(factor, lower=1)
        assert not failed
        inverse = half + np.tril(half, -1).T
        return inverse, inverse @ y, float(np.log(np.diag(factor)).sum())

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, weights, volume = solved(logs)
        off = (logs - middle) / width
        value = 0.5 * float(y @ weights) + volume + 0.5 * float(off @ off)
        slope = 0.5 * np.exp(logs) * (stack @ (inverse - np.outer(weights, weights)).ravel()) + off / width
        return value, slope

    bounds = [tuple(np.log(BOUNDS))] * len(middle)
    found = optimize.minimize(loss, middle, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30})
    inverse, weights, _ = solved(found.x)
    variance = 1 / np.diag(inverse)
    error = weights * variance
    density = float((-0.5 * np.log(2 * np.pi * variance) - 0.5 * error**2 / variance).mean())
    values = np.exp(found.x).tolist()
    return Fit(dict(zip(names, values[:-1], strict=True)), values[-1], y - error, density)


class Surrogate:
    """The model, fitted.

    Attributes:
        correlation: Spearman's, of losses with what each is predicted from the others; NaN where all are the same.

    Args:
        known: candidates with a loss; two at least.
        losses: of them; (n,)
        curved: whether kernels that are no sums over steps may belong to it.
    """

    def __init__(self, known: Encoded, losses: np.ndarray, curved: bool = True) -> None:
        self.known = known
        quarter, half, three = np.percentile(losses, [25, 50, 75])
        cut = half + 5 * (three - quarter) if three > quarter else np.inf
        clipped = np.minimum(losses, cut)  # a diverged training says no more than "bad"
        self.middle, self.spread = float(clipped.mean()), float(clipped.std()) if np.ptp(clipped) else 1.0
        self.y = (clipped - self.middle) / self.spread
        self._kernels = kernels(known, known)
        chosen = self._fitted(curved)
        self.variances, self.noise = chosen.variances, chosen.noise
        varies = np.ptp(self._tuned_y) > 0 and np.ptp(chosen.held_out) > 0
        self.correlation = float(stats.spearmanr(chosen.held_out, self._tuned_y).statistic) if varies else np.nan
        self._kernel = self._sum(self._kernels)
        self._solve = linalg.cho_factor(self._kernel + self.noise * np.eye(len(known)), lower=True)
        self._weights = linalg.cho_solve(self._solve, self.y)

    def _sum(self, parts: dict[str, np.ndarray], names: Sequence[str] | None = None) -> np.ndarray:
        """The kernel of parts, of all of them with that of the level."""
        total = np.full(next(iter(parts.values())).shape, 0.0 if names else OFFSET)
        for name in names or parts:
            if name in self.variances:
                total += self.variances[name] * parts[name]
        return total

    def _fitted(self, curved: bool) -> Fit:
        """With the kernels that are no sums over steps, or without them: whichever predicts better."""
        count = len(self.y)
        places = np.arange(count)
        if count > MOST_TUNED:
            best, last = np.argsort(self.y, kind="stable")[: MOST_TUNED // 3], places[-(2 * MOST_TUNED // 3) :]
            places = np.unique(np.concatenate([best, last]))
        parts = {name: found[np.ix_(places, places)] for name, found in self._kernels.items()}
        y = self._tuned_y = self.y[places]
        linear = fit({name: found for name, found in parts.items() if name not in CURVED}, y)
        if not curved:
            return linear
        whole = fit(parts, y)
        return whole if whole.density > linear.density else linear

    @property
    def is_linear(self) -> bool:
        """Whether cross-validation leaves the parts out that are no sums over steps."""
        return not any(name in self.variances for name in CURVED)

    def mean(self, candidates: Encoded) -> np.ndarray:
        """Expected losses. Shape: n candidates -> (n,)"""
        across = self._sum(kernels(candidates, self.known, not self.is_linear))
        return np.asarray(self.middle + self.spread * (across @ self._weights))

    def held_out(self) -> np.ndarray:
        """What the loss of each known candidate is expected to be by all others. Shape: (n,)"""
        inverse = linalg.cho_solve(self._solve, np.eye(len(self.known)))
        return np.asarray(self.middle + self.spread * (self.y - self._weights / np.diag(inverse)))

    def gain(self, candidates: Encoded) -> np.ndarray:
        """By how much each candidate is expected to fall below the best known one, noise aside (expected improvement).

        Shape: n candidates -> (n,)
        """
        across = self._sum(kernels(candidates, self.known, not self.is_linear))
        half = linalg.solve_triangular(self._solve[0], across.T, lower=True, check_finite=False)
        own = np.full(len(candidates), OFFSET)  # the diagonal of the kernel
        for name, variance in self.variances.items():
            own += variance * (1.0 if name in CURVED else candidates.squares(name))
        deviation = np.sqrt(np.maximum(own - (half**2).sum(0), 1e-12))
        least = float((self._kernel @ self._weights).min())
        ahead = (least - across @ self._weights) / deviation
        return np.asarray(self.spread * deviation * (ahead * stats.norm.cdf(ahead) + stats.norm.pdf(ahead)))

    def linear(self, rng: np.random.Generator | None = None, heat: float = 1.0) -> dict[str, np.ndarray]:
        """Weights of the linear features: their mean, or a posterior draw whose deviations are scaled by `heat`.

        Matheron's rule: a draw of the prior, corrected by what the data say of its residual.
        """
        names = [name for name in self.known.groups if name in self.variances]
        weights = {name: self._back(name, self._weights) for name in names}
        if rng is None or not heat:
            return weights
        count = len(self.y)
        total = rng.normal(size=count) * self.noise**0.5 + rng.normal() * OFFSET**0.5
        prior: dict[str, np.ndarray] = {}
        for name in names:
            found, middle = self.known.groups[name], self.known.middles[name]
            prior[name] = rng.normal(size=found.shape[1]) * self.variances[name] ** 0.5
            total = total + found @ prior[name] - middle @ prior[name]
        if not self.is_linear:
            curved = self._sum(self._kernels, CURVED)
            total = total + _root(curved) @ rng.normal(size=count)
        residual = linalg.cho_solve(self._solve, total)
        return {name: weights[name] + heat * (prior[name] - self._back(name, residual)) for name in names}

    def _back(self, name: str, weights: np.ndarray) -> np.ndarray:
        """What weights of the known candidates mean for the features of a group. Shape: (n,) -> (features,)"""
        found, middle = self.known.groups[name], self.known.middles[name]
        return np.asarray(self.variances[name] * (found.T @ weights - middle * weights.sum()))

    def joint(self, candidates: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of losses, noise aside. Shape: n candidates -> (n,), (n, n)"""
        across = self._sum(kernels(candidates, self.known, not self.is_linear))
        half = linalg.solve_triangular(self._solve[0], across.T, lower=True, check_finite=False)
        cover = self._sum(kernels(candidates, candidates, not self.is_linear)) - half.T @ half
        return self.middle + self.spread * (across @ self._weights), self.spread**2 * cover

    def draws(self, candidates: Encoded, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Joint posterior draws of losses. Shape: n candidates -> (count, n)"""
        mean, cover = self.joint(candidates)
        return np.asarray(mean + rng.normal(size=(count, len(candidates))) @ _root(cover).T)


def _root(cover: np.ndarray) -> np.ndarray:
    size = max(float(np.trace(cover)) / len(cover), 1e-12)
    for jitter in (1e-9, 1e-7, 1e-5, 1e-3):
        try:
            return np.asarray(np.linalg.cholesky(cover + jitter * size * np.eye(len(cover))))
        except np.linalg.LinAlgError:
            continue
    return np.diag(np.sqrt(np.maximum(np.diag(cover), 0.0)))
