"""From a trained network to a budget: step after step, the cheaper neighbour in its space that costs the least.

Latency-driven slimming as EfficientFormerV2 (arXiv:2212.08059, joint search) and NetAdapt (arXiv:1804.03230) describe
it; neither the code of the former nor every detail of it was published. What stands nowhere, and what is done here:

- What a step may take away: one block anywhere, or one choice of the space moved to its nearest value that
  saves something, where the parameters do not grow. Dropping a block keeps its shortcut, so the others run on.
- A child gets the leading parts of its parent's weights, ordered by their first-order Taylor importance on one batch of
  training images, anew at every step. A block of another kind starts fresh.
- What a step costs is the rise of the loss on validation images after the statistics of batch norms were taken anew
  (`by="accuracy"`: the fall of the accuracy, as printed); a fall of it counts as nothing.
- What a step saves is the fall of the one budget's metric, or of several the gain of the papers' joint score, the
  product of each metric to the power of minus its exponent (V2, eq. 6). Units scale all gains alike, so there are none.
- The action with the smallest cost for what it saves is taken; of those that cost nothing, the one that saves most.
- After a step the network is trained a little, `recover` epochs of the recipe with the teacher; 0 for not at all.

A run's folder holds a line for each step in `slimming.jsonl`, and its networks in `steps/`: each is a usable point.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

import latency_tables
from nas.core import parts
from nas.core.arch import Arch
from nas.core.errors import BudgetError, InputError, MissingLatency, RunError, suggest
from nas.core.files import FULL, lock, write_text, writing
from nas.core.ops import BlockModule
from nas.core.space import Space
from nas.core.units import to_ms
from nas.evaluation.checkpoint import read_weights, write_weights
from nas.evaluation.data import Data, load_data
from nas.evaluation.devices import cpu_threads, pick_device
from nas.evaluation.evaluators import Progress, Score
from nas.evaluation.exporting import export_arch
from nas.evaluation.metrics import evaluate
from nas.evaluation.pretrained import Loaded, digest_of, load_pretrained
from nas.evaluation.recalibration import recalibrate
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import read_recipe
from nas.evaluation.runs import default_folder, teacher_for, train_arch
from nas.evaluation.sampler import shuffled
from nas.evaluation.teacher import Teacher
from nas.evaluation.training import check_fit, train
from nas.networks.building import Network, build, load_weights, with_classes
from nas.networks.ordering import order_of, permuted, taylor
from nas.networks.weights import inherit
from nas.profiling.machine import this_machine
from nas.search.archs import load_arch
from nas.search.budgets import Budget
from nas.search.executors.local import Pool, gpus_for
from nas.search.limits import Estimate, Estimator, Limit, Survey, resolve
from nas.search.scoring import data_of
from nas.search.steps.measure import measure_arch
from nas.search.workers import Task
from nas.tables.table import Table

RULES = ("drop",)
EXPONENTS: Mapping[str, float] = {"latency_ms": 1.0}
OTHER_EXPONENT = 0.5  # of what is not latency, as V2's of the parameters
FINE_TUNING: Mapping[str, Any] = {"lr": 1e-3, "batch_size": 32}  # the recipe's, where neither name nor field says more
NO_TEACHER: Mapping[str, Any] = {"distill_hard": 0.0, "distill_soft": 0.0, "distill_tokens": 0.0, "start": "fresh"}
TAYLOR_IMAGES = 64  # behind an order of weights
STEPS, RECORD, CURVE = "slimming.jsonl", "slimming.json", "slimming.csv"
ORIGINAL, TRIED = "original", "tried.pt"
OF_OTHERS = ("request.yaml", "arch.json", "checkpoint.pt")
By = Literal["loss", "accuracy"]
Until = Literal["budget", "smallest"]
Dropped = tuple[int, int]  # a block: its stage, and its place there


@dataclass(frozen=True)
class Action:
    """What a step could take away.

    Attributes:
        text: what it is.
        arch: what is left, a point of the space.
        dropped: the block that goes, where it is one.
        estimate: what is left costs.
        gain: what it saves, see `gain_of`.
    """

    text: str
    arch: Arch
    dropped: Dropped | None
    estimate: Estimate
    gain: float


def gain_of(limits: Sequence[Limit], before: Estimate, after: Estimate, exponents: Mapping[str, float]) -> float:
    """What is saved: of the one limit's metric in its unit, or of several the gain of the joint score, from 100 on."""
    if len(limits) == 1:
        return before.used[0] - after.used[0]
    gain = 1.0
    for limit, new, old in zip(limits, after.used, before.used, strict=True):
        gain *= (old / new) ** exponents.get(limit.metric, OTHER_EXPONENT)
    return 100 * (gain - 1)


def actions_of(
    space: Space, arch: Arch, estimator: Estimator, exponents: Mapping[str, float] = EXPONENTS
) -> list[Action]:
    """Everything that a step could take away from a network: its neighbours in the space that cost less."""
    before = estimator.estimate(arch)
    found: dict[tuple[Arch, Dropped | None], Action] = {}

    def add(text: str, child: Arch, dropped: Dropped | None) -> bool:
        estimate = estimator.estimate(child)
        gain = gain_of(estimator.limits, before, estimate, exponents)
        if gain <= 0 or estimate.params > before.params:
            return False
        found.setdefault((child, dropped), Action(text, child, dropped, estimate, gain))
        return True

    for text, child, dropped in _without_a_block(space, arch):
        add(text, child, dropped)
    by_blocks = {child for child, _ in found}
    for values in _neighbours(space, arch):
        for text, child in values:
            if child in by_blocks or add(text, child, None):
                break
    return list(found.values())


def _without_a_block(space: Space, arch: Arch) -> Iterator[tuple[str, Arch, Dropped]]:
    for stage, blocks in enumerate(arch.stages[:-1]):
        for place in range(1, len(blocks)):  # the first one brings the stage's width and side
            child = _less(arch, (stage, place))
            if child in space:
                text = f"block {place} of stage {stage + 1} ({type(blocks[place]).__name__})"
                yield text, child, (stage, place)


def _less(arch: Arch, dropped: Dropped) -> Arch:
    stage, place = dropped
    blocks = arch.stages[stage]
    left = (*blocks[:place], *blocks[place + 1 :])
    return dataclasses.replace(arch, stages=(*arch.stages[:stage], left, *arch.stages[stage + 1 :]))


def _neighbours(space: Space, arch: Arch) -> Iterator[Iterator[tuple[str, Arch]]]:
    """The networks that a change of one choice gives, for each choice: downwards and upwards, the nearest value first;
    values that are words have no order, and stand alone.
    """
    params = space.params_of(arch)

    def changed(name: str, values: Sequence[Any]) -> Iterator[tuple[str, Arch]]:
        for value in values:
            with contextlib.suppress(InputError):  # no network of a part of a space
                child = space.arch(params | {name: value})
                if child != arch:
                    yield _difference(params, space.params_of(child)), child

    for name, choice in space.choices.items():
        place = choice.values.index(params[name])
        below, above = choice.values[:place][::-1], choice.values[place + 1 :]
        words = any(isinstance(value, str) for value in choice.values)
        for values in [(each,) for each in (*below, *above)] if words else [below, above]:
            yield changed(name, values)


def _difference(params: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value} to {other[name]}" for name, value in params.items() if other[name] != value)


def choose(actions: Sequence[Action], costs: Sequence[float | None]) -> int:
    """The place of the action that is taken.

    Args:
        actions: one at least.
        costs: by how much each is worse than the network as it is; None for those without a value, which are never
            taken.

    Raises:
        RunError: no action has a value.
    """
    known = [place for place, cost in enumerate(costs) if cost is not None]
    if not known:
        raise RunError("no action of this step could be scored")

    def rank(place: int) -> tuple[float, float, str]:
        action, cost = actions[place], max(cast(float, costs[place]), 0.0)
        return cost / action.gain, -action.gain, f"{action.arch.id} {action.dropped}"

    return min(known, key=rank)


def child_of(parent: Network, arch: Arch, dropped: Dropped | None = None, seed: int = 0) -> tuple[Network, list[str]]:
    """A child with the leading parts of its parent's weights, and which of its blocks start fresh, in words.

    Args:
        parent: a trained network; what leads in its weights should be what matters.
        arch: the child.
        dropped: the block of the parent that the child does without.
        seed: of fresh weights.
    """
    child, source = build(arch, seed=seed), parent
    if dropped is not None:
        modules = [
            cast(BlockModule, block)
            for stage, blocks in enumerate(parent.stages)
            for place, block in enumerate(cast(nn.ModuleList, blocks))
            if (stage, place) != dropped
        ]
        source = Network(_less(parent.arch, dropped), modules)
    return child, list(inherit(child, source))


def ordered(network: Network, data: Data) -> Network:
    """A network with the same outputs, in whose weights what matters on one batch of training images leads."""
    size = min(TAYLOR_IMAGES, len(data.train))
    images, labels = next(data.train.read(shuffled(len(data.train), size, 0)[:1]))
    network = network.cpu().eval()
    return permuted(network, order_of(network, taylor(network, images, labels))).eval()


@dataclass(frozen=True)
class ActionScorer:
    """Says what an action leaves of a network; a `Scorer` whose archs are texts of `asking`.

    Attributes:
        dataset, input_shape, seed, limit: as `load_data` takes them.
        device: where.
        by: what counts.
        recalibrate: training images that the statistics of batch norms are taken from.
        validate: validation images; None for all.
    """

    dataset: str
    input_shape: tuple[int, int, int]
    seed: int
    limit: int | None
    device: str
    by: By = "loss"
    recalibrate: int = 512
    validate: int | None = None

    def __call__(self, arch: str, seed: int, on_epoch: Any = None) -> Score:
        """Score an action."""
        torch.set_num_threads(1)
        asked = json.loads(arch)
        parent = _read(Path(asked["weights"]), json.dumps(asked["parent"]), asked["id"])
        dropped = asked["dropped"] and (asked["dropped"][0], asked["dropped"][1])
        child, _ = child_of(parent, Arch.from_json(json.dumps(asked["arch"])), dropped, seed)
        data = data_of(self.dataset, self.input_shape, self.seed, self.limit)
        recalibrate(child, data.train, self.recalibrate, device=self.device)
        reached = evaluate(child, data.val, device=self.device, first=self.validate)
        value = reached.loss if self.by == "loss" else 1 - reached.accuracy
        name = f"slimmed_{'loss' if self.by == 'loss' else 'error'}"
        return Score(value, name, val_loss=reached.loss, val_accuracy=reached.accuracy)


def asking(weights: Path, id: str, parent: Arch, arch: Arch, dropped: Dropped | None) -> str:
    """What an `ActionScorer` is asked: a parent with its weights, told by their digest, and its child."""
    networks = {"parent": json.loads(parent.to_json()), "arch": json.loads(arch.to_json())}
    return json.dumps({"weights": str(weights), "id": id, "dropped": dropped, **networks})


@functools.lru_cache(maxsize=2)
def _read(weights: Path, arch: str, id: str) -> Network:
    """A network of a step.

    Raises:
        InputError: its weights are gone, or others.
    """
    network = build(Arch.from_json(arch))
    load_weights(network, read_weights(weights), str(weights))
    if digest_of(network) != id:
        raise InputError(f"{weights}: not the weights that this step left there; put them back, or begin a new run")
    return network


def slim(
    arch: str | Arch,
    weights: str,
    table: str | Table,
    budgets: Sequence[str],
    data: str,
    folder: Path | str | None = None,
    *,
    rule: str = "drop",
    until: Until = "budget",
    by: By = "loss",
    exponents: Mapping[str, float] = EXPONENTS,
    recover: int = 1,
    recalibrate: int = 512,
    validate: int | None = None,
    fields: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    workers: int = 1,
    device: str = "auto",
    seed: int = 0,
    limit: int | None = None,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Slim a trained network down to budgets, fine-tune, measure and export what is left; or continue doing so.

    Args:
        arch: a preset, a file of an arch, or an arch; a point of its family's space.
        weights: trained ones, as `load_pretrained` takes them. Where they are for other classes, the network is first
            trained on these data.
        table: predicts latency.
        budgets: as `nas.search.budgets` spells them, one at least.
        data: as `load_data` takes it.
        folder: of the run; None for `runs/slim-NAME-DATA`. A run in it goes on.
        rule: a name in `RULES`.
        until: `budget` ends with the first network that keeps the budgets, `smallest` where nothing is left to take
            away; the result is that first network either way.
        by: what an action costs, validation loss or accuracy.
        exponents: of metrics in the joint score of several budgets.
        recover: epochs after each step.
        recalibrate: training images behind the statistics of batch norms.
        validate: validation images that actions are compared on; None for all.
        fields: of the recipe of every training, where they differ from those of `recipe`.
        recipe: a name in `nas.evaluation.recipes`; None for the defaults at a lower learning rate.
        teacher: of every training after the first step; None for the original network.
        teacher_weights: its own.
        workers: processes that try actions.
        device: auto, cpu, cuda or mps.
        seed: of the division of images, of orders, of fresh weights.
        limit: most images to train and validate on together.
        log: called with every line worth telling.
        progress: called with (done, total, seconds left or None, text).

    Returns:
        `original` and `result` with what they cost and reach, `steps`, `limits`, and the paths. Where the original
        keeps the budgets already, `result` and `run` are None: nothing was done or written.

    Raises:
        BudgetError: no network of the space keeps the budgets, naming what is smallest.
        InputError: something does not fit.
        MissingLatency: the table lacks rows of the space.
        RunError: another run is in the folder, or another process has it.
    """
    if rule not in RULES:
        raise InputError(suggest("rule", rule, RULES))
    name = arch if isinstance(arch, str) else arch.id
    network = load_arch(arch) if isinstance(arch, str) else arch
    table = Table.read(latency_tables.find(table)) if isinstance(table, str) else table
    images = load_data(data, network.input_shape, seed=seed, limit=limit)
    if images.classes < 2:
        raise InputError(f"dataset {data}: all images are of one class, so every network is right; add another class")
    tuning = {**({} if recipe else FINE_TUNING), **(fields or {})}
    settings = read_recipe(tuning, recipe)
    check_fit(images, settings.model_copy(update=NO_TEACHER), None)
    guide = teacher_for(images, teacher, teacher_weights)
    space = _space(network, table, images.classes)
    estimator = _estimator(space, table, budgets, seed)
    place = Path(folder) if folder is not None else default_folder(Path(name).stem, images, "slim")
    where = str(pick_device(device))
    scorer = ActionScorer(data, network.input_shape, seed, limit, where, by, recalibrate, validate)
    run = _Run(place, with_classes(network, images.classes), space, estimator, images, scorer, log, progress or _silent)
    begin = estimator.estimate(with_classes(network, space.classes))
    _say_begin(run, Path(name).stem, begin)
    if until == "budget" and not estimator.misfit(begin):
        budget = ", ".join(limit.asked for limit in estimator.limits)
        log(f"{Path(name).stem} keeps {budget} already: nothing to slim; fine-tune it with nas train, or ask for less")
        cost = {"latency_ms": to_ms(begin.latency.total_us), "params": begin.params, "macs": begin.macs}
        limits = [limit.as_data() for limit in estimator.limits]
        return {"original": cost, "result": None, "steps": [], "limits": limits, "run": None}
    asked: dict[str, Any] = {"arch": run.arch.id, "weights": weights, "data": images.identity, "rule": rule}
    asked |= {"table_hash": table.hash, "limits": [each.as_data() for each in estimator.limits], "by": by, "seed": seed}
    asked |= {"exponents": dict(exponents), "recover": recover, "recalibrate": recalibrate, "validate": validate}
    asked |= {"recipe": settings.model_dump(), "teacher": guide.id if guide else None}
    with contextlib.ExitStack() as held:
        held.enter_context(lock(place / "lock", place))
        held.enter_context(writing(place, FULL))
        held.enter_context(cpu_threads(1))
        loaded = None if run.has_original else run.load(weights, seed)
        run.keep(asked)
        if loaded is not None:
            _keep_original(run, loaded, data, weights, {**tuning, **NO_TEACHER}, recipe, seed, limit, where)
        original = build(run.arch)
        load_weights(original, read_weights(place / ORIGINAL / "weights.pt"), str(place / ORIGINAL))
        mine = place / ORIGINAL
        guide = guide or teacher_for(images, str(mine / "arch.json"), str(mine / "weights.pt"))
        taught = settings if settings.distills else settings.model_copy(update={"distill_soft": 1.0})
        short = taught.model_copy(update={"epochs": max(recover, 1), "validate_every": max(recover, 1)})
        short = short.model_copy(update={"ema_decay": None, "start": "fresh"})
        _take_steps(run, original, exponents, until, workers, seed, short if recover else None, guide)
        best = next(each for each in run.lines if each["fits"])
        names = (teacher, teacher_weights) if teacher else (str(mine / "arch.json"), str(mine / "weights.pt"))
        given = {**tuning, "start": "fresh", **({} if settings.distills else {"distill_soft": 1.0})}
        final = train_arch(
            load_arch(place / best["arch_file"]),
            data,
            place,
            given,
            recipe=recipe,
            weights=str(place / best["weights"]),
            teacher=names[0],
            teacher_weights=names[1],
            device=where,
            seed=seed,
            limit=limit,
            progress=run.progress,
        )
        result = best | {key: final[key] for key in ("test_accuracy", "test_loss", "val_accuracy", "val_loss")}
        result |= {"measured_ms": run.measured(best), "predicted_ms": best["latency_ms"]}
        exported = export_arch(load_arch(place / "arch.json"), place / "best.onnx", weights=str(place / "weights.pt"))
        result |= {"onnx": exported["file"], "onnx_difference": exported["difference"]}
        tested = evaluate(original, images.test, device=where)
        first = run.lines[0] | {"test_accuracy": tested.accuracy, "test_loss": tested.loss}
        run.draw(run.lines)
        for left in (*place.glob("steps/*.checkpoint.pt"), *place.glob(f"steps/{TRIED}")):
            left.unlink()
        found = {"asked": asked, "original": first, "result": result, "steps": run.lines}
        write_text(place / RECORD, json.dumps(found, indent=2) + "\n")
    return found | {"run": str(place), "limits": asked["limits"]}


def _silent(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
    pass


def _space(arch: Arch, table: Table, classes: int) -> Space:
    """The space of a network, with the classes of the data, or where the table lacks those, others that it has: so many
    more or fewer logits take next to no time.

    Raises:
        InputError: the network is no point of it.
        TableError, MissingLatency: the table is of another resolution, or lacks rows.
    """
    own = parts.load(arch.family, arch.input_shape[-1])
    problem: MissingLatency | None = None
    for count in dict.fromkeys((classes, arch.classes, own.classes)):
        asked = dataclasses.replace(own, input_shape=arch.input_shape, classes=count)
        space = own if asked == own else asked  # that knows its rows already
        try:
            table.require(space)
        except MissingLatency as error:
            problem = problem or error
            continue
        space.params_of(with_classes(arch, count))
        return space
    assert problem is not None
    raise problem


def _estimator(space: Space, table: Table, budgets: Sequence[str], seed: int) -> Estimator:
    if not budgets:
        raise InputError("slimming goes down to a budget: name one, such as latency_ms<=6 or latency_ms<=p60")
    asked = [Budget.parse(text) for text in budgets]
    tables = {each.table: Table.read(latency_tables.find(each.table)) for each in asked if each.table is not None}
    for each in tables.values():
        each.require(space)
    return Estimator(table, resolve(asked, Survey(space, seed), table, tables), tables)


@dataclass
class _Run:
    """A folder with what is in it; `lines` are the steps so far."""

    folder: Path
    arch: Arch
    space: Space
    estimator: Estimator
    data: Data
    scorer: ActionScorer
    log: Callable[[str], None]
    progress: Progress

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The steps that were taken, the original first."""
        path = self.folder / STEPS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    @property
    def has_original(self) -> bool:
        """Whether the network that slimming begins with is there, trained on the data's classes."""
        return (self.folder / ORIGINAL / "result.json").is_file()

    def load(self, weights: str, seed: int) -> tuple[Network, Loaded]:
        """The network with the weights that are asked for."""
        network = build(self.arch, seed=seed)
        return network, load_pretrained(network, weights)

    def keep(self, asked: Mapping[str, Any]) -> None:
        """Write down what is asked for, or compare it with what the run was begun with."""
        path = self.folder / RECORD
        if not path.is_file():
            if others := [each for each in OF_OTHERS if (self.folder / each).exists()]:
                raise InputError(
                    f"{self.folder}: there is {others[0]} of another run, which slimming would write over; choose "
                    "another folder (--out)"
                )
            write_text(path, json.dumps({"asked": asked}, indent=2) + "\n")
            return
        there = json.loads(path.read_text(encoding="utf-8"))["asked"]
        here = json.loads(json.dumps(asked))
        if differs := [key for key in here if there.get(key) != here[key]]:
            raise RunError(
                f"{self.folder}: the run there was begun with another {' and another '.join(differs)}; give the same, "
                "or name another folder (--out)"
            )

    def add(self, network: Network, arch: Arch, facts: Mapping[str, Any]) -> None:
        """Keep a step: first its network, then its line, and the curve."""
        lines = self.lines
        name = f"steps/{len(lines):03d}"
        write_text(self.folder / f"{name}.json", network.arch.to_json() + "\n")
        write_weights(self.folder / f"{name}.pt", network)
        estimate = self.estimator.estimate(arch)
        latency = estimate.latency
        low, high = (None if us is None else to_ms(us) for us in (latency.low_us, latency.high_us))
        line = {"step": len(lines), **facts, "arch": network.arch.id, "latency_ms": to_ms(latency.total_us)}
        line |= {"low_ms": low, "high_ms": high, "params": estimate.params, "macs": estimate.macs}
        line |= {"used": list(estimate.used), "fits": not self.estimator.misfit(estimate)}
        line |= {"arch_file": f"{name}.json", "weights": f"{name}.pt", "id": digest_of(network)}
        lines.append(line)
        write_text(self.folder / STEPS, "".join(json.dumps(each) + "\n" for each in lines))
        self.draw(lines)

    def draw(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the curve, accuracy against latency."""
        import pandas as pd

        write_text(self.folder / CURVE, pd.DataFrame(lines).to_csv(index=False))

    def measured(self, line: Mapping[str, Any]) -> float | None:
        """The latency of a step's network in ms, measured once; None where the table is not of this machine."""
        known = json.loads((self.folder / RECORD).read_text(encoding="utf-8")).get("result", {})
        if known.get("arch") == line["arch"] and known["measured_ms"] is not None:
            return float(known["measured_ms"])
        table = self.estimator.table
        if not this_machine(table.header.runtime).measured(table.header):
            self.log(f"NOT THIS MACHINE: {table.where} was measured on {table.header.cpu}; the result is not measured")
            return None
        return measure_arch(load_arch(self.folder / line["arch_file"]), table).us / 1e3

    def reached(self, line: Mapping[str, Any], arch: Arch | None = None, dropped: Dropped | None = None) -> str:
        """What to ask the scorer of a child of a step's network; of that itself where no other is named."""
        parent = load_arch(self.folder / line["arch_file"])
        return asking(self.folder / line["weights"], line["id"], parent, arch or parent, dropped)


def _say_begin(run: _Run, name: str, estimate: Estimate) -> None:
    latency, table = estimate.latency, run.estimator.table
    span = "" if latency.low_us is None else f" ({to_ms(latency.low_us):.4g} to {to_ms(latency.high_us or 0.0):.4g})"
    run.log(f"{name}: {to_ms(latency.total_us):.4g} ms{span} predicted by {table.where}")
    if run.space.classes != run.data.classes:
        run.log(f"the table has no classifier of {run.data.classes} classes: priced with one of {run.space.classes}")
    for limit in run.estimator.limits:
        run.log(f"budget {limit.asked}: {limit.title}")


def _keep_original(
    run: _Run,
    found: tuple[Network, Loaded],
    data: str,
    weights: str,
    fields: Mapping[str, Any],
    recipe: str | None,
    seed: int,
    limit: int | None,
    device: str,
) -> None:
    """Write the network that slimming begins with; one with a fresh classifier is trained first."""
    mine, (network, loaded) = run.folder / ORIGINAL, found
    for text in loaded.notes:
        run.log(text)
    if loaded.fresh_classifier:
        run.log("the original is trained on these data first")
        more: dict[str, Any] = {"device": device, "seed": seed, "limit": limit, "progress": run.progress}
        train_arch(run.arch, data, mine, fields, recipe=recipe, weights=weights, **more)
        return
    write_text(mine / "arch.json", run.arch.to_json() + "\n")
    write_weights(mine / "weights.pt", network)
    write_text(mine / "result.json", json.dumps({"start": loaded._asdict()}) + "\n")


def _take_steps(
    run: _Run,
    original: Network,
    exponents: Mapping[str, float],
    until: Until,
    workers: int,
    seed: int,
    recovery: Recipe | None,
    teacher: Teacher | None,
) -> None:
    """Take steps until the end, from where the run is."""
    if not run.lines:
        scored = _score_of(run, original, seed)
        run.add(ordered(original, run.data), with_classes(run.arch, run.space.classes), {"taken": "", **scored})
    with Pool(run.scorer, workers, gpus=gpus_for(run.scorer.device)) as pool:
        while until == "smallest" or not run.lines[-1]["fits"]:
            line = run.lines[-1]
            parent = load_arch(run.folder / line["arch_file"])
            arch = with_classes(parent, run.space.classes)
            actions = actions_of(run.space, arch, run.estimator, exponents)
            if not actions:
                if any(each["fits"] for each in run.lines):
                    return
                raise BudgetError(
                    f"nothing is left to take away, and {run.estimator.misfit(run.estimator.estimate(arch))}: the "
                    f"smallest child is arch {arch.id} ({run.folder / line['arch_file']}); ask for what it takes"
                )
            _take_step(run, pool, line, actions, seed, recovery, teacher)


def _take_step(
    run: _Run,
    pool: Any,
    line: Mapping[str, Any],
    actions: Sequence[Action],
    seed: int,
    recovery: Recipe | None,
    teacher: Teacher | None,
) -> None:
    """Try all actions, take one, and keep what it leaves."""
    children = [with_classes(each.arch, run.data.classes) for each in actions]
    tasks = [
        Task(number, run.reached(line, child, action.dropped), seed)
        for number, (child, action) in enumerate(zip(children, actions, strict=True))
    ]
    scores: list[Score | None] = [None] * len(actions)
    reasons = []
    for done, outcome in enumerate(pool.run(tasks), 1):
        scores[outcome.key] = outcome.score
        reasons += [outcome.reason] if outcome.score is None else []
        run.progress(done, len(tasks), None, f"step {line['step'] + 1}: {done} of {len(tasks)} actions")
    costs = [None if score is None else score.value - line["value"] for score in scores]
    try:
        place = choose(actions, costs)
    except RunError as error:
        raise RunError(f"step {line['step'] + 1}: {error}; first: {reasons[0]}") from error
    action, score, cost = actions[place], cast(Score, scores[place]), cast(float, costs[place])
    parent = _read(run.folder / line["weights"], load_arch(run.folder / line["arch_file"]).to_json(), line["id"])
    network, fresh = child_of(parent, children[place], action.dropped, seed)
    recalibrate(network, run.data.train, run.scorer.recalibrate, device=run.scorer.device)
    checkpoint = run.folder / "steps" / f"{line['step'] + 1:03d}.checkpoint.pt"
    if recovery is not None:
        start = digest_of(network)
        train(
            network,
            run.data,
            recovery,
            device=run.scorer.device,
            seed=seed,
            teacher=teacher,
            start=start,
            checkpoint=checkpoint,
        )
    scored = _score_of(run, network, seed)
    facts: dict[str, Any] = {"taken": action.text, "dropped": action.dropped, "fresh": fresh, "actions": len(actions)}
    facts |= {"failed": len(reasons), "gain": action.gain, "cost": cost, "accuracy_cut": score.val_accuracy}
    facts |= {"saved_ms": line["latency_ms"] - to_ms(action.estimate.latency.total_us), **scored}
    run.add(ordered(network, run.data), action.arch, facts)
    checkpoint.unlink(missing_ok=True)
    what = "loss" if run.scorer.by == "loss" else "error"
    run.log(
        f"step {line['step'] + 1}: {action.text}: saves {facts['saved_ms']:.4g} ms "
        f"({to_ms(action.estimate.latency.total_us):.4g} left), costs {cost:+.4g} {what}; accuracy "
        f"{line['accuracy']:.2%}, then {score.val_accuracy:.2%}, in the end {facts['accuracy']:.2%}; best of "
        f"{len(actions)} actions"
    )


def _score_of(run: _Run, network: Network, seed: int) -> dict[str, Any]:
    """What a network is compared by, as its children will be: on validation images, with its norms taken anew."""
    trial = run.folder / "steps" / TRIED
    write_weights(trial, network)
    asked = asking(trial, digest_of(network), network.arch, network.arch, None)
    score = run.scorer(asked, seed)
    trial.unlink()
    return {"value": score.value, "loss": score.val_loss, "accuracy": score.val_accuracy}
