"""Files outside the package, each alone in its folder or all together, through the command line of a search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.report.front import read_trials

METRIC = '''
"""Blocks of a network: what takes time on runtimes that call each alone."""
from nas.core.arch import calls_of
from nas.metrics import Metric


class Blocks(Metric):
    name = "blocks"
    title = "blocks"

    def predict(self, arch, table, confidence=None):
        return float(len(calls_of(arch)))


METRIC = Blocks()
'''
EVALUATOR = '''
"""Parameters for each multiply-add: no training, no epochs."""
from dataclasses import dataclass

from nas.evaluation.evaluators import Evaluator, Score
from nas.networks.building import cost_of


@dataclass(frozen=True)
class Density(Evaluator):
    power: float = 1.0

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        cost = cost_of(arch)
        return Score(-((cost.params / cost.macs) ** self.power), "density")


EVALUATOR = Density
'''
SAMPLER = '''
"""Mutations of the best network so far."""
import random

from optuna.samplers import BaseSampler
from optuna.trial import TrialState


class Climb(BaseSampler):
    def __init__(self, seed, context):
        self.rng, self.space = random.Random(seed), context.space

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not done:
            return self.space.params_of(self.space.sample(self.rng))
        best = min(done, key=lambda each: each.value)
        return self.space.params_of(self.space.mutate(self.space.arch(best.params), self.rng))

    def sample_independent(self, study, trial, name, distribution):
        raise NotImplementedError


SAMPLER = Climb
'''
STEP = '''
"""The winner as text for a printer."""
from nas.core.arch import Arch
from nas.core.files import write_text
from nas.search.steps import Step


class Card(Step):
    name = "card"
    after = "export"

    def inputs(self, run):
        return {"winner": run.output("repeat")["winner"]}

    def carry_out(self, run):
        arch = Arch.from_json((run.folder / "best.json").read_text())
        write_text(run.folder / "card.txt", arch.id)
        return {"stages": len(arch.stages)}

    def is_intact(self, run):
        return (run.folder / "card.txt").is_file()


STEP = Card()
'''
FAMILY = '''
"""Convolutions whose training also keeps the logits small."""
from dataclasses import dataclass

from nas.core.blocks import InvertedResidual, Logits
from nas.core.ops import Block, Conv, from_stage, one_of
from nas.core.space import Repeat, Space
from search_spaces.efficientformer import Pooled


@dataclass(frozen=True)
class Entry(Block):
    cout: int = from_stage()

    def build(self, x):
        return Conv(x.channels, self.cout, 3, 2, act="relu").module()


@dataclass(frozen=True)
class CalmLogits(Logits):
    heads: int = 1

    @staticmethod
    def loss(blocks, streams, recipe):
        print(f"asked of {len(blocks)} block", flush=True)
        return 0.01 * streams["x"].float().square().mean()


SPACE = Space(
    name="calm",
    input_shape=(1, 8, 8),
    classes=10,
    stages=(Repeat(Entry(), InvertedResidual(stride=1), width=one_of(8, 16), depth=one_of(1, 2)),),
    head=(Pooled(), CalmLogits()),
)
'''
OUTSIDE = {"blocks": METRIC, "density": EVALUATOR, "climb": SAMPLER, "card": STEP, "calm": FAMILY}


def search(folder: Path, files: dict[str, str], *flags: str) -> tuple[str, dict[str, object]]:
    """`nas search` on the runtime that runs nothing, with these files outside; what it printed and its result."""
    outside = folder / "outside"
    outside.mkdir(exist_ok=True)
    for name, text in files.items():
        (outside / f"{name}.py").write_text(text)
    small = "--trials 4 --workers 1 --finalists 1 --repeats 0 --final-epochs 1 --limit 200 --device cpu --runtime fake"
    command = [sys.executable, "-m", "nas", "search", "--out", str(folder / "run"), *small.split(), *flags]
    ran = subprocess.run(command, env=os.environ | {"NAS_PLUGINS": str(outside)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr, json.loads((folder / "run" / "result.json").read_text())


CALM = ("--space", "calm", "--dataset", "digits")
FLAGS = {
    "blocks": ("--budget", "blocks<=4"),
    "density": ("--evaluator", "{density: {power: 0.5}}"),
    "climb": ("--sampler", "climb"),
    "card": (),
    "calm": (),
}


def check(name: str, said: str, result: dict, run: Path) -> None:
    """What the search with this file must have left."""
    trials = read_trials(run / "trials.csv")
    evaluated = trials[trials["state"] == "evaluated"]
    if name == "blocks":
        (budget,) = result["budgets"]
        assert budget["used"] <= 4
        assert "blocks" in (run / "report.html").read_text()
    elif name == "density":
        density = -((evaluated["params"] / evaluated["macs"]) ** 0.5)
        assert evaluated["value"].tolist() == pytest.approx(density.tolist())
        assert result["score"] == "density"
    elif name == "climb":
        names = [column for column in trials if column.startswith("param.")]
        changed = trials[names].ne(trials[names].iloc[0]).sum(axis=1)
        assert len(trials) >= 4
        assert changed.iloc[1] >= 1  # never the same network again
    elif name == "card":
        assert (run / "card.txt").read_text() == result["winner"]["arch"]
        assert json.loads((run / "steps.json").read_text())["card"]["output"] == {"stages": 2}
    else:
        assert "asked of 1 block" in said


@pytest.fixture
def cached(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache-outside"))


def test_a_search_is_made_of_files_outside(tmp_path, cached):
    said, result = search(tmp_path, OUTSIDE, *CALM, *(flag for flags in FLAGS.values() for flag in flags))
    for name in OUTSIDE:
        check(name, said, result, tmp_path / "run")
