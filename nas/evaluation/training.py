"""Training and evaluation of one model: a short loop around timm's and torchvision's pieces.

Everything random is drawn from the seed given, epoch by epoch, and global generators are put back afterwards. How many
threads torch uses is the caller's business (`torch.set_num_threads`): on a CPU, several processes of one thread each
train more candidates than one process of several, and only one thread gives the same weights to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torchvision.transforms import v2

from nas.errors import InputError, NasError, suggest
from nas.evaluation.data import Data, Split, shifted
from nas.evaluation.devices import naming_memory, pick_device, seeded, uses_bf16
from nas.evaluation.recipe import Recipe

Epoch = dict[str, float]

EVAL_BATCH = 64  # at 32 pixels and 128 channels, 256 images take 130 MB for one activation
READ_EVERY = 50
"""Steps between two looks at the losses: on a GPU each look waits for the device."""
FUSED_OPTIMIZERS = {"adam", "adamw", "sgd"}


class TrainingDiverged(NasError):  # noqa: N818  the name of the situation
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class Metrics:
    """What a model reaches on `n` images: mean cross entropy in nats, and the share of right answers, 0..1."""

    loss: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class TrainResult:
    """What training reached.

    Attributes:
        val_loss, val_accuracy: after the last epoch; cross entropy without smoothing in nats, accuracy in 0..1.
        test_loss, test_accuracy: None unless asked for.
        seconds: of all epochs with validation, including those before an interruption.
        epochs: number of epochs trained.
        images_per_second: training images over training time, without validation.
        history: of each epoch `epoch` (from 1), `lr`, `train_loss`, `train_seconds`, `seconds`, and where it was
            validated `val_loss` and `val_accuracy`.
        device, precision: where and in which number format (`fp32` or `bf16`) the steps were computed.
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
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    test: bool = False,
) -> TrainResult:
    """Train `model` in place; it ends in eval mode on `device`, with the averaged weights if the recipe averages.

    A model returns logits (N, classes); in training it may return a tuple of them, whose losses are averaged (two
    heads of distillation). `checkpoint` is written after each epoch; where it exists, training goes on from it, and on
    one CPU thread ends with the very weights of an uninterrupted run. `on_epoch` gets the history entry of each epoch
    trained now; what it raises ends the training. The test split is read only if `test` is set.

    Raises:
        InputError: model, data, recipe and checkpoint do not fit together.
        TrainingDiverged: naming epoch and step.
        OutOfMemory: naming batch size, input and device.
    """
    where = pick_device(device)
    _check(data, recipe)
    with naming_memory(recipe.batch_size, data.train.input_shape, where):
        trainer = _Trainer(model, data, recipe, where, seed)
        if checkpoint is not None and checkpoint.exists():
            trainer.restore(checkpoint)
        while trainer.epochs_done < recipe.epochs:
            entry = trainer.epoch()
            if checkpoint is not None:
                trainer.save(checkpoint)
            if on_epoch is not None:
                on_epoch(dict(entry))
        trainer.finish()
    final = evaluate(model, data.test, device=where, channels_last=recipe.channels_last) if test else None
    history = tuple(trainer.history)
    images = len(data.train) // recipe.batch_size * recipe.batch_size * recipe.epochs
    return TrainResult(
        val_loss=history[-1]["val_loss"],
        val_accuracy=history[-1]["val_accuracy"],
        test_loss=final.loss if final else None,
        test_accuracy=final.accuracy if final else None,
        seconds=sum(entry["seconds"] for entry in history),
        epochs=recipe.epochs,
        images_per_second=images / sum(entry["train_seconds"] for entry in history),
        history=history,
        device=str(where),
        precision="bf16" if trainer.bf16 else "fp32",
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = EVAL_BATCH,
    channels_last: bool = True,
) -> Metrics:
    """Cross entropy and accuracy of a model on all images of a split, always in float32, which is what gets exported.

    The model moves to `device`; its training or eval mode is put back.

    Raises:
        InputError: the model has another number of classes than the data.
        TrainingDiverged: the loss is infinite or not a number.
        OutOfMemory: naming batch size, input and device.
    """
    where, was_training = pick_device(device), model.training
    model.to(where).eval()
    loss = right = torch.zeros((), dtype=torch.float64 if where.type != "mps" else torch.float32, device=where)
    try:
        with naming_memory(batch_size, split.input_shape, where):
            for images, labels in split.batches(batch_size, device=where):
                logits = model(_laid_out(images, channels_last))
                _check_classes(logits, split.classes)
                loss = loss + nn.functional.cross_entropy(logits, labels, reduction="sum")
                right = right + (logits.argmax(1) == labels).sum()
    finally:
        model.train(was_training)
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the loss on {len(split)} held-out images is {float(loss)}; try a lower lr or clip")
    return Metrics(float(loss) / len(split), float(right) / len(split), len(split))


class _Trainer:
    """A model with all that changes while it trains; between two epochs, it can be saved and restored.

    The schedule is a function of the step, and every epoch starts from generators seeded by (seed, epoch): neither
    needs a place in a checkpoint.
    """

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, device: torch.device, seed: int) -> None:
        self.data, self.recipe, self.device, self.seed = data, recipe, device, seed
        self.bf16 = uses_bf16(recipe.amp, device)
        self.model = model.to(device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.images = data.train.to(device)
        self.steps = len(data.train) // recipe.batch_size
        self.optimizer = _optimizer(model, recipe)
        self.schedule = _schedule(self.optimizer, recipe, self.steps * recipe.epochs)
        self.ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
        self.mixup = _mixup(recipe, data.classes)
        self.loss = _loss(recipe)
        self.history: list[Epoch] = []

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    def epoch(self) -> Epoch:
        """Train one more epoch and validate if it is due; returns its history entry."""
        start, number = time.perf_counter(), self.epochs_done + 1
        train_loss = self._train_epoch(number)
        entry = {
            "epoch": number,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "train_seconds": time.perf_counter() - start,
        }
        if number % self.recipe.validate_every == 0 or number == self.recipe.epochs:
            judged = self.ema.module if self.ema else self.model
            try:
                metrics = evaluate(judged, self.data.val, device=self.device, channels_last=self.recipe.channels_last)
            except TrainingDiverged as error:
                raise TrainingDiverged(f"after epoch {number}, {error}") from error
            entry |= {"val_loss": metrics.loss, "val_accuracy": metrics.accuracy}
        entry["seconds"] = time.perf_counter() - start
        self.history.append(entry)
        return entry

    def _train_epoch(self, number: int) -> float:
        """Mean training loss of the epoch."""
        self.model.train()
        epoch_seed = _mixed(self.seed, number)
        losses: list[float] = []
        unread: list[Tensor] = []
        with seeded(epoch_seed, self.device):
            augment = v2.RandAugment(magnitude=self.recipe.rand_augment) if self.recipe.rand_augment else None
            batches = self.images.batches(self.recipe.batch_size, device=self.device, seed=epoch_seed, augment=augment)
            for step, (images, labels) in enumerate(batches):
                unread.append(self._step((number - 1) * self.steps + step, images, labels))
                if len(unread) == READ_EVERY or step == self.steps - 1:
                    losses += torch.stack(unread).tolist()  # waits for the device
                    unread.clear()
                    _require_finite(losses, number)
        return fmean(losses)

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Fit one batch; returns its loss, detached."""
        recipe = self.recipe
        self.schedule.step_update(step)
        images = distorted(images, recipe, mirrors=self.data.mirrors)
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(_laid_out(images, recipe.channels_last))
        heads = output if isinstance(output, tuple) else (output,)
        for logits in heads:
            _check_classes(logits, self.data.classes)
        loss = torch.stack([self.loss(logits.float(), targets) for logits in heads]).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:  # agc spares the last layer, arXiv:2102.06171, sec. 4.1
            clipped = model_parameters(self.model, exclude_head=recipe.clip_mode == "agc")
            dispatch_clip_grad(clipped, recipe.clip, recipe.clip_mode)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=step + 1)
        return loss.detach()

    def finish(self) -> None:
        """Leave the result in the model."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()

    def save(self, path: Path) -> None:
        """Write a checkpoint under a temporary name, then move it into place."""
        content = {
            "identity": json.dumps(self._identity()),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "history": self.history,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")  # what a killed process left is written over
        try:
            torch.save(content, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: the file is damaged, or belongs to another training; it is not touched.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)  # executes no code
            found = json.loads(content["identity"])
        except (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path}: not a readable checkpoint ({reason}); delete it to start over") from error
        expected = json.loads(json.dumps(self._identity()))
        if found != expected:
            raise InputError(
                f"{path}: checkpoint of another training: {'; '.join(_differences(found, expected))}. "
                f"Ask for the same again, or delete it to start over"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(content["ema"])
        self.history = content["history"]

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit, as two levels of plain data."""
        parameters = [(name, list(value.shape)) for name, value in self.model.state_dict().items()]
        request = asdict(self.data.request) | {"path": None}  # a data set may move
        return {
            "recipe": self.recipe.model_dump(),
            "data": request | {"train": len(self.data.train), "val": len(self.data.val)},
            "model": {"parameters": hashlib.sha256(repr(parameters).encode()).hexdigest()[:16]},
            "training": {"seed": self.seed},
        }


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """`recipe.epochs is 10 there, 12 here` for each value that differs."""
    sections = [(name, found.get(name, {}), expected.get(name, {})) for name in sorted({*found, *expected})]
    return [
        f"{name}.{key} is {there.get(key)!r} there, {here.get(key)!r} here"
        for name, there, here in sections
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def _check(data: Data, recipe: Recipe) -> None:
    if recipe.batch_size > len(data.train):
        raise InputError(f"batch_size {recipe.batch_size} exceeds the {len(data.train)} training images of {data.name}")
    if recipe.batch_size % 2 and (recipe.mixup or recipe.cutmix):
        raise InputError(f"mixup and cutmix pair images up and need an even batch_size, not {recipe.batch_size}")
    if recipe.optimizer not in list_optimizers():
        raise InputError(suggest("optimizer", recipe.optimizer, list_optimizers()))


def _check_classes(logits: Tensor, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise InputError(
            f"the model gives {tuple(logits.shape)} logits, the data has {classes} classes: build it with so many"
        )


def _require_finite(losses: list[float], epoch: int) -> None:
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            raise TrainingDiverged(f"training loss is {loss} in epoch {epoch}, step {step}; try a lower lr or clip")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    fused = {"fused": True} if recipe.optimizer in FUSED_OPTIMIZERS else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **fused
    )
    return optimizer


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then half a cosine, by steps."""
    lowest = recipe.lr * recipe.final_lr
    warmup = int(steps * recipe.warmup_fraction)
    return CosineLRScheduler(
        optimizer, t_initial=steps, lr_min=lowest, warmup_t=warmup, warmup_lr_init=lowest, t_in_epochs=False
    )


def _mixup(recipe: Recipe, classes: int) -> Mixup | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)


def _loss(recipe: Recipe) -> nn.Module:
    if recipe.mixup or recipe.cutmix:
        soft: nn.Module = SoftTargetCrossEntropy()  # the smoothing is in its targets
        return soft
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)


def distorted(images: Tensor, recipe: Recipe, *, mirrors: bool) -> Tensor:
    """Mirror, move and erase normalised images (N, C, H, W) at random, as far as the recipe and the data set allow."""
    n = len(images)
    if recipe.flip and mirrors:
        chosen = (torch.rand(n) < 0.5).to(images.device)
        images = torch.where(chosen[:, None, None, None], images.flip(3), images)
    if recipe.shift:
        images = shifted(images, torch.randint(-recipe.shift, recipe.shift + 1, (2, n)).to(images.device))
    if recipe.random_erasing:
        images = RandomErasing(recipe.random_erasing, mode="pixel", device=str(images.device))(images)
    return images


def _laid_out(images: Tensor, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _mixed(seed: int, epoch: int) -> int:
    """One 32-bit seed for each pair."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
