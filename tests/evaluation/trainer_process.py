"""Small trainings with every piece, and a process of its own for them: `python -m tests.evaluation.trainer_process`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from nas.evaluation.data import load_data
from nas.evaluation.distributed import joined, own_process
from nas.evaluation.recipe import Recipe
from nas.evaluation.teacher import Teacher
from nas.evaluation.training import TrainResult, train
from nas.networks.building import Network, build
from search_spaces.deit import PatchTokens, ViTBlock
from search_spaces.dynamicvit import make
from tests.small import TINY

CHOICES = {"stage2.ratio": 2, "tail": 0}
CHOICES |= {f"stage{n}.{what}": value for n in (2, 3, 4) for what, value in (("width", 32), ("depth", 1))}
HOST = PatchTokens(patch=4), ViTBlock(2, head_dim=8)
MIXED = Recipe(
    epochs=4,
    batch_size=24,
    rand_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    ema_decay=0.99,
    clip=0.01,
    clip_mode="agc",
    amp="none",
)
RECIPES = {
    "convolutions": MIXED.model_copy(
        update={"batch_size": 48, "multi_scale": (16, 32), "accumulate": 2, "dropout": 0.1, "distill_hard": 0.5}
    ),
    "tokens": MIXED.model_copy(
        update={"start": "teacher", "host_lr": 0.1, "host_frozen": 1, "distill_soft": 0.5, "distill_tokens": 0.5}
    ),
    "plain": Recipe(epochs=2, batch_size=16, amp="none", optimizer="sgd", lr=0.05),
}


def network(name: str, *, thinned: bool = True, seed: int = 0) -> Network:
    """The student, or the network of its teacher."""
    if name == "convolutions":
        arch = replace(TINY, input_shape=(1, 16, 16)).arch(CHOICES)
    else:
        cut = ((1, 2), (70, 70)) if thinned and name == "tokens" else ((), ())
        arch = make(HOST, 16, 3, *cut, side=16, classes=10)
        arch = replace(arch, input_shape=(1, 16, 16))
    return build(arch, seed=seed, drop_path=0.1 if thinned and name != "plain" else 0.0)


def run(name: str, folder: Path, **options) -> tuple[Network, TrainResult]:
    """Train one of `RECIPES` on digits, or go on with it."""
    torch.set_num_threads(1)
    data = load_data("digits", (1, 16, 16), limit=160)
    model = network(name)
    original = network(name, thinned=False, seed=1)
    teacher = None if name == "plain" else Teacher("original", original, original.arch, 16)
    result = train(model, data, RECIPES[name], seed=7, teacher=teacher, checkpoint=folder / "checkpoint.pt", **options)
    return model, result


def main() -> None:
    """Train what the arguments name, each into its folder; every process writes its weights."""
    with joined("cpu") as device:
        for name, folder in zip(sys.argv[1::2], map(Path, sys.argv[2::2]), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            model, result = run(name, folder, device=device, on_epoch=lambda entry: print("epoch", flush=True))
            state = {"model": model.state_dict(), "history": list(result.history)}
            torch.save(state, folder / f"process-{own_process()[0]}.pt")


if __name__ == "__main__":
    main()
