"""Training speed as ratios in one run, and what DynamicViT's keep ratios become.

- `bf16`: images per second in bf16 beside fp32, for a small form of every family.
- `timm`: images per second of our loop beside that of timm's script, the same model, batch and images. The loop is
  written after `train_one_epoch` of huggingface/pytorch-image-models, train.py, which is not in timm's package; its
  images come from memory by torch's DataLoader, ours by `nas.evaluation.data`.
- `kept`: the share of tokens that DynamicViT keeps in training after the recipe `small` on 12,000 images of
  Fashion-MNIST, beside what was asked for.

One thread. Run: python benchmarks/training.py [bf16] [timm] [kept] [SPACE ...]
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Literal

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import search_spaces
from nas.evaluation.data import Data, DataRequest, in_memory, load_data
from nas.evaluation.devices import seeded, step_dtype
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import RECIPES
from nas.evaluation.training import train
from nas.networks.building import build
from search_spaces.dynamicvit import SMALL_DEIT, SMALL_LVVIT, make

ROUNDS = 5
BATCH = 64
STEPS = 6
IMAGES, DATA = 15_000, "fashion-mnist"  # of `kept`; a fifth validates
CPU = torch.device("cpu")


def main(words: list[str]) -> None:
    """Run what is named; everything by default."""
    torch.set_num_threads(1)
    parts: dict[str, Callable[[list[str]], None]] = {"bf16": compare_formats, "timm": compare_loops, "kept": show_kept}
    spaces = [word for word in words if word not in parts]
    small = [name for name in search_spaces.spaces() if name.endswith("-32")]
    for name in [word for word in words if word in parts] or parts:
        parts[name](spaces or small)


def noise() -> Data:
    """Images that hold nothing, in memory."""
    images = torch.randint(256, (BATCH * STEPS + BATCH, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    request = DataRequest("noise", None, (3, 32, 32), 0, BATCH / len(images), None)
    return in_memory(request, 10, (images, labels), (images[:BATCH], labels[:BATCH]), mirrors=True)


def model_of(space: str) -> nn.Module:
    """A network of a space, the same each time."""
    return build(search_spaces.load(space).sample(random.Random(0)))


def show(name: str, ratios: list[float]) -> None:
    """Print median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{name}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)


def compare_formats(spaces: list[str]) -> None:
    """Images per second in bf16 over those in fp32."""
    data = noise()
    print(f"bf16 / fp32, images per second; the processor multiplies bf16: {step_dtype('auto', CPU) == torch.bfloat16}")
    for space in spaces:
        ratios = []
        for _ in range(ROUNDS):
            plain = ours(space, data, "none")
            ratios.append(ours(space, data, "bf16") / plain)
        show(space, ratios)


def compare_loops(spaces: list[str]) -> None:
    """Images per second of our loop over those of timm's."""
    data = noise()
    print("ours / timm's loop, images per second, fp32")
    for space in spaces:
        show(space, [ours(space, data, "none") / timms(space, data) for _ in range(ROUNDS)])


def ours(space: str, data: Data, amp: Literal["none", "bf16"]) -> float:
    """Images per second of an epoch, without validation."""
    return train(model_of(space), data, Recipe(epochs=1, batch_size=BATCH, amp=amp)).images_per_second


def timms(space: str, data: Data) -> float:
    """Images per second of an epoch of timm's loop: AdamW, cosine by steps, smoothing .1, mirrored images."""
    model = model_of(space).to(memory_format=torch.channels_last)
    images, labels = next(data.train.batches(len(data.train)))
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=3e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=len(loader), t_in_epochs=False)
    loss_of, meter = nn.CrossEntropyLoss(label_smoothing=0.1), AverageMeter()
    model.train()
    start = time.perf_counter()
    for number, (batch, targets) in enumerate(loader):
        mirrored = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
        loss = loss_of(_first(model(mirrored.contiguous(memory_format=torch.channels_last))), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        meter.update(loss.item(), len(batch))
        schedule.step_update(number + 1, metric=meter.avg)
    return len(data.train) / (time.perf_counter() - start)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """As `timm.create_model` gives it: the mean of several heads."""
    return torch.stack(output).mean(0) if isinstance(output, tuple) else output


def show_kept(_: list[str]) -> None:
    """Train a small DynamicViT on each host and print the mean hard masks."""
    data = load_data(DATA, (3, 32, 32), limit=IMAGES)
    for host, width in ((SMALL_DEIT, 32), (SMALL_LVVIT, 48)):
        model = build(make(host, width, 4, (1, 2, 3), (70, 70, 70), side=32, classes=10))
        result = train(model, data, RECIPES["small"])
        with seeded(0), torch.no_grad():
            model.train()
            kept = torch.cat([model.streams(images)["kept"] for images, _ in data.val.batches(BATCH)])
        shares = ", ".join(f"{share:.3f}" for share in kept.mean((0, 2)).tolist())
        print(f"{type(host[0]).__name__}: keeps {shares} of 0.700, 0.490, 0.343; accuracy {result.val_accuracy:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
