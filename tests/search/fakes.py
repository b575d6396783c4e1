"""Stand-ins for tests of the search: small spaces, a table of made-up times, and a scorer that trains nothing.

This module loads nothing heavy at its top: workers import it to find the scorer. Run as a program it is a search that a
test can kill: `python fakes.py SETTINGS_AS_JSON`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nas.evaluation.evaluators import LOSS, Score

if TYPE_CHECKING:
    import optuna

    from nas.core.space import Space
    from nas.search.engine import Engine
    from nas.search.limits import Estimator
    from nas.tables.table import Table


def digits(text: str, count: int = 6) -> float:
    """A number in 0..1 that a text decides."""
    return float(int(hashlib.sha256(text.encode()).hexdigest()[:count], 16) / 16**count)


@dataclass(frozen=True)
class FakeScorer:
    """A loss that the arch's text decides; it writes down its calls.

    Attributes:
        seconds: how long a score takes.
        calls: file that gets a line for every arch as its evaluation begins; none where empty.
        fail: what happens to the archs that fail: nan, error, memory or kill.
        failing: share of the archs that fail, in 0..1.
    """

    seconds: float = 0.0
    calls: str = ""
    fail: str = ""
    failing: float = 0.0

    def __call__(self, arch: str, seed: int, on_epoch: Any = None) -> Score:
        if on_epoch is not None:
            on_epoch(1, 2)
        if self.calls:
            with open(self.calls, "a", encoding="utf-8") as file:
                file.write(f"{hashlib.sha256(arch.encode()).hexdigest()[:12]} {os.getpid()}\n")
        time.sleep(self.seconds)
        loss = digits(f"{arch} {seed}")
        if digits(arch + "fails") < self.failing:
            if self.fail == "error":
                raise ValueError("a shape does not fit")
            if self.fail == "memory":
                raise MemoryError("no room")
            if self.fail == "kill":
                os.kill(os.getpid(), 9)
            loss = float("nan")
        return Score(loss, LOSS, seconds=self.seconds, cost="free", val_loss=loss, val_accuracy=1 - loss / 10)


@dataclass(frozen=True)
class Killing(FakeScorer):
    """A scorer whose process is killed so many times at each arch, by the lines that `calls` has for it.

    Attributes:
        killing: share of the archs at which it is, in 0..1.
        times: how often.
    """

    killing: float = 0.0
    times: int = 0

    def __call__(self, arch: str, seed: int, on_epoch: Any = None) -> Score:
        score = super().__call__(arch, seed, on_epoch)
        begun = Path(self.calls).read_text().count(hashlib.sha256(arch.encode()).hexdigest()[:12])
        if digits(arch + "kills") < self.killing and begun <= self.times:
            os.kill(os.getpid(), 9)
        return score


@dataclass(frozen=True)
class Hanging(FakeScorer):
    """A scorer that never ends at one arch."""

    arch: str = ""

    def __call__(self, arch: str, seed: int, on_epoch: Any = None) -> Score:
        score = super().__call__(arch, seed, on_epoch)
        while arch == self.arch:
            time.sleep(1)
        return score


@dataclass(frozen=True)
class ToyArch:
    """An arch without blocks: its parameters, of which `dead` chooses nothing."""

    params: tuple[tuple[str, int], ...]

    @property
    def id(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps(self.params)


@dataclass(frozen=True)
class ToySpace:
    """Three parameters, one of them dead, one of them irregular: 24 * 4 archs. Loads no torch."""

    name: str = "toy"
    choices: dict[str, Any] = field(
        default_factory=lambda: {
            "depth": SimpleNamespace(values=tuple(range(1, 25))),
            "width": SimpleNamespace(values=(16, 32, 48, 96)),
            "dead": SimpleNamespace(values=("a", "b")),
        }
    )

    def arch(self, params: dict[str, Any]) -> ToyArch:
        return ToyArch((("depth", params["depth"]), ("width", params["width"])))


@dataclass(frozen=True)
class ToyEstimator:
    """A latency of depth * width us under one limit."""

    limit_us: float = 500.0

    def estimate(self, arch: ToyArch) -> Any:
        params = dict(arch.params)
        us = float(params["depth"] * params["width"])
        latency = SimpleNamespace(total_us=us, low_us=0.9 * us, high_us=1.1 * us)
        return SimpleNamespace(latency=latency, params=params["width"], macs=params["depth"])

    def constraints(self, estimate: Any) -> dict[str, float]:
        return {"latency_ms<=x": estimate.latency.total_us / self.limit_us - 1}

    def misfit(self, estimate: Any) -> str:
        return "too slow" if estimate.latency.total_us > self.limit_us else ""


def tiny_space() -> Space:
    """The 32x32 EfficientFormer with a few choices left: 96 archs of the same blocks as the shipped space."""
    from dataclasses import replace

    from nas.core.ops import Choice
    from search_spaces import efficientformer

    stages = list(efficientformer.SMALL.stages)
    kept: Any = ((16, 32), (1, 2)), ((32, 48), (1, 2)), ((48,), (1,)), ((96,), (1, 2, 3))
    for index, (widths, depths) in enumerate(kept):
        body, tail = replace(stages[index].body, ratio=2), stages[index].tail  # type: ignore[call-arg]
        tail = tail and replace(tail, ratio=2)  # type: ignore[call-arg]
        stages[index] = replace(stages[index], body=body, tail=tail, width=Choice(widths), depth=Choice(depths))
    return replace(efficientformer.SMALL, stages=tuple(stages), tail=Choice((0, 1)))


def fake_table(space: Space, networks: int = 12, **header: Any) -> Table:
    """A table of made-up times for all rows of a space; calibrated by networks 10 to 14 % above the sum."""
    import random

    from nas.core.arch import calls_of
    from nas.tables.table import Entry, Header, NetworkEntry, Table

    facts = {
        "device": "fake",
        "cpu": "fake",
        "cores": 1,
        "runtime": "fake",
        "runtime_version": "1.0",
        "precision": "fp32",
        "threads": 1,
        "level": "block",
        "variant": "default",
        "spaces": (space.name,),
        "method": "chains",
        "date": "2026-01-01",
        "protocol": "made up",
        "sentinel_us": 1.0,
    } | header
    entries = [Entry(row, 1 + 99 * digits(str(row)), 0.1, 9) for row in space.rows()]
    table = Table(Header(**facts), entries)
    rng = random.Random(0)
    archs = list({space.sample(rng): None for _ in range(20 * networks)})[:networks]
    factors = (1.1 + 0.02 * (number % 3) for number in range(networks))
    measured = [
        NetworkEntry(arch, table.raw_us(calls_of(arch)) * factor, 0.1, 9)
        for arch, factor in zip(archs, factors, strict=True)
    ]
    return Table(table.header, table.entries, measured)


def estimator_at(space: Space, table: Table, *budgets: str) -> Estimator:
    """The estimator of these budgets."""
    from nas.search.budgets import Budget
    from nas.search.limits import Estimator, Survey, resolve

    limits = resolve([Budget.parse(text) for text in budgets], Survey(space, 0, 500), table, {})
    return Estimator(table, limits)


def make_study(
    storage: Any, space: Any, sampler: str = "random", *, seed: int = 0, objectives: int = 1, context: Any = None
) -> optuna.Study:
    """A study of a space with a seeded sampler, which takes everything for fitting where it is not told otherwise."""
    from nas.search.samplers import load_sampler
    from nas.search.study import distributions_of, open_study

    made = load_sampler(sampler, seed, distributions_of(space.choices), context or any_of(space, objectives))
    return open_study("test", storage, made, objectives)


def any_of(space: Any, objectives: int = 1) -> Any:
    """A sampler's context in which every combination of the choices of a space fits, each as another candidate."""
    import functools
    import itertools

    import numpy as np

    from nas.core.space import Space
    from nas.core.tracing import macs_of_unit
    from nas.search.feasible import FeasibleSet, Sum
    from nas.search.fitting import lattice_of
    from nas.search.lattice import ListLattice, sums
    from nas.search.samplers._context import Context

    if isinstance(space, Space):
        lattice = lattice_of(space)
        costs = lattice.costs(macs_of_unit)
        everything = FeasibleSet(lattice, [Sum("", costs, float("inf"))])
        return Context(everything, objectives, {"macs": costs}, functools.partial(sums, costs))
    names = list(space.choices)
    params = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(space.choices[name].values for name in names))
    ]
    sizes = [np.array([float(sum(v for v in item.values() if not isinstance(v, str))) for item in params])]
    return Context(
        FeasibleSet(ListLattice(params), [Sum("", sizes, float("inf"))]),
        objectives,
        {"size": sizes},
        lambda paths: sizes[0][paths[:, 0]] / 1000,
    )


def make_engine(study: optuna.Study, space: Any, estimator: Any, workers: Any, trials: int, **more: Any) -> Engine:
    """An engine on a study."""
    from nas.search.engine import Engine
    from nas.search.ledger import Ledger
    from nas.search.study import distributions_of

    ledger = Ledger(study, distributions_of(space.choices))
    return Engine(ledger, space, estimator, workers, trials=trials, seed=0, **more)


class HereWorkers:
    """Workers that score in this process, when waited for; the last submitted task first, to mix the order up."""

    def __init__(self, scorer: Any, size: int = 1, on_stages: Any = None, minutes: Any = None) -> None:
        self.scorer, self.size, self.on_stages = scorer, size, on_stages
        self.tasks: list[Any] = []
        self.scored: list[str] = []

    @property
    def idle(self) -> int:
        return self.size - len(self.tasks)

    def submit(self, task: Any) -> None:
        assert self.idle
        self.tasks.append(task)

    def wait(self) -> Any:
        from nas.search.workers import outcome_of

        task = self.tasks.pop()
        self.scored.append(task.arch)
        return outcome_of(self.scorer, task, lambda stage: self.on_stages and self.on_stages((stage,)))

    def run(self, tasks: Any) -> Any:
        for task in tasks:
            self.submit(task)
            yield self.wait()

    def __enter__(self) -> HereWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.tasks.clear()


def here(executor: str) -> Any:
    """Stands for `load_executor`: workers in this process."""
    return lambda scorers, plan, device, on_stages: HereWorkers(scorers, plan.workers, on_stages)


def without_times(frame: Any) -> list[tuple[str, ...]]:
    """What must be the same in two equal runs: everything but times."""
    return [tuple(row) for row in frame.drop(columns=["started", "seconds"]).astype(str).to_numpy()]


def main(
    run_dir: str, sampler: str = "random", trials: int = 20, workers: int = 1, scorer: Any = None, storage: str = ""
) -> None:
    """Search the toy space until done; a test kills this process at any moment."""
    from nas.core.files import lock
    from nas.search.executors.local import Pool

    with lock(Path(run_dir) / "lock", run_dir), Pool(FakeScorer(**(scorer or {})), workers) as pool:
        study = make_study(storage or Path(run_dir) / "study.journal", ToySpace(), sampler)
        print("searching", flush=True)
        make_engine(study, ToySpace(), ToyEstimator(), pool, trials).run()
    print("done", flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
