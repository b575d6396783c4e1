"""The winner is trained with a long schedule, the way `nas train` trains; in `next/`, until its set is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nas.core.files import hash_of
from nas.evaluation.runs import train_arch
from nas.search.context import Context
from nas.search.results import Figures
from nas.search.steps import Step
from nas.search.steps.repeat import finalists_of, winner_of
from nas.search.timing import final_epochs

OF_TRAINING = ("final_recipe", "final_teacher", "final_teacher_weights")
NEXT = "next"
"""Folder of what becomes the winner's files, together, once all of them are there."""


class Train(Step):
    """Trains the winner; a killed training goes on from its checkpoint."""

    name = "train"
    after = "repeat"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        asked = {name: getattr(run.request, name) for name in ("dataset", "limit", "seed", "device")}
        asked |= {name: getattr(run.request, name) for name in OF_TRAINING if getattr(run.request, name)}
        epochs = final_epochs(run.study, run.request, winner_of(finalists_of(run)), run.allotment)
        return asked | {"epochs": epochs, "arch": run.output("repeat")["winner"], "data": dict(run.named.data)}

    def is_intact(self, run: Context) -> bool:
        return weights_of(run) is not None

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        request, inputs = run.request, self.inputs(run)
        text = json.dumps(inputs, sort_keys=True)
        folder = run.folder / NEXT / f"training-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        run.progress(0, inputs["epochs"], None, f"training the winner for {inputs['epochs']} epochs")
        found = train_arch(
            winner_of(finalists_of(run)).arch,
            request.dataset,
            folder,
            request.final_recipe | {"epochs": inputs["epochs"]},
            teacher=request.final_teacher,
            teacher_weights=request.final_teacher_weights,
            device=request.device,
            threads=request.final_threads,
            seed=request.seed,
            limit=request.limit,
            run=run.folder,
            progress=_winners(run),
        )
        figures = {field.name: found[field.name] for field in fields(Figures)}
        return {"folder": folder.name, "weights": hash_of(folder / "weights.pt"), "figures": figures}


def _winners(run: Context) -> Any:
    def show(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
        run.progress(done, total, seconds_left, f"training the winner, {text}")

    return show


def weights_of(run: Context) -> Path | None:
    """Where the trained weights are, in `next/` or under their final name; None where they are gone."""
    output = run.output(Train.name)
    for path in (run.folder / NEXT / output["folder"] / "weights.pt", run.folder / "best.pt"):
        if path.is_file() and hash_of(path) == output["weights"]:
            return path
    return None


STEP = Train()
