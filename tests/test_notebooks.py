"""Notebooks run from top to bottom: on a finished run, studies in their reduced form."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nas.evaluation.datasets import fashion_mnist

FIGURE = re.compile(r"(plots\.plot_\w+|drawn)\(")  # the last line of a cell that shows one
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, finished_run, monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_RUN", str(finished_run))
    monkeypatch.setenv("NAS_STUDY", "reduced")
    monkeypatch.setenv("NAS_STUDY_FOLDER", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    if "fashion-mnist" in str(notebook.cells) and not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    where = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    figures = sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    assert figures == sum(bool(FIGURE.match(cell.source.rpartition("\n")[2])) for cell in notebook.cells) >= 3
