"""A real finished run, for tests of what reads one: 24 scored networks of a small space under two budgets.

`tests/data/run` is what `nas search` left, without what a report does not read: made on the runtime that runs nothing,
with a sampler from outside the package that draws evenly, so that some candidates are over a budget.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

RUN = Path(__file__).parent / "data" / "run"
REQUEST = (RUN / "request.yaml").read_text()
RESULT: dict[str, Any] = json.loads((RUN / "result.json").read_text())
BUDGET_MS: float = RESULT["budgets"][0]["limit"]
TABLE: str = RESULT["provenance"]["table"]
TABLE_HASH: str = RESULT["provenance"]["table_hash"]


def trials(count: int | None = None, seed: int | None = None) -> pd.DataFrame:
    """Its first trials; with a seed, those of another search: they have each other's archs."""
    texts = dict.fromkeys(("arch", "reason", "score", "cost", "table_hash", "started"), str)
    frame = pd.read_csv(RUN / "trials.csv", dtype=texts).fillna(dict.fromkeys(texts, ""))
    if seed is not None:
        archs = frame["arch"].tolist()
        random.Random(seed).shuffle(archs)
        frame["arch"] = archs
    return frame if count is None else frame.head(count)


def result() -> dict[str, Any]:
    """Its `result.json`."""
    return json.loads(json.dumps(RESULT))  # type: ignore[no-any-return]


def blocks() -> list[dict[str, Any]]:
    """The blocks of its winner."""
    return list(result()["winner"]["blocks"])


def training(epochs: int | None = None) -> pd.DataFrame:
    """The first epochs of its winner's training."""
    frame = pd.read_csv(RUN / "training.csv")
    return frame if epochs is None else frame.head(epochs)


def write_run(run_dir: Path, result_json: dict[str, Any] | None = None, frame: pd.DataFrame | None = None) -> Path:
    """Write everything a report reads into `run_dir`, which is made."""
    run_dir.mkdir(parents=True)
    (trials() if frame is None else frame).to_csv(run_dir / "trials.csv", index=False)
    training().to_csv(run_dir / "training.csv", index=False)
    (run_dir / "request.yaml").write_text(REQUEST)
    shutil.copy(RUN / "best.json", run_dir)
    (run_dir / "result.json").write_text(json.dumps(result() if result_json is None else result_json))
    return run_dir
