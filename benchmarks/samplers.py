"""How far samplers are from the best network that fits, on scores that cost nothing.

`my_score.py` defines `score(arch) -> float`, larger is better; or `row_score(row) -> float`, then the score is the sum
over the rows of an arch, and the exact optimum is known. Candidates go through the study and the engine of a real
search. Gaps are (optimum - best so far) / |optimum|; `gap_of_range` divides by optimum - mean of what fits instead.

Run: python benchmarks/samplers.py --space hybrid --table x86_64-amd-epyc/onnxruntime-fp32-1t \
         --budget 'latency_ms<=p5' --sampler guided --evaluations 100 --seeds 3 --score my_score.py --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from made_up import Instantly
from optuna.storages import InMemoryStorage

import latency_tables
import search_spaces
from nas.core.arch import Arch, calls_of
from nas.search import samplers
from nas.search.budgets import Budget
from nas.search.engine import Engine
from nas.search.feasible import FeasibleSet
from nas.search.fitting import context_of, feasible_set
from nas.search.lattice import sums
from nas.search.ledger import Ledger
from nas.search.limits import Estimator, Survey, resolve
from nas.search.study import distributions_of, open_study
from nas.search.trials import record_of
from nas.tables.table import Table

MARKS = (25, 50, 100, 200, 400, 800)


class Timed:
    """Adds up the CPU seconds of a sampler's draws."""

    def __init__(self, sampler: Any) -> None:
        self.seconds: list[float] = []
        self._draw = sampler.sample_relative
        sampler.sample_relative = self

    def __call__(self, *args: Any) -> Any:
        begun = time.process_time()
        drawn = self._draw(*args)
        self.seconds.append(time.process_time() - begun)
        return drawn


def loaded(path: str) -> tuple[Callable[[Arch], float], Callable[[Any], float] | None]:
    """The score of a file, and its score of rows where it has one."""
    spec = importlib.util.spec_from_file_location("my_score", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_score"] = module  # dataclasses look there for the module that they are in
    spec.loader.exec_module(module)
    of_row = getattr(module, "row_score", None)
    if of_row is not None:
        known: dict[Any, float] = {}

        def total(arch: Arch) -> float:
            return sum(known.setdefault(call.row, float(of_row(call.row))) for call in calls_of(arch))

        return total, of_row
    if not hasattr(module, "score"):
        raise SystemExit(f"{path}: defines neither score(arch) nor row_score(row)")
    return module.score, None


def optimum(fits: FeasibleSet, of_row: Callable[[Any], float] | None) -> float | None:
    """The largest sum of row scores of what fits, exactly; None where the score is no such sum."""
    if of_row is None:
        return None
    timed = set(fits.lattice.space.rows())
    scores = fits.lattice.costs(lambda row: float(of_row(row)) if row in timed else 0.0)  # type: ignore[attr-defined]
    best = fits.best(scores)
    return float(sums(scores, np.array(best))[0])


def searched(
    space: Any, estimator: Estimator, fits: FeasibleSet, sampler: str, count: int, seed: int, score: Any
) -> Any:
    """Search once. Returns best scores so far, counts by state, and CPU seconds of draws."""
    distributions = distributions_of(space.choices)
    made = samplers.load_sampler(sampler, seed, distributions, context_of(space, estimator, fits))
    timed = Timed(made)
    study: optuna.Study = open_study("benchmark", InMemoryStorage(), made, 1)
    Engine(
        Ledger(study, distributions),
        space,
        estimator,
        Instantly(lambda text: score(Arch.from_json(text))),
        trials=count,
        seed=seed,
    ).run()
    records = [record for record in map(record_of, study.get_trials(deepcopy=False)) if record is not None]
    values = [-record.value for record in records if record.state == "evaluated" and record.value is not None]
    states = [record.state for record in records]
    return np.maximum.accumulate(values), states, timed.seconds


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, search with every seed, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--space", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--budget", action="append", default=[])
    parser.add_argument("--sampler", default="guided", choices=samplers.names())
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--score", required=True)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)

    score, of_row = loaded(asked.score)
    space, table = search_spaces.load(asked.space), Table.read(latency_tables.find(asked.table))
    budgets = [Budget.parse(text) for text in asked.budget]
    tables = {b.table: Table.read(latency_tables.find(b.table)) for b in budgets if b.table is not None}
    estimator = Estimator(table, resolve(budgets, Survey(space, 0), table, tables), tables)
    begun = time.process_time()
    fits = feasible_set(space, estimator)
    about = fits.about
    built = time.process_time() - begun
    best = optimum(fits, of_row)
    even = [score(fits.lattice.arch(tuple(path))) for path in fits.draw(np.random.default_rng(0), 500).tolist()]  # type: ignore[attr-defined]
    mean = float(np.mean(even))
    runs = []
    for seed in range(asked.seeds):
        so_far, states, seconds = searched(space, estimator, fits, asked.sampler, asked.evaluations, seed, score)
        marks = [mark for mark in MARKS if mark <= len(so_far)]
        if len(so_far) and len(so_far) not in marks:
            marks.append(len(so_far))
        found: dict[str, Any] = {"seed": seed, "best": {str(mark): float(so_far[mark - 1]) for mark in marks}}
        if best is not None:
            found["gap"] = {mark: (best - value) / abs(best) for mark, value in found["best"].items()}
            found["gap_of_range"] = {mark: (best - value) / (best - mean) for mark, value in found["best"].items()}
        found |= {
            "proposals": len(states),
            "infeasible_share": states.count("infeasible") / len(states),
            "duplicate_share": states.count("duplicate") / len(states),
            "seconds_a_proposal": float(np.mean(seconds)),
            "seconds_at_most": float(np.max(seconds)),
        }
        runs.append(found)
    result: dict[str, Any] = {
        "space": space.name,
        "table": asked.table,
        "budgets": [limit.as_data() for limit in estimator.limits],
        "sampler": asked.sampler,
        "feasible": about,
        "share": about / fits.size_of_all(),
        "seconds_to_build": built,
        "optimum": best,
        "mean_of_even_draws": mean,
        "runs": runs,
    }
    for key in ("gap", "gap_of_range") if best is not None else ():
        marks = [mark for mark in runs[0][key] if all(mark in run[key] for run in runs)]
        result[f"mean_{key}"] = {mark: float(np.mean([run[key][mark] for run in runs])) for mark in marks}
    if asked.json:
        print(json.dumps(result))
        return
    print(f"{asked.sampler} on {space.name}: {about:,.0f} networks fit ({result['share']:.1%})")
    for run in runs:
        print(f"seed {run['seed']}: best {run['best']}, {run['seconds_a_proposal']:.3f} s a proposal")
    if best is not None:
        gaps = ", ".join(f"{gap:.1%} after {mark}" for mark, gap in result["mean_gap"].items())
        print(f"optimum {best:.6g}; mean gap {gaps}")


if __name__ == "__main__":
    main()
