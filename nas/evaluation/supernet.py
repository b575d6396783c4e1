"""The training of a supernet: at every step other networks of the space, on slices of its weights.

Several processes can train together: at each step they run the same networks, each on its part of the images,
and average the gradients. So they need the same weights, none waits for another one's larger network, and what is
learned does not depend on how many they are. (Different networks in each would see more of the space in a step, but the
largest of them would decide how long it takes.)
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.files import hash_of, lock
from nas.evaluation.augmentation import Mix, distorted, rand_augment
from nas.evaluation.checkpoint import read_checkpoint, write_checkpoint
from nas.evaluation.criterion import Criterion
from nas.evaluation.data import Batch, Data, DataRequest, load
from nas.evaluation.devices import autocast, cpu_threads, mixed_seed, naming_memory, seeded, step_dtype
from nas.evaluation.distributed import joined, of_first, own_process, summed, together
from nas.evaluation.evaluators import Progress
from nas.evaluation.losses import soft_loss
from nas.evaluation.metrics import TrainingDiverged, laid_out
from nas.evaluation.network import TrainedNetwork, block_modules
from nas.evaluation.optimization import Schedule, clip, make_optimizer
from nas.evaluation.recipe import Recipe
from nas.evaluation.sampler import Share, shuffled
from nas.evaluation.training import check_fit
from nas.networks.supernet import Supernet

FILE = "supernet.pt"
CHECKPOINT = "checkpoint.pt"
BEGIN = "begin.pt"  # first weights, for several processes
CHECKPOINT_SECONDS = 30.0  # between two checkpoints: what a kill costs at most, with the time of a step
DRAWN = 64  # networks at once
POOL = 2048  # even draws from which those are drawn that are even over kinds
FITTINGS = 20
READ_EVERY = 20  # steps between two looks at the losses
FULL = 1000  # the schedule's steps where time decides how long a training is

Draw = Callable[[np.random.Generator, int], Sequence[Arch]]
Drawn = Callable[[int], Sequence[Arch]]
"""The networks of `DRAWN` steps, the children of each behind one another, from the number of that part."""

# fields of a recipe that are about one network alone, or that a supernet counts otherwise
IGNORED = ("epochs", "validate_every")
NOT_SHARED = {
    *("multi_scale", "accumulate", "host_lr", "host_frozen", "start", "drop_path", "dropout", "branch_dropout"),
    *("distill_hard", "distill_soft", "temperature", "distill_tokens", "ema_decay"),
}


@dataclass(frozen=True)
class Plan:
    """How a supernet is trained.

    Attributes:
        recipe: optimizer, schedule and augmentation; its epochs do not count.
        steps: how many.
        minutes: instead, how long, checkpoints and all; the schedule then runs by the clock.
        children: networks drawn for each step, whose gradients are averaged.
        sandwich: the networks that every step trains beside them, the largest first (arXiv:2003.11142, sec. 3.1).
        distill: all but the largest learn its answers in place of labels (in-place distillation, the same).
    """

    recipe: Recipe
    steps: int
    minutes: float | None = None
    children: int = 1
    sandwich: tuple[Arch, ...] = ()
    distill: bool = False

    def check(self) -> None:
        """Raises: InputError, where a supernet cannot be trained so."""
        usual = Recipe()
        for name in sorted(NOT_SHARED):
            if getattr(self.recipe, name) != getattr(usual, name):
                raise InputError(
                    f"recipe: {name} is {getattr(self.recipe, name)!r}, but a supernet is trained without it: leave it "
                    "out"
                )
        if self.distill and not self.sandwich:
            raise InputError("distill: only the largest network of a step can teach the others; set sandwich, too")


def even_over_kinds(feasible: Any, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws from what fits in which every kind of a stage is as frequent as any other there, as far as it fits.

    Most networks of a hybrid space have the kinds with the most choices: drawn evenly over networks, a kind with few is
    hardly trained, and its networks seem bad. So even draws are drawn from once more, with weights that make the kinds
    of each stage even (iterative proportional fitting). Where there are no kinds, draws stay even over networks.

    Args:
        feasible: a `nas.search.feasible.FeasibleSet`.
        rng: of the draws.
        count: how many.

    Returns:
        Paths. Shape: (count, layers)
    """
    layers = [(number, layer) for number, layer in enumerate(feasible.layers) if "kind" in layer.names]
    if not layers:
        return np.asarray(feasible.draw(rng, count))
    paths = np.asarray(feasible.draw(rng, max(POOL, count)))
    kinds = [layer.codes[layer.way[paths[:, number]], layer.names.index("kind")] for number, layer in layers]
    members = [[np.flatnonzero(codes == code) for code in np.unique(codes)] for codes in kinds]
    weights = np.full(len(paths), 1 / len(paths))
    for _ in range(FITTINGS):
        for groups in members:
            for group in groups:
                weights[group] /= weights[group].sum() * len(groups)
    return np.asarray(paths[rng.choice(len(paths), count, p=weights / weights.sum())])


def drawn_by(draw: Draw, plan: Plan, seed: int) -> Drawn:
    """Networks from what draws them."""
    return lambda part: draw(np.random.default_rng([seed, part]), DRAWN * plan.children)


def train_supernet(
    supernet: Supernet,
    drawn: Drawn,
    data: Data,
    plan: Plan,
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    threads: int = 1,
    progress: Progress | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train a supernet into a file of its folder, or go on with that; done already, it is only looked at.

    On one CPU thread, a training of so many steps that was killed ends with the very weights of an undisturbed one.

    Args:
        supernet: with its first weights, which it begins from; those of the file are not put into it.
        drawn: networks, evenly.
        data: `train` is read.
        plan: how.
        folder: its own.
        seed: of networks, order and augmentation.
        device: where.
        threads: of the CPU.
        progress: called with (done, total, seconds left or None, text).
        checkpoint_seconds: between two checkpoints.

    Returns:
        `file`, its `hash`, and the `steps` of its training.

    Raises:
        InputError: what is in the folder is damaged or that of another training; or the plan does not fit the data.
        TrainingDiverged: naming step and network.
        RunError: another process trains there, or it cannot be written.
    """
    plan.check()
    with contextlib.ExitStack() as held:
        where = held.enter_context(joined(device))
        held.enter_context(cpu_threads(threads))
        check_fit(data, plan.recipe, None)
        if own_process()[0] == 0:
            held.enter_context(lock(folder / "training.lock", folder))
        training = _Training(supernet, drawn, data, plan, where, seed)
        file, checkpoint = folder / FILE, folder / CHECKPOINT
        if not of_first(file.is_file()):
            held.enter_context(naming_memory(plan.recipe.batch_size, data.train.input_shape, where))
            if of_first(checkpoint.is_file()):
                training.restore(checkpoint)
            training.run(checkpoint, checkpoint_seconds, progress)
            if own_process()[0] == 0:
                training.finish(file)
        found = {}
        if own_process()[0] == 0:
            content = read_checkpoint(file, training.identity)
            checkpoint.unlink(missing_ok=True)
            found = {"file": str(file), "hash": hash_of(file), "steps": content["steps"]}
        return dict(of_first(found))


def train_together(
    processes: int,
    supernet: Supernet,
    drawn: Drawn,
    data: Data,
    plan: Plan,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`train_supernet` in several processes of this machine, on CUDA one a GPU; returns and raises as that.

    Raises:
        InputError: the plan is one by the clock: then nobody knows how many networks to draw.
        RunError: a process ends.
    """
    if plan.minutes is not None:
        raise InputError("minutes: several processes train for a number of steps; give steps instead")
    begin = folder / BEGIN
    write_checkpoint(begin, {}, {"space": supernet.space, "weights": supernet.weights, "sizes": supernet.sizes})
    networks = [[arch.to_json() for arch in drawn(part)] for part in range(math.ceil(plan.steps / DRAWN))]
    options = {"seed": seed, "device": device, "threads": max(threads // processes, 1)}

    def tell(stage: tuple[Any, ...]) -> None:
        if progress is not None:
            progress(*stage)

    try:
        found: dict[str, Any] = together(
            processes, _train_part, begin, networks, data.request, plan, folder, options, tell=tell
        )
    finally:
        begin.unlink(missing_ok=True)
    return found


def _train_part(
    tell: Callable[[Any], None],
    begin: Path,
    networks: Sequence[Sequence[str]],
    request: DataRequest,
    plan: Plan,
    folder: Path,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    content = read_checkpoint(begin, None)
    supernet = Supernet(content["space"], content["weights"], content["sizes"])

    def drawn(part: int) -> list[Arch]:
        return [Arch.from_json(text) for text in networks[part]]

    return train_supernet(supernet, drawn, load(request), plan, folder, progress=lambda *stage: tell(stage), **options)


class _Training:
    def __init__(
        self, supernet: Supernet, drawn: Drawn, data: Data, plan: Plan, device: torch.device, seed: int
    ) -> None:
        self.drawn, self.data, self.plan, self.device, self.seed = drawn, data, plan, device, seed
        self.recipe = plan.recipe.model_copy(update={"epochs": 1})
        self.supernet = supernet.to(device)
        if self.recipe.channels_last:
            self.supernet.channels_last()
        self.share = Share(*own_process())
        self.dtype = step_dtype(self.recipe.amp, device)
        self.optimizer = make_optimizer(self.supernet, self.recipe, in_parts=True)
        self.schedule = Schedule(self.optimizer, self.recipe, plan.steps if plan.minutes is None else FULL)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.mix = Mix(self.recipe, data.classes)
        self.steps, self.seconds = 0, 0.0
        self._drawn: tuple[int, Sequence[Arch]] = (-1, ())
        self.identity = {
            "recipe": plan.recipe.model_dump(exclude=set(IGNORED)),
            "data": data.identity,
            "supernet": {
                "space": supernet.space,
                "weights": _digest(sorted(supernet.sizes.items())),
                "networks": _digest([arch.id for arch in (*plan.sandwich, *self._networks(0))]),
            },
            "training": {"seed": seed, "children": plan.children, "sandwich": len(plan.sandwich)}
            | {"distill": plan.distill, "minutes": plan.minutes, "steps": None if plan.minutes else plan.steps},
        }

    def run(self, checkpoint: Path, every: float, progress: Progress | None) -> None:
        """Train to the end of the plan."""
        images = self.data.train.to(self.device)
        batches = self._batches(images)
        unread: list[Tensor] = []
        begun = last = time.monotonic()
        before, done = self.seconds, self._done()
        while done < 1:
            with seeded(mixed_seed(self.seed, self.steps, self.share.rank), self.device):
                unread.append(self._step(*next(batches), done))
            self.steps += 1
            now = time.monotonic()
            self.seconds = before + now - begun
            done, due = self._done(), now - last >= every
            if due or len(unread) == READ_EVERY or done >= 1:
                losses = torch.stack(unread).tolist()  # waits for the device
                self._require_finite(losses)
                unread.clear()
                if progress is not None:
                    self._tell(progress, min(done, 1.0), fmean(losses))
            if due and self.share.rank == 0:
                self.save(checkpoint)
                last = time.monotonic()

    def _done(self) -> float:
        """The part of the training that is done, 0 to 1 and beyond; all processes ask for it at once."""
        if self.plan.minutes is None:
            return self.steps / self.plan.steps
        return float(of_first(self.seconds)) / (60 * self.plan.minutes)

    def _tell(self, progress: Progress, done: float, loss: float) -> None:
        total = self.plan.steps if self.plan.minutes is None else round(self.steps / done)
        left = self.seconds / done - self.seconds
        progress(self.steps, total, left, f"step {self.steps} of {total}, loss {loss:.3f}")

    def _batches(self, images: Any) -> Iterator[Batch]:
        """The batches of this process from the step that is next."""
        n, size = len(images), self.recipe.batch_size
        epoch, at = divmod(self.steps, n // size)
        while True:
            seed = mixed_seed(self.seed, epoch)
            plan = shuffled(n, size, seed, self.share)[at:]
            yield from images.read(plan, device=self.device, seed=seed, augment=rand_augment(self.recipe))
            epoch, at = epoch + 1, 0

    def _networks(self, step: int) -> Sequence[Arch]:
        """Those that are drawn for a step, the same in all processes."""
        children = self.plan.children
        part, at = divmod(step, DRAWN)
        if self._drawn[0] != part:
            self._drawn = part, self.drawn(part)
        return self._drawn[1][at * children : (at + 1) * children]

    def _step(self, images: Tensor, labels: Tensor, done: float) -> Tensor:
        """Train on a batch; returns the mean loss, detached."""
        images = distorted(images, self.recipe, mirrors=self.data.mirrors)
        images, targets = self.mix(images, labels)
        images = laid_out(images, self.recipe.channels_last)
        self.schedule.set(1, int(done * self.schedule.steps + 0.5), self.schedule.steps)
        self.optimizer.zero_grad()
        archs = (*self.plan.sandwich, *self._networks(self.steps))
        losses: list[Tensor] = []
        answer: Tensor | None = None
        for arch in archs:
            child = self.supernet.network(arch)
            for part in block_modules(child):
                part.block.prepare(part.body, self.recipe)
            weights = {f"model.{name}": weight for name, weight in self.supernet.slices(arch).items()}
            with autocast(self.device, self.dtype):
                streams = functional_call(TrainedNetwork(child).train(), weights, (images,))
                loss, logits = self._loss(child, streams, images, targets, answer)
            self.scaler.scale(loss / len(archs)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if self.plan.distill and answer is None:
                answer = logits
        self._update()
        return torch.stack(losses).mean()

    def _loss(
        self, child: Any, streams: dict[str, Any], images: Tensor, targets: Tensor, answer: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a network, from the answer of the largest where that is given, and its own answer."""
        heads = streams["x"] if isinstance(streams["x"], tuple) else (streams["x"],)
        own = torch.stack([head.float() for head in heads]).mean(0).detach()
        if answer is None:
            return Criterion(self.recipe, child, self.data.classes, None, self.device)(streams, images, targets), own
        return torch.stack([soft_loss(head.float(), answer) for head in heads]).mean(), own

    def _update(self) -> None:
        grads = [weight.grad for weight in self.supernet.parameters() if weight.grad is not None]
        if self.share.world > 1:  # the same networks in all processes, so the same weights have gradients
            flat = summed(torch.cat([grad.reshape(-1) for grad in grads])) / self.share.world
            for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view(grad.shape))
        self.scaler.unscale_(self.optimizer)
        clip(self.supernet, self.recipe)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _require_finite(self, losses: Sequence[float]) -> None:
        for number, loss in enumerate(losses, self.steps - len(losses)):
            if not math.isfinite(loss):
                names = ", ".join(arch.id for arch in self._networks(number))
                raise TrainingDiverged(
                    f"the loss of the supernet is {loss} in step {number + 1}, with {names}; try a lower lr or clip in "
                    "its recipe"
                )

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state: dict[str, Any] = {"weights": _plain(self.supernet), "optimizer": self.optimizer.state_dict()}
        state |= {"scaler": self.scaler.state_dict(), "steps": self.steps, "seconds": self.seconds}
        write_checkpoint(path, self.identity, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, that of the first process.

        Raises:
            InputError: the file is damaged, or belongs to another training; it is not touched.
        """
        content = of_first(read_checkpoint(path, self.identity) if self.share.rank == 0 else None)
        with torch.no_grad():
            for name, weight in self.supernet.weights.items():
                weight.copy_(content["weights"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.steps, self.seconds = content["steps"], content["seconds"]

    def finish(self, path: Path) -> None:
        """Write the result.

        Raises:
            TrainingDiverged: a weight is not finite.
        """
        weights = _plain(self.supernet)
        broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if broken:
            raise TrainingDiverged(
                f"weights of the supernet are not finite, first {broken[0]}; try a lower lr or clip in its recipe"
            )
        state = {"space": self.supernet.space, "weights": weights, "sizes": self.supernet.sizes}
        write_checkpoint(path, self.identity, state | {"steps": self.steps})


def _plain(supernet: Supernet) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in supernet.weights.items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def read_supernet(file: Path, expected: str) -> Supernet:
    """A trained supernet from its file.

    Raises:
        InputError: it is missing, damaged, or not the one of this hash.
    """
    remedy = "run the command that trained it again, which trains it anew"
    if not file.is_file():
        raise InputError(f"{file}: the supernet that scores rest on is gone; put it back, or {remedy}")
    found = hash_of(file)
    if found != expected:
        raise InputError(
            f"{file}: not the supernet that scores rest on (SHA-256 {found[:12]} instead of {expected[:12]}); put that "
            f"back, or delete it and {remedy}"
        )
    content = read_checkpoint(file, None)
    return Supernet(content["space"], content["weights"], content["sizes"])
