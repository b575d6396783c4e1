"""Run notebooks and store what they show: each Plotly figure with a PNG beside it, for web pages of repositories.

python notebooks/store.py NOTEBOOK...             # from top to bottom, in place
python notebooks/store.py --pictures NOTEBOOK...  # only the pictures of figures that are stored already

Pictures are drawn by Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from plotly.offline import get_plotlyjs

FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"
SIZE = (760, 420)  # of a figure that does not say
FLAGS = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "virtual-time-budget=60000")
DRAW = """
const drawn = figures.map(async (figure, index) => {
  const place = document.body.appendChild(document.createElement('div'))
  await Plotly.newPlot(place, figure.data, figure.layout)
  const picture = await Plotly.toImage(place, {format: 'png', width: figure.width, height: figure.height, scale: 1.5})
  const text = document.body.appendChild(document.createElement('pre'))
  text.id = 'picture-' + index
  text.textContent = picture
})
"""


def pictures(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as Plotly's JSON, drawn as PNGs in base64.

    Raises:
        SystemExit: Chromium is not there, or did not draw all of them.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium here (Debian: apt-get install chromium)")
    sized = [{"data": each["data"], "layout": each["layout"]} | _size(each["layout"]) for each in figures]
    inline = json.dumps(sized).replace("</", "<\\/")
    script = f"const figures = {inline}\n{DRAW}"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"<meta charset=utf-8><body><script>{get_plotlyjs()}</script><script>{script}</script>")
        flags = [*(f"--{flag}" for flag in FLAGS), f"--user-data-dir={folder}/profile", "--dump-dom"]
        dom = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'<pre id="picture-(\d+)">data:image/png;base64,([^<]+)</pre>', dom))
    if len(found) != len(figures):
        sys.exit(f"Chromium drew {len(found)} of {len(figures)} figures")
    return [found[str(index)] for index in range(len(figures))]


def _size(layout: dict[str, Any]) -> dict[str, int]:
    return {"width": layout.get("width") or SIZE[0], "height": layout.get("height") or SIZE[1]}


def draw(notebook: nbformat.NotebookNode) -> None:
    """Put a picture beside every figure that the notebook has stored."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if FIGURE in output.get("data", {})]
    for data, picture in zip(shown, pictures([data[FIGURE] for data in shown]), strict=True):
        data[PICTURE] = picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--pictures", action="store_true", help="only the pictures of figures that are stored already")
    asked = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # bars are no result
    for path in asked.notebooks:
        notebook = nbformat.read(path, as_version=4)
        if not asked.pictures:
            where = {"metadata": {"path": path.parent}}
            NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where).execute()
            for cell in notebook.cells:  # what a run leaves besides results
                cell.metadata.pop("execution", None)
                if "outputs" in cell:
                    cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        draw(notebook)
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
