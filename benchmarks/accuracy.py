"""What a search reaches for the time it takes, on networks that were really trained.

The candidates are the networks of a stored truth, each with the training that stands there: its validation loss is what
a search sees, and what counts is the test accuracy of the network that it would choose. The samplers are those of the
package; they propose among these networks instead of a whole space. What is simulated: no network is trained again, and
a training takes the median of the seconds in the truth (those of the first trainings there are of a busy machine). A
score that a search asks for takes its median seconds from `scores.jsonl`, and the sampler what it takes here.

Searched are `random`, `tpe`, `guided`, `guided` with features, and rungs of a score: in an even order every network is
scored, and trained where it is in the best third of those scored so far, or by chance, one in ten. A score that gets
ready (`supernet`) does so before the first training. `prior` is what a model expects that has learned from the
networks outside the part: it costs nothing here, since others have paid for these trainings.
`saved` is by what factor less time a search takes, on average, than random search to the accuracy that random search
has after a quarter of the networks: after more of them it has found the best, of which a space has many more.

Each search is kept in a file as soon as it is done, so that the same command continues. Run:
nice python benchmarks/accuracy.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.storages import InMemoryStorage
from scipy import sparse

from nas.core.files import write_text, writing
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.evaluation import truth
from nas.report.plots import reached_data
from nas.search import samplers
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.lattice import ListLattice, sums
from nas.search.lattice import Path as Way
from nas.search.predictor import Predictor, space_of
from nas.search.samplers._context import Context
from nas.search.study import distributions_of, open_study
from nas.search.verdicts import Judged, read_scores

FOLDER = Path(__file__).with_name("truth")
FILE, SCORES = FOLDER / "searches.jsonl", FOLDER / "scores.jsonl"
PRIOR = "prior"
METHODS = (
    *("random", "tpe", "guided", "guided with size: {of: params} + naswot", "guided with supernet + naswot"),
    *("guided with prior", "rungs of naswot", "rungs of supernet"),
)
THIRD, CHANCE = 1 / 3, 0.1


class PoolLattice(ListLattice):
    """Networks of a space as a list, which a model sees as it sees those of the space."""

    def __init__(self, networks: Sequence[truth.Known]) -> None:
        archs = [each.arch for each in networks]
        self.of = space_of(archs)
        lattice = lattice_of(self.of)
        super().__init__([self.of.params_of(arch) for arch in archs], self.of.name, archs)
        paths = np.array([lattice.path_of_arch(arch) for arch in archs])
        self._features = {
            name: [sparse.csr_matrix(sum(found[paths[:, layer]] for layer, found in enumerate(layers)))]
            for name, layers in lattice.groups().items()
        }
        self.scalars = {
            "macs": [sums(lattice.costs(macs_of_unit), paths)],
            "params": [sums(lattice.costs(params_of_unit), paths)],
        }

    def path_of(self, params: Mapping[str, Any]) -> Way:
        """The network with most of these choices: Optuna's samplers propose from the whole space."""
        return (
            int(np.argmax([sum(own.get(name) == value for name, value in params.items()) for own in self._params])),
        )

    def groups(self) -> dict[str, list[sparse.csr_matrix]]:
        """Those of the space, of each network."""
        return self._features


@dataclass(frozen=True, eq=False)
class Candidates:
    """What there is to be found.

    Attributes:
        lattice: the networks.
        losses: on the validation split, of one training of each; (n,)
        accuracies: on the test split, of all its trainings; (n,)
        seconds: of a training.
        scores: of each network, by name.
    """

    lattice: PoolLattice
    losses: np.ndarray
    accuracies: np.ndarray
    seconds: float
    scores: Mapping[str, Judged]

    @classmethod
    def of(cls, stored: truth.Truth, scores: Sequence[Judged], methods: Sequence[str], part: str) -> Candidates:
        """The networks of a part that have all the scores that methods ask for."""
        known = {each.name: each for each in scores}
        within = np.array([part == "all" or each.set == part for each in stored.networks])
        names = dict.fromkeys(name for method in methods for name in asked_of(method)[1])
        if PRIOR in names:
            known[PRIOR] = expected_in(stored, within)
        if lacking := [name for name in names if name not in known]:
            raise SystemExit(f"{stored.file}: no network has the scores {', '.join(lacking)}; ask scores.py for them")
        whole = within & np.all([np.isfinite(known[name].values) for name in names] or [within], 0)
        networks = [each for each, there in zip(stored.networks, whole, strict=True) if there]
        if len(networks) < 4:
            raise SystemExit(f"{stored.file}: {len(networks)} networks of {part} have the scores {', '.join(names)}")
        return cls(
            PoolLattice(networks),
            np.array([each.val_losses[0] for each in networks]),
            np.array([np.mean(each.accuracies) for each in networks]),
            float(np.median([second for each in stored.networks for second in each.seconds])),
            {name: replace(known[name], values=known[name].values[whole]) for name in names},
        )

    def searched(self, method: str, seed: int) -> Iterator[tuple[int, float]]:
        """The networks that are trained, in order, each with the seconds that it took to choose it."""
        sampler, names = asked_of(method)
        scores = [self.scores[name] for name in names]
        once, each_time = sum(each.once for each in scores), sum(each.cost or 0.0 for each in scores)
        if sampler == "rungs":
            yield from self._in_rungs(scores[0].values, once, each_time, seed)
            return
        values = -np.stack([each.values for each in scores], 1) if scores else np.empty((len(self.losses), 0))
        asked: set[int] = set()

        def features(paths: np.ndarray) -> np.ndarray:
            asked.update(paths[:, 0].tolist())
            return np.asarray(values[paths[:, 0]])

        fits = FeasibleSet(self.lattice, [Sum("", self.lattice.scalars["macs"], np.inf)])
        context = Context(
            fits, 1, self.lattice.scalars, features=features if names else None, features_are_free=names == [PRIOR]
        )
        distributions = distributions_of(self.lattice.of.choices)
        made = samplers.load_sampler(sampler, seed, distributions, context)
        study = open_study("benchmark", InMemoryStorage(), made, 1)
        for _ in range(len(self.losses)):
            before, begun = len(asked), time.process_time()
            trial = study.ask(distributions)
            (place,) = self.lattice.path_of(trial.params)
            yield place, once + time.process_time() - begun + (len(asked) - before) * each_time
            once = 0.0
            study.tell(trial, float(self.losses[place]))

    def _in_rungs(self, scores: np.ndarray, once: float, cost: float, seed: int) -> Iterator[tuple[int, float]]:
        rng, scored, waited = np.random.default_rng(seed), [], once
        for place in rng.permutation(len(self.losses)).tolist():
            waited += cost
            scored.append(float(scores[place]))
            better = np.mean(np.array(scored) > scored[-1])
            if better < THIRD or rng.random() < CHANCE:
                yield place, waited
                waited = 0.0


def asked_of(method: str) -> tuple[str, list[str]]:
    """The sampler of a method, or rungs, and the scores that it asks for."""
    sampler, _, scores = method.replace(" of ", " with ", 1).partition(" with ")
    return sampler, scores.split(" + ") if scores else []


def expected_in(stored: truth.Truth, within: np.ndarray) -> Judged:
    """What a model expects of a part of the networks that has learned from the others."""
    archs = [each.arch for each in stored.networks]
    taught = np.flatnonzero(~within)
    values = np.full(len(archs), np.nan)
    if len(taught) > 1:
        predictor = Predictor([archs[place] for place in taught], stored.losses[taught])
        values[within] = -predictor.losses_of([archs[place] for place in np.flatnonzero(within)])
    return Judged(PRIOR, values, [0.0])


def search(candidates: Candidates, method: str, seed: int) -> dict[str, list[float]]:
    """Seconds after each training of a search, and the test accuracy of what it would choose then."""
    seconds, best, at = [], [], 0.0
    least = np.inf
    for place, chosen in candidates.searched(method, seed):
        at += chosen + candidates.seconds
        if candidates.losses[place] < least:
            least, accuracy = float(candidates.losses[place]), float(candidates.accuracies[place])
        seconds.append(round(at, 2))
        best.append(accuracy)
    return {"seconds": seconds, "accuracy": best}


def saved(data: pd.DataFrame, than: str = "random") -> dict[str, float]:
    """By what factor less time than another each method takes to the accuracy that this one has at a quarter of its
    time, or at its end where that is less.

    Args:
        data: see `reached_data`.
        than: the method that is compared with.
    """
    base = data[data["method"] == than]
    early = base[base["seconds"] <= max(base["seconds"].max() / 4, base["seconds"].min())].iloc[-1]
    level = min(early["accuracy"], base.iloc[-1]["accuracy"])  # what has the least loss may be less accurate
    first = base[base["accuracy"] >= level]["seconds"].min()
    found = {}
    for method, rows in data.groupby("method", sort=False):
        enough = rows[rows["accuracy"] >= level]["seconds"]
        found[str(method)] = float(first / enough.min()) if len(enough) else float("nan")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Search with every method and seed that the file lacks, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--truth", default=truth.DEFAULT, help="a shipped truth, or a file")
    parser.add_argument("--scores", type=Path, default=SCORES, help="of its networks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="random, the measure of all, among them")
    parser.add_argument("--part", default="band", choices=("all", *truth.SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=FILE, help="where searches are kept")
    asked = parser.parse_args(arguments)
    stored = truth.load(asked.truth)
    candidates = Candidates.of(stored, read_scores(asked.scores, stored), asked.methods, asked.part)
    about = {"part": asked.part, "networks": len(candidates.losses), "training_seconds": candidates.seconds}
    there = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    lines = [each for each in there if each["part"] != asked.part or about.items() <= each.items()]
    if lines != there:  # of a truth that has grown
        write_text(asked.out, "".join(json.dumps(line) + "\n" for line in lines))
    known = {(each["method"], each["seed"]): each for each in lines if each["part"] == asked.part}
    found = []
    for method in asked.methods:
        for seed in range(asked.seeds):
            if (method, seed) not in known:
                line = {"method": method, "seed": seed} | about | search(candidates, method, seed)
                with writing(asked.out), asked.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")
                known[method, seed] = line
            found.append(known[method, seed])
    data = reached_data(found)
    factors = saved(data)
    whole = data[data["method"] == "random"]["seconds"].max()
    for name, rows in data.groupby("method", sort=False):
        marks = [(share * whole, rows[rows["seconds"] <= share * whole]["accuracy"]) for share in (0.125, 0.25, 0.5, 1)]
        told = ", ".join(f"{100 * had.iloc[-1]:.2f} % after {at / 60:.0f} min" for at, had in marks if len(had))
        print(f"{name}: {told}; {factors[str(name)]:.2f} times as fast as random search to a quarter")


if __name__ == "__main__":
    main()
