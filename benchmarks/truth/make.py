"""The stored truth: networks of `hybrid-32` really trained, to judge by them what is to replace a training.

24 networks are spread evenly in log MACs over what the space draws (`broad`), 56 lie in the middle fifth of the draws
by MACs (`band`: what a search within a budget has to rank); 20 of the band are trained with three seeds. Each is
trained with the recipe `small` on Fashion-MNIST as

    nas train ARCH --data fashion-mnist --recipe small --limit 12000

does. A seed is that of weights and order; the division of the images into training and validation stays the same.
One line of JSON a training goes to `fashion-mnist.jsonl` as soon as it is done:

- `arch`: the network as a JSON object, `set`: broad or band, `seed`;
- `val_loss`, `val_accuracy`, `test_loss`, `test_accuracy`: cross entropy in nats and share of right answers at the end;
- `seconds`: of processor time on one core that the training took, validation and test included;
- `recipe`: its name, `images`: to train and validate on together.

One process a core, one thread each. What is in the file is not trained again, so that the same command continues. Run:
nice -n 19 python benchmarks/truth/make.py [--minutes N] [--workers N]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, NasError
from nas.core.files import lock_of, writing
from nas.evaluation.data import Data, load_data
from nas.evaluation.evaluators import LOSS, Score
from nas.evaluation.recipes import RECIPES
from nas.evaluation.training import train
from nas.networks.building import build, cost_of
from nas.search.executors.local import Pool
from nas.search.workers import OnEpoch, Task

FILE = Path(__file__).with_name("fashion-mnist.jsonl")
SPACE = "hybrid-32"
DATA, IMAGES, RECIPE = "fashion-mnist", 12_000, "small"
DRAWS = 2000  # from which the networks are taken
BROAD, BAND = 24, 56
REPEATED, SEEDS = 20, 3  # networks of the band, and trainings of each
FIGURES = ("val_loss", "val_accuracy", "test_loss", "test_accuracy", "seconds")


class Planned(NamedTuple):
    """A training that the truth consists of."""

    arch: Arch
    set: str
    seed: int


def plan() -> list[Planned]:
    """All trainings, always the same ones; first every network once, then the further seeds."""
    space, rng = search_spaces.load(SPACE), random.Random(0)
    draws = list(dict.fromkeys(space.sample(rng) for _ in range(DRAWS)))
    macs = np.array([cost_of(arch).macs for arch in draws])
    low, high = np.quantile(macs, [0.4, 0.6])
    left = dict(enumerate(np.log(macs)))
    broad = []
    for wanted in np.linspace(min(left.values()), max(left.values()), BROAD):
        broad.append(min(left, key=lambda number: abs(left[number] - wanted)))
        del left[broad[-1]]
    band = [number for number in left if low <= macs[number] <= high][:BAND]
    once = [
        Planned(draws[number], name, 0) for name, numbers in (("broad", broad), ("band", band)) for number in numbers
    ]
    again = [Planned(draws[number], "band", seed) for seed in range(1, SEEDS) for number in band[:REPEATED]]
    return once + again


@dataclass(frozen=True)
class Trained(Score):
    """With the figures of the test split, cross entropy in nats and share of right answers."""

    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class Training:
    """Trains an arch, in a process of `nas.search.executors.local`."""

    dataset: str
    images: int
    recipe: str

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch) -> Trained:
        torch.set_num_threads(1)
        network, recipe = Arch.from_json(arch), RECIPES[self.recipe]
        data = _data(self.dataset, network.input_shape, self.images)
        begun = time.process_time()  # other work on the machine does not count
        found = train(build(network, seed=seed, drop_path=recipe.drop_path), data, recipe, seed=seed, test=True)
        figures = {name: getattr(found, name) for name in FIGURES} | {"seconds": time.process_time() - begun}
        return Trained(found.val_loss, LOSS, **figures)


@functools.lru_cache(maxsize=1)
def _data(dataset: str, input_shape: tuple[int, int, int], images: int) -> Data:
    return load_data(dataset, input_shape, limit=images)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of the truth; what a killed process left of a line is removed.

    Raises:
        InputError: a line is no JSON, or that of another training, naming it.
    """
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    found = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            there = line["recipe"], line["images"]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{file}:{number}: no line of the truth ({error}); remove it") from error
        if there != (RECIPE, IMAGES):
            raise InputError(
                f"{file}:{number}: trained with recipe {there[0]} on {there[1]} images, not {RECIPE} on {IMAGES}; "
                "name another file (--out)"
            )
        found.append(line)
    return found


def append(file: Path, line: dict[str, Any]) -> None:
    """Add a line that is on disk when this returns."""
    with writing(file), file.open("ab") as out:
        out.write(json.dumps(line).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def main(file: Path = FILE, minutes: float | None = None, workers: int | None = None) -> None:
    """Train what the file lacks.

    Args:
        file: of the truth.
        minutes: no training begins that would take longer than until then, by the longest so far; None for no end.
        workers: processes; None for one a core.
    """
    end = time.monotonic() + 60 * (np.inf if minutes is None else minutes)
    with lock_of(file), Pool(Training(DATA, IMAGES, RECIPE), workers or len(os.sched_getaffinity(0))) as pool:
        there = read(file)
        done = {(Arch.from_json(json.dumps(line["arch"])), line["seed"]) for line in there}
        everything = plan()
        left = deque(number for number, each in enumerate(everything) if (each.arch, each.seed) not in done)
        total, longest = len(everything), max((line["seconds"] for line in there), default=0.0)
        print(f"{total - len(left)} of {total} trainings are in {file}", flush=True)
        while True:
            while left and pool.idle and time.monotonic() + longest < end:
                number = left.popleft()
                pool.submit(Task(number, everything[number].arch.to_json(), everything[number].seed))
            if pool.idle == pool.size:
                break
            outcome = pool.wait()
            arch, name, seed = everything[outcome.key]
            if outcome.score is None:
                print(f"{name} {arch.id} seed {seed} has no result: {outcome.reason}", file=sys.stderr, flush=True)
                continue
            figures = {key: getattr(outcome.score, key) for key in FIGURES}
            line = {"arch": json.loads(arch.to_json()), "set": name, "seed": seed}
            append(file, line | figures | {"recipe": RECIPE, "images": IMAGES})
            longest = max(longest, figures["seconds"])
            told = f"test accuracy {figures['test_accuracy']:.2%}, {figures['seconds']:.0f} s"
            print(f"{name} {arch.id} seed {seed}: {told}", flush=True)
    if left:
        print(f"{len(left)} of {total} trainings are left; the same command continues", flush=True)


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train what the stored truth lacks.")
    parser.add_argument("--out", type=Path, default=FILE, help="the file")
    parser.add_argument("--minutes", type=float, help="end in so many minutes; default: when all is done")
    parser.add_argument("--workers", type=int, help="processes of one thread; default: one a core")
    return parser.parse_args(words)


if __name__ == "__main__":
    asked = _options()
    try:
        main(asked.out, asked.minutes, asked.workers)
    except NasError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
