"""The log of a training: one line of CSV an epoch, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nas.core.files import write_text, writing

COLUMNS = ("train_loss", "val_loss", "val_accuracy", "lr", "images_per_second", "resolution")
"""What TensorBoard shows."""


class TrainingLog:
    """Writes `training.csv` and TensorBoard's events into a folder after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board: Any = None

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs so far; the last one is new.

        TensorBoard gets all of them the first time, in place of what an interrupted training wrote: between its
        checkpoint and its log, one may have been lost.

        Raises:
            RunError: the folder cannot be written.
        """
        write_history(history, self.folder / "training.csv")
        with writing(self.folder / "tensorboard"):
            self._show(history)

    def _show(self, history: Sequence[Mapping[str, Any]]) -> None:
        fresh = history[-1:]
        if self.board is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            fresh = history
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=int(history[0]["epoch"]))
        if self.board is not None:
            for epoch in fresh:
                for name in COLUMNS:
                    if name in epoch:
                        self.board.add_scalar(name, epoch[name], int(epoch["epoch"]))
            self.board.flush()

    def close(self) -> None:
        """End TensorBoard's file."""
        if self.board is not None:
            with writing(self.folder / "tensorboard"):
                self.board.close()


def write_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The epochs of a training run as CSV, one line each; what an epoch did not measure stays empty."""
    columns = list(dict.fromkeys(key for epoch in history for key in epoch))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
