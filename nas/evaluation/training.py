"""Training of one model: a short loop around pieces that stand beside it, most of them timm's and torch's.

Everything random is drawn from the seed given, epoch by epoch, and global generators are put back afterwards. How many
threads torch uses is the caller's business (`devices.cpu_threads`): on a CPU, several processes of one thread each
train more candidates than one process of several, and only one thread gives the same weights to the last bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from timm.optim import list_optimizers
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas.core.errors import InputError, suggest
from nas.evaluation.augmentation import Mix, distorted, rand_augment
from nas.evaluation.checkpoint import read_checkpoint, write_checkpoint
from nas.evaluation.criterion import Criterion
from nas.evaluation.data import Data
from nas.evaluation.devices import autocast, mixed_seed, naming_memory, pick_device, seeded, step_dtype
from nas.evaluation.distributed import of_first, own_process, summed
from nas.evaluation.log import TrainingLog
from nas.evaluation.metrics import Metrics, TrainingDiverged, evaluate, laid_out
from nas.evaluation.network import TrainedNetwork, add_dropout, block_modules
from nas.evaluation.optimization import Schedule, averaged, clip, make_optimizer
from nas.evaluation.recipe import Recipe
from nas.evaluation.sampler import PlannedBatch, Share, batch_table, multi_scale, shuffled
from nas.evaluation.teacher import Teacher, start_from
from nas.networks.building import Network

__all__ = ["Epoch", "Metrics", "TrainResult", "TrainingDiverged", "evaluate", "train"]

Epoch = dict[str, float]

READ_EVERY = 50
"""Batches between two looks at the losses: on a GPU each look waits for the device."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class TrainResult:
    """What training reached.

    Attributes:
        val_loss, val_accuracy: after the last epoch; cross entropy without smoothing in nats, accuracy in 0..1.
        test_loss, test_accuracy: None unless asked for.
        seconds: of all epochs with validation, including those before an interruption.
        epochs: number of epochs trained.
        images_per_second: training images over training time, without validation.
        history: of each epoch `epoch` (from 1), `lr`, `train_loss`, where it was validated `val_loss` and
            `val_accuracy`, then `images_per_second`, `resolution` (mean side of its images in pixels), `images`,
            `steps`, `train_seconds`, `seconds`.
        device, precision: where and in which number format (`fp32`, `bf16`, `fp16`) the steps were computed.
    """

    val_loss: float
    val_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    epochs: int
    images_per_second: float
    history: tuple[Epoch, ...]
    device: str
    precision: str


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    teacher: Teacher | None = None,
    start: str | None = None,
    checkpoint: Path | None = None,
    log: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    test: bool = False,
) -> TrainResult:
    """Train `model` in place; it ends in eval mode on `device`, with the averaged weights if the recipe averages.

    A model returns logits (N, classes); in training it may return a tuple of them, whose losses are averaged, or of
    which the last learns from the teacher. `checkpoint` is written after each epoch; where it exists, training goes on
    from it, and on one CPU thread ends with the very weights of an uninterrupted run. `on_epoch` gets the history entry
    of each epoch trained now; what it raises ends the training. However that ends, the recipe's dropout is taken away
    from the model, and what was frozen for it may learn again. The test split is read only if `test` is set. In
    processes that have joined (`nas.evaluation.distributed`) each trains on its part of every step, and the first
    writes.

    Args:
        model: what learns.
        data: what from.
        recipe: how.
        device: where.
        seed: of order, augmentation and whatever else is drawn.
        teacher: for a recipe that distils or starts from a teacher's weights.
        start: names the weights that the model has now; None for fresh ones, which the seed names.
        checkpoint: the file.
        log: the folder of `training.csv` and, where it is installed, TensorBoard's events.
        on_epoch: a callback.
        test: whether the result has figures of the test split.

    Raises:
        InputError: model, data, recipe, teacher and checkpoint do not fit together.
        TrainingDiverged: naming epoch and step.
        OutOfMemory: naming batch size, input and device.
    """
    where = pick_device(device)
    first = own_process()[0] == 0
    check_fit(data, recipe, teacher)
    journal = TrainingLog(log) if log is not None and first else None
    with contextlib.ExitStack() as after, naming_memory(recipe.batch_size, data.train.input_shape, where):
        if journal is not None:
            after.callback(journal.close)
        for weight in model.parameters():
            after.callback(weight.requires_grad_, weight.requires_grad)
        trainer = _Trainer(model, data, recipe, where, seed, teacher, start)
        for handle in trainer.dropout:
            after.callback(handle.remove)
        if checkpoint is not None and of_first(checkpoint.exists()):
            trainer.restore(checkpoint)
        while trainer.epochs_done < recipe.epochs:
            entry = trainer.epoch()
            if checkpoint is not None and first:
                trainer.save(checkpoint)
            if journal is not None:
                journal.write(trainer.history)
            if on_epoch is not None:
                on_epoch(dict(entry))
        trainer.finish()
    final = evaluate(model, data.test, device=where, channels_last=recipe.channels_last) if test else None
    history = tuple(trainer.history)
    return TrainResult(
        val_loss=history[-1]["val_loss"],
        val_accuracy=history[-1]["val_accuracy"],
        test_loss=final.loss if final else None,
        test_accuracy=final.accuracy if final else None,
        seconds=sum(entry["seconds"] for entry in history),
        epochs=recipe.epochs,
        images_per_second=sum(entry["images"] for entry in history) / sum(entry["train_seconds"] for entry in history),
        history=history,
        device=str(where),
        precision=PRECISIONS[trainer.dtype],
    )


class _Trainer:
    """A model with all that changes while it trains; between two epochs, it can be saved and restored.

    The schedule is a function of the step, and every epoch starts from generators seeded by (seed, epoch, process):
    neither needs a place in a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        teacher: Teacher | None,
        start: str | None,
    ) -> None:
        self.data, self.recipe, self.device, self.seed, self.teacher = data, recipe, device, seed, teacher
        self.start = start
        rank, world = own_process()
        self.share = Share(rank, world, recipe.accumulate)
        self.dtype = step_dtype(recipe.amp, device)
        self.model = model.to(device)
        if recipe.start == "teacher" and teacher is not None:
            _start(model, teacher)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(model, recipe)
        trained = TrainedNetwork(model, [s for s in recipe.multi_scale if s != self.side])
        for part in (part for each in trained.models for part in block_modules(each)):
            part.block.prepare(part.body, recipe)
        self.network: nn.Module = trained
        if world > 1:
            self.network = DistributedDataParallel(trained, broadcast_buffers=False)
        self.images = data.train.to(device)
        self.schedule = Schedule(self.optimizer, recipe, len(data.train) // recipe.batch_size)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = averaged(model, recipe.ema_decay) if recipe.ema_decay is not None else None
        self.mix = Mix(recipe, data.classes)
        self.criterion = Criterion(recipe, model, data.classes, teacher, device)
        self.history: list[Epoch] = []
        self.updates = 0
        rates = recipe.dropout, recipe.branch_dropout
        self.dropout = [handle for each in trained.models for handle in add_dropout(each, *rates)]

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def side(self) -> int:
        """Of the data's own resolution, in pixels."""
        return self.data.train.input_shape[1]

    def epoch(self) -> Epoch:
        """Train one more epoch and validate if it is due; returns its history entry."""
        start, number = time.perf_counter(), self.epochs_done + 1
        plan = self._plan(number)
        train_loss = self._train_epoch(number, plan)
        train_seconds = time.perf_counter() - start
        images, pixels = self._size(plan)
        entry = {"epoch": number, "lr": self.optimizer.param_groups[0]["lr"], "train_loss": train_loss}
        if number % self.recipe.validate_every == 0 or number == self.recipe.epochs:
            judged = self.ema.module if self.ema else self.model
            try:
                metrics = evaluate(judged, self.data.val, device=self.device, channels_last=self.recipe.channels_last)
            except TrainingDiverged as error:
                raise TrainingDiverged(f"after epoch {number}, {error}") from error
            entry |= {"val_loss": metrics.loss, "val_accuracy": metrics.accuracy}
        entry |= {"images_per_second": images / train_seconds, "resolution": pixels / images, "images": images}
        entry |= {"steps": len(plan) // self.recipe.accumulate, "train_seconds": train_seconds}
        entry["seconds"] = time.perf_counter() - start
        self.history.append(entry)
        return entry

    def _plan(self, number: int) -> list[PlannedBatch]:
        """The batches of this process in an epoch."""
        seed, n, batch_size = mixed_seed(self.seed, number), len(self.data.train), self.recipe.batch_size
        if not self.recipe.multi_scale:
            return shuffled(n, batch_size, seed, self.share)
        table = batch_table(self.recipe.multi_scale, self.side, batch_size // self.share.parts)
        return multi_scale(n, table, seed, self.share)

    def _size(self, plan: list[PlannedBatch]) -> tuple[int, int]:
        """Images of an epoch in all processes, and the sum of their sides in pixels."""
        counts = [(len(indices), len(indices) * (side or self.side)) for indices, side in plan]
        images, pixels = summed(torch.tensor(counts, device=self.device).sum(0)).tolist()
        return images, pixels

    def _train_epoch(self, number: int, plan: list[PlannedBatch]) -> float:
        """Mean training loss of the epoch."""
        self.network.train()
        accumulate = self.recipe.accumulate
        losses: list[float] = []
        unread: list[Tensor] = []
        with seeded(mixed_seed(self.seed, number, self.share.rank), self.device):
            batches = self.images.read(
                plan, device=self.device, seed=mixed_seed(self.seed, number), augment=rand_augment(self.recipe)
            )
            for index, (images, labels) in enumerate(batches):
                step, part = divmod(index, accumulate)
                if part == 0:
                    self.schedule.set(number, step, len(plan) // accumulate)
                    self.optimizer.zero_grad()
                unread.append(self._backward(images, labels, last=part == accumulate - 1))
                if part == accumulate - 1:
                    self._update()
                if len(unread) == READ_EVERY or index == len(plan) - 1:
                    losses += torch.stack(unread).tolist()  # waits for the device
                    unread.clear()
                    _require_finite(losses, number, accumulate)
        if self.share.world > 1:
            for model in (self.model, *([self.ema.module] if self.ema else [])):
                distribute_bn(model, self.share.world, reduce=True)
            return float(summed(torch.tensor(fmean(losses), device=self.device))) / self.share.world
        return fmean(losses)

    def _backward(self, images: Tensor, labels: Tensor, *, last: bool) -> Tensor:
        """Add the gradients of one batch; returns its loss, detached. With the `last` of a step, processes average."""
        recipe = self.recipe
        images = distorted(images, recipe, mirrors=self.data.mirrors)
        images, targets = self.mix(images, labels)
        images = laid_out(images, recipe.channels_last)
        waits = isinstance(self.network, DistributedDataParallel) and not last
        with self.network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.device, self.dtype):
                streams = self.network(images)
                loss = self.criterion(streams, images, targets)
            self.scaler.scale(loss / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self) -> None:
        """Move the weights along the gradients."""
        self.scaler.unscale_(self.optimizer)
        clip(self.model, self.recipe)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)

    def finish(self) -> None:
        """Leave the result in the model."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "history": self.history,
        }
        write_checkpoint(path, self._identity(), state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, that of the first process.

        Raises:
            InputError: the file is damaged, or belongs to another training; it is not touched.
        """
        content = of_first(read_checkpoint(path, self._identity()) if self.share.rank == 0 else None)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(content["ema"])
        self.history = content["history"]
        self.updates = sum(int(entry["steps"]) for entry in self.history)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit, as two levels of plain data."""
        parameters = [(name, list(value.shape)) for name, value in self.model.state_dict().items()]
        return {
            "recipe": self.recipe.model_dump(),
            "data": self.data.identity,
            "model": {
                "parameters": hashlib.sha256(repr(parameters).encode()).hexdigest()[:16],
                **({"arch": self.model.arch.id} if isinstance(self.model, Network) else {}),
            },
            "training": {"seed": self.seed, "teacher": self.teacher.id if self.teacher else None}
            | ({"start": self.start} if self.start else {}),
        }


def check_fit(data: Data, recipe: Recipe, teacher: Teacher | None) -> None:
    """Check that a recipe can be carried out on these images.

    Raises:
        InputError: it cannot, and why.
    """
    parts = own_process()[1] * recipe.accumulate
    if recipe.batch_size > len(data.train):
        raise InputError(f"batch_size {recipe.batch_size} exceeds the {len(data.train)} training images of {data.name}")
    if recipe.batch_size % parts:
        raise InputError(f"batch_size {recipe.batch_size} is no multiple of the {parts} parts it is computed in")
    batch = recipe.batch_size // parts
    table = batch_table(recipe.multi_scale, data.train.input_shape[1], batch)
    if (recipe.mixup or recipe.cutmix) and (min(table.values()) < 2 if table else batch % 2):
        raise InputError(
            f"mixup and cutmix pair images up and need an even batch_size, not {batch}"
            + (f", and 2 at {max(table)} pixels" if table else "")
        )
    if recipe.optimizer not in list_optimizers():
        raise InputError(suggest("optimizer", recipe.optimizer, list_optimizers()))
    needs = recipe.distills or recipe.start == "teacher"
    if needs and teacher is None:
        raise InputError(
            "the recipe learns from a teacher: name one, or set start=fresh, distill_hard=0, distill_soft=0 and "
            "distill_tokens=0"
        )
    if teacher is not None and not needs:
        raise InputError(f"the recipe asks nothing of teacher {teacher.name}: set distill_hard, or leave it out")


def _start(model: nn.Module, teacher: Teacher) -> None:
    if not isinstance(model, Network):
        raise InputError(f"start: a {type(model).__name__} is none of our networks and takes no teacher's weights")
    start_from(teacher, model)


def _require_finite(losses: list[float], epoch: int, accumulate: int) -> None:
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            step = index // accumulate + 1
            raise TrainingDiverged(f"training loss is {loss} in epoch {epoch}, step {step}; try a lower lr or clip")
