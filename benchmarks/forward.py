"""Forward time of our presets against timm's: eager, 1 thread, batch 1, the same weights, in one run.

Prints the median of the ratio ours / timm over interleaved rounds, for the training form and the deployed form.
Run: python benchmarks/forward.py [PRESET ...]
"""

from __future__ import annotations

import statistics
import sys
import time

import timm
import torch
from torch import Tensor, nn

import search_spaces
from nas.networks.building import build, fuse, load_arch
from nas.timm_models import from_timm, timm_name

ROUNDS = 30
WARM_UP = 3


def seconds(model: nn.Module, x: Tensor) -> float:
    """The time of one inference."""
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def compare(preset: str) -> None:
    """Time timm's model and both our forms in turn, and print the ratios."""
    name = timm_name(preset)
    if name is None:
        print(f"{preset}: skipped, timm has no such model (its family has no from_timm)")
        return
    arch = load_arch(preset)
    theirs = timm.create_model(name).eval()
    ours = build(arch).eval()
    ours.load_state_dict(from_timm(preset, theirs.state_dict()))
    forms = {"training form": ours, "deployed form": fuse(ours)}
    x = torch.randn(1, *arch.input_shape)
    ratios: dict[str, list[float]] = {form: [] for form in forms}
    with torch.inference_mode():
        for number in range(WARM_UP + ROUNDS):
            reference = seconds(theirs, x)
            for form, model in forms.items():
                ratio = seconds(model, x) / reference
                if number >= WARM_UP:
                    ratios[form].append(ratio)
    for form, values in ratios.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(f"{preset}, {form}: {statistics.median(values):.3f} of timm's time (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or sorted(search_spaces.presets()):
        compare(each)
