"""The winner's ONNX file, checked on real images, and `result.json`; then the whole set takes its names together."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from nas.core.files import hash_of, whole, write_text
from nas.evaluation.checkpoint import read_weights, write_safetensors
from nas.evaluation.runs import passport_of
from nas.networks.building import build, input_shape_of, load_weights
from nas.networks.export import check_onnx, export_onnx
from nas.search.belief import belief_of
from nas.search.context import Context, known_of
from nas.search.results import Figures, result_data
from nas.search.steps import Step
from nas.search.steps.repeat import finalists_of, winner_of
from nas.search.steps.train import NEXT, weights_of

IMAGES = 32  # that the file is checked on
# what belongs together; the last one last
SET = ("best.json", "best.pt", "best.safetensors", "best.onnx", "training.csv", "result.json")


class Export(Step):
    """Makes what a user takes along. The files of a set are all of one winner at every moment; see `swap`."""

    name = "export"
    after = "train"

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {name: run.output(name) for name in ("search", "measure", "repeat", "train")}

    def is_intact(self, run: Context) -> bool:
        kept = run.output(self.name)["files"]
        return kept.keys() == set(SET) and all(
            (run.folder / name).is_file() and hash_of(run.folder / name) == kept[name] for name in kept
        )

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        finalists, staged = finalists_of(run), run.folder / NEXT
        winner = winner_of(finalists)
        for name in SET:  # what a process that was killed left may be of another winner
            (staged / name).unlink(missing_ok=True)
        weights = weights_of(run)
        assert weights is not None, "the step before left none"
        model = build(winner.arch)
        load_weights(model, read_weights(weights), str(weights))
        write_safetensors(staged / "best.safetensors", model, passport_of(winner.arch, run.data))
        path = export_onnx(model, [input_shape_of(winner.arch)], staged / "best.onnx")
        checked = self._check(run, path, model)
        write_text(staged / "best.json", winner.arch.to_json() + "\n")
        if weights.parent != run.folder:
            for name, source in (("best.pt", weights), ("training.csv", weights.with_name("training.csv"))):
                with whole(staged / name) as temporary:
                    shutil.copyfile(source, temporary)
        figures, belief = Figures(**run.output("train")["figures"]), belief_of(known_of(run), run.study)
        result = result_data(run, finalists, winner, figures, checked, belief)
        for warning in result["warnings"]:
            run.log(f"WARNING: {warning}")
        write_text(staged / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        swap(staged, run.folder)
        return {"files": {name: hash_of(run.folder / name) for name in SET}}

    def _check(self, run: Context, path: Path, model: nn.Module) -> dict[str, Any] | None:
        """Compare the file's outputs with PyTorch's on validation images; None where ONNX Runtime is not installed."""
        if find_spec("onnxruntime") is None:
            run.log(
                f"{path} is NOT CHECKED against PyTorch: that needs ONNX Runtime, pip install 'millinas[onnxruntime]'"
            )
            return None
        images = [image for image, _ in itertools.islice(run.data.val.batches(1), IMAGES)]
        return {"images": len(images), "difference": check_onnx(path, model, images)}


def swap(staged: Path, folder: Path) -> None:
    """Put the files of a set that wait in `staged` in the place of those in `folder`; then `staged` goes.

    The old ones leave before the new ones come, `result.json` first and last: a process that is killed on the way
    leaves part of one set, never parts of two, and a folder without `result.json` is a run that is not finished.
    """
    waiting = [name for name in SET if (staged / name).is_file()]
    for name in reversed(waiting):
        (folder / name).unlink(missing_ok=True)
    for name in waiting:
        (staged / name).replace(folder / name)
    shutil.rmtree(staged)


STEP = Export()
