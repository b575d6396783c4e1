"""What budgets leave of a space, before anything is trained: how many networks, which, and what holds them back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import latency_tables
from nas.core.arch import Arch
from nas.core.space import Either, Space
from nas.core.tracing import macs_of_unit
from nas.core.units import show_count, to_ms
from nas.metrics import load_metric
from nas.search.budgets import Budget
from nas.search.feasible import FeasibleSet
from nas.search.fitting import feasible_set, inverse, lattice_of, shares
from nas.search.lattice import Costs, Path, sums
from nas.search.limits import Estimator, Survey, resolve
from nas.tables.table import Table

DRAWS = 1001  # behind medians
PROBES = 200  # networks whose stages are made larger, one at a time
MORE = 0.1  # of the median latency: how much larger, where a millisecond is more


def feasible(space: Space, table: Table, budgets: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """What fits the budgets in a space.

    Args:
        space: all networks.
        table: predicts latency.
        budgets: as `nas.search.budgets` spells them.
        seed: of the sample that quantiles are taken of; a search with the same one has the same limits.

    Returns:
        Plain data: the budgets with the share of the space that keeps each and whether it binds beside the others;
        how many networks fit; the smallest, the median and the largest by latency; the published networks of the
        space, with the nearest that fits for each that does not; and for every stage what it takes, and how many
        multiply-adds it gains where it alone may take `more_ms` longer (the mean over even draws of what fits).

    Raises:
        BudgetError: nothing keeps all budgets, naming the nearest network and what to ask for.
        MissingLatency: a table lacks rows of the space.
    """
    table.require(space)
    asked = [Budget.parse(text) for text in budgets]
    tables = {each.table: Table.read(latency_tables.find(each.table)) for each in asked if each.table is not None}
    estimator = Estimator(table, resolve(asked, Survey(space, seed), table, tables), tables)
    return overview(feasible_set(space, estimator), estimator, seed)


def overview(fits: FeasibleSet, estimator: Estimator, seed: int = 0) -> dict[str, Any]:
    """What `feasible` finds, for a set that is there already."""
    space, drawn = fits.lattice.space, fits.draw(np.random.default_rng(seed), DRAWS)
    found = summary(fits, estimator, seed)
    ends = {"smallest": fits.smallest(), "median": _by_latency(fits, drawn)[DRAWS // 2], "largest": fits.largest()}
    return found | {
        "input": list(space.input_shape),
        "fix": {name: list(values) for name, values in space.held},
        "table": estimator.table.where,
        "table_hash": estimator.table.hash,
        **{name: _arch(path, fits, estimator) for name, path in ends.items() if path is not None},
        "presets": [_preset(name, path, fits, estimator) for name, path in lattice_of(space).presets().items()],
    }


def summary(fits: FeasibleSet, estimator: Estimator, seed: int = 0) -> dict[str, Any]:
    """The part of `overview` that a search begins with and its report shows; latencies in ms."""
    table, space = estimator.table, fits.lattice.space
    least, most = fits.count()
    drawn = fits.draw(np.random.default_rng(seed), DRAWS)
    latency = table.total_us(space, sums(fits.sums[0].costs, drawn))
    more_us = min(1000.0, MORE * float(np.median(latency)))
    ends = np.array([path for path in (fits.smallest(), fits.largest()) if path is not None])
    ends_us = [*latency.tolist(), *table.total_us(space, sums(fits.sums[0].costs, ends)).tolist()]
    published = {name: fits.fits(path) for name, path in lattice_of(space).presets().items()}
    return {
        "space": space.name,
        "archs": fits.size_of_all(),
        "fit": fits.about,
        "fit_at_least": least,
        "fit_at_most": most,
        "share": fits.about / fits.size_of_all(),
        "lost_to_rounding": 0.0,  # bins let in too much, which is drawn again, and keep nothing out
        "smallest_ms": to_ms(min(ends_us)),
        "median_ms": to_ms(float(np.median(latency))),
        "largest_ms": to_ms(max(ends_us)),
        "published": published,
        "budgets": _budgets(fits, estimator),
        "more_ms": to_ms(more_us),
        "stages": _stages(fits, estimator, drawn, more_us),
    }


def told(found: Mapping[str, Any]) -> list[str]:
    """A summary in words, a line each."""
    exact = found["fit_at_least"] == found["fit_at_most"]
    lines = [
        f"{'' if exact else 'about '}{show_count(found['fit'])} of {show_count(found['archs'])} networks of "
        f"{found['space']} fit ({100 * found['share']:.3g} %): {found['smallest_ms']:.4g} to "
        f"{found['largest_ms']:.4g} ms, half of them below {found['median_ms']:.4g} ms"
    ]
    lines += [
        f"{each['asked']} does not bind: without it as many fit" for each in found["budgets"] if not each["binds"]
    ]
    if found["published"]:
        fitting = [name for name, fits in found["published"].items() if fits]
        lines.append(f"published networks that fit: {', '.join(fitting) or 'none'}, of {len(found['published'])}")
    most = max(found["stages"], key=lambda each: float(each["macs_gained"]))
    if found["budgets"] and most["macs_gained"] > 0:
        gained = show_count(most["macs_gained"])
        lines.append(f"{most['stage']} binds most: {found['more_ms']:.3g} ms more would buy {gained} MACs in it")
    return lines


def _by_latency(fits: FeasibleSet, drawn: np.ndarray) -> list[Path]:
    return [_path(drawn[place]) for place in np.argsort(sums(fits.sums[0].costs, drawn), kind="stable")]


def _path(line: np.ndarray) -> Path:
    return tuple(map(int, line))


def _arch(path: Path, fits: FeasibleSet, estimator: Estimator) -> dict[str, Any]:
    arch: Arch = lattice_of(fits.lattice.space).arch(path)
    estimate = estimator.estimate(arch)
    return {
        "arch": arch.id,
        "latency_ms": to_ms(estimate.latency.total_us),
        "params": estimate.params,
        "macs": estimate.macs,
        "used": dict(zip((limit.asked for limit in estimator.limits), estimate.used, strict=True)),
        "choices": fits.lattice.params_of(path),
    }


def _preset(name: str, path: Path, fits: FeasibleSet, estimator: Estimator) -> dict[str, Any]:
    found = _arch(path, fits, estimator)
    misfit = estimator.misfit(estimator.estimate(lattice_of(fits.lattice.space).arch(path)))
    near = fits.nearest(path) if misfit else None
    if near is None:
        return {"name": name, **found, "misfit": misfit, "nearest": None}
    nearest = _arch(near, fits, estimator)
    changed = {
        choice: [found["choices"][choice], value]
        for choice, value in nearest["choices"].items()
        if found["choices"][choice] != value and _shown(choice, fits.lattice.space, nearest["choices"])
    }
    return {"name": name, **found, "misfit": misfit, "nearest": nearest | {"changed": changed}}


def _shown(choice: str, space: Space, choices: Mapping[str, Any]) -> bool:
    """Whether a network has a choice: not where its stage is of a kind without it."""
    where, _, name = choice.rpartition(".")
    stage = space.stages[int(where.removeprefix("stage")) - 1] if where else None
    if not isinstance(stage, Either) or name == "kind":
        return True
    kind = dict(stage.kinds)[choices.get(f"{where}.kind", stage.kinds[0][0])]
    return name in kind.choices or name in kind.fixed


def _budgets(fits: FeasibleSet, estimator: Estimator) -> list[dict[str, Any]]:
    alone = shares(fits, estimator.limits)
    return [
        {
            "asked": limit.asked,
            "limit": limit.limit,
            "unit": load_metric(limit.metric).unit,
            "share": alone.get(limit.title),
            "binds": _binds(place, fits, estimator),
        }
        for place, limit in enumerate(estimator.limits)
    ]


def _binds(place: int, fits: FeasibleSet, estimator: Estimator) -> bool:
    """Whether a budget keeps out something that the others do not.

    Exact for one that is a sum over blocks; for another one by even draws of what keeps the others.
    """
    limits = estimator.limits
    others = replace(estimator, limits=(*limits[:place], *limits[place + 1 :]))
    without = feasible_set(fits.lattice.space, others)
    lattice = lattice_of(fits.lattice.space)
    paths = list(map(_path, without.draw(np.random.default_rng(0), PROBES)))
    mine = [item for item in fits.sums if item.name == limits[place].title]
    if mine:
        paths = [*itertools.islice(without.best(mine[0].costs), 1), *paths]
    single = replace(estimator, limits=(limits[place],))
    return any(single.misfit(single.estimate(lattice.arch(path))) for path in paths)


def _stages(fits: FeasibleSet, estimator: Estimator, drawn: np.ndarray, more_us: float) -> list[dict[str, Any]]:
    """What each stage takes, and what it gains with more."""
    table, space, costs = estimator.table, fits.lattice.space, fits.sums[0].costs
    macs = lattice_of(space).costs(macs_of_unit)
    totals = sums(costs, drawn)
    latency = table.total_us(space, totals)
    longer = [
        inverse(lambda total: table.total_us(space, total), us + more_us, 2 * total + 100 * more_us)
        for total, us in zip(totals[:PROBES].tolist(), latency[:PROBES].tolist(), strict=True)
    ]
    gains = bought(fits, drawn[:PROBES], costs, np.array(longer) - totals[:PROBES], macs)
    taken = np.stack([cost[drawn[:, layer]] for layer, cost in enumerate(costs)]) * latency / totals
    return [
        {"stage": f"stage{number}", "median_ms": to_ms(float(np.median(us))), "macs_gained": float(gain)}
        for number, (us, gain) in enumerate(zip(taken, gains, strict=True), 1)
    ]


def bought(fits: FeasibleSet, paths: np.ndarray, costs: Costs, more: np.ndarray, values: Costs) -> np.ndarray:
    """How much a sum of values grows where the choices of one stage change and `more` may be spent there, at best.

    Args:
        fits: knows the steps; its budgets do not count here.
        paths: networks to begin with.
        costs: of every step.
        more: how much larger the sum of costs of each may become; (n,)
        values: of every step.

    Returns:
        For each layer the mean over the paths. Shape: (layers,)
    """
    gains = np.zeros((len(paths), len(fits.layers)))
    for line, path in enumerate(map(_path, paths)):
        ways, state = fits.ways(path), 0
        for index, layer in enumerate(fits.layers):
            steps = np.arange(layer.first[state], layer.first[state + 1])
            spent = costs[index][steps] - costs[index][path[index]]
            gained = values[index][steps] - values[index][path[index]]
            states, open_ = layer.target[steps], np.ones(len(steps), bool)
            for after in range(index + 1, len(fits.layers)):  # the stages behind stay, with other inputs
                later = fits.layers[after]
                if (states == later.source[path[after]]).all():
                    break
                step = later.step_of[states, ways[after]]
                open_ &= step >= 0
                step = np.maximum(step, 0)
                spent = spent + costs[after][step] - costs[after][path[after]]
                gained = gained + values[after][step] - values[after][path[after]]
                states = later.target[step]
            gains[line, index] = gained[open_ & (spent <= more[line])].max()
            state = int(layer.target[path[index]])
    return np.asarray(gains.mean(0))
