"""A made-up but lifelike finished run, for tests of what reads one: 80 trials of a small space under budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BUDGET_MS = 0.55
TABLE = "latency_tables/this-machine/onnxruntime-fp32-1t.csv"
TABLE_HASH = "9f2c" * 16
REQUEST = f"""\
name: quickstart
space: efficientformer_32
table: {TABLE}
budgets:
  - latency_ms<=0.55  # p40 of the space
dataset: digits
evaluator: {{epochs: 6}}
sampler: tpe
trials: 60
workers: 2
seed: 0
"""
STAGES = (("stem", 1), ("1", 2), ("2", 3), ("3", 5), ("4", 3), ("head", 1))


def trials(count: int = 80, seed: int = 0) -> pd.DataFrame:
    """A study in `trials.csv`'s columns: losses fall as latency rises and as trials go by, states are mixed."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        drawn = 0.2 + rng.gamma(3.0, 0.13) * (1.4 - 0.7 * number / count)
        state = "infeasible" if drawn > BUDGET_MS else rng.choice(["evaluated"] * 14 + ["duplicate", "failed"])
        loss = 0.22 + 0.05 / drawn + rng.gamma(2.0, 0.07) * (1.5 - number / count)
        row = {
            "number": number,
            "state": state,
            "reason": "",
            "predicted_ms": round(drawn, 5),
            "predicted_low_ms": round(drawn * 0.96, 5),
            "predicted_high_ms": round(drawn * 1.04, 5),
            "params": int(drawn * 420_000),
            "macs": int(drawn * 21_000_000),
            "value": round(loss, 5) if state == "evaluated" else np.nan,
            "score": "val_loss" if state == "evaluated" else "",
            "val_loss": round(loss, 5) if state == "evaluated" else np.nan,
            "val_accuracy": round(1 - loss / 6, 4) if state == "evaluated" else np.nan,
            "seconds": round(rng.uniform(3, 6), 2) if state == "evaluated" else np.nan,
            "cost": "6 epochs of 1150 images, fp32 on cpu" if state == "evaluated" else "",
            "started": f"2026-11-21T10:{number // 20:02d}:{number * 3 % 60:02d}",
            "arch": f"{rng.integers(16**12):012x}",
            "duplicate_of": number - 1 if state == "duplicate" else np.nan,
            "table_hash": TABLE_HASH,
            "seed": 0,
            "param.width_1": int(rng.choice([16, 32, 48])),
            "param.depth_3": int(rng.integers(1, 6)),
            "param.act": str(rng.choice(["gelu", "relu"])),
        }
        if state == "infeasible":
            row["reason"] = f"latency {drawn:.3f} ms > {BUDGET_MS} ms"
        elif state == "failed":
            row["reason"] = "loss is NaN at epoch 3"
        rows.append(row)
    return pd.DataFrame(rows)


def finalist(row: dict[Any, Any], error: float) -> dict[str, Any]:
    """A trial after it was measured; its prediction is off by the fraction `error`."""
    loss = row["val_loss"]
    return {
        "arch": row["arch"],
        "number": row["number"],
        "predicted_ms": row["predicted_ms"],
        "measured_ms": round(row["predicted_ms"] * (1 - error), 5),
        "measured_spread_ms": 0.006,
        "params": row["params"],
        "macs": row["macs"],
        "values": [loss, round(loss * 1.06, 5), round(loss * 0.97, 5)],
        "val_losses": [loss, round(loss * 1.06, 5), round(loss * 0.97, 5)],
        "val_accuracies": [row["val_accuracy"], row["val_accuracy"] - 0.004, row["val_accuracy"] + 0.002],
        "fits": row["predicted_ms"] * (1 - error) <= BUDGET_MS,
    }


def blocks(predicted_ms: float) -> list[dict[str, Any]]:
    """Blocks of every stage whose latencies sum to the prediction."""
    listed: list[dict[str, Any]] = []
    for stage, depth in STAGES:
        for index in range(depth):
            if stage in ("stem", "head"):
                block = "Stem width=24" if stage == "stem" else "Head classes=10"
            elif index == 0:
                block = "Embedding cout=96 stride=2"
            else:
                block = "MB3D ratio=4 heads=8" if stage == "4" else f"MB4D ratio={2 + index % 3}"
            listed.append({"stage": stage, "block": block, "inputs": "1x48x8x8", "weight": 10 + 7 * (len(listed) % 4)})
    total = sum(entry["weight"] for entry in listed)
    for entry in listed:
        share = entry.pop("weight") / total
        entry.update(us=round(1000 * predicted_ms * share, 3), share=share)
    return listed


def result(frame: pd.DataFrame | None = None) -> dict[str, Any]:
    """What a search writes as `result.json` for these trials; the best three by loss are the finalists."""
    frame = trials() if frame is None else frame
    best: list[dict[Any, Any]] = frame[frame["state"] == "evaluated"].nsmallest(3, "val_loss").to_dict("records")
    finalists = [finalist(row, error) for row, error in zip(best, (0.021, -0.034, 0.008), strict=True)]
    winner = {
        **finalists[0],
        "training": {"epochs": 40, "val_accuracy": 0.9833, "test_accuracy": 0.9806, "seconds": 41.5},
        "blocks": blocks(finalists[0]["predicted_ms"]),
        "architecture": [
            {"stage": "stem", "blocks": "Stem (width 24)"},
            {"stage": "1", "blocks": "Embedding, MB4D x1 (width 48, ratio 3)"},
            {"stage": "2", "blocks": "Embedding, MB4D x2 (width 96, ratio 4)"},
            {"stage": "3", "blocks": "Embedding, MB4D x4 (width 144, ratio 2)"},
            {"stage": "4", "blocks": "Embedding, MB3D x2 (width 192, ratio 4, 8 heads)"},
            {"stage": "head", "blocks": "Head (10 classes, two classifiers)"},
        ],
    }
    counts = {
        "proposed": len(frame),
        **{state: int((frame["state"] == state).sum()) for state in ("evaluated", "infeasible", "duplicate", "failed")},
    }
    return {
        "schema": 1,
        "name": "quickstart",
        "space": "efficientformer_32",
        "objective": "accuracy",
        "score": "val_loss",
        "budgets": [
            {
                "metric": "latency_ms",
                "limit": BUDGET_MS,
                "asked": "latency_ms<=p40",
                "table": TABLE,
                "quantile_of": "p40",
            },
            {"metric": "params", "limit": 400_000, "asked": "params<=400000", "table": None, "quantile_of": None},
        ],
        "counts": counts,
        "finalists": finalists,
        "winner": winner,
        "reference": {"name": "median of the space", "predicted_ms": 0.61, "params": 262_144, "macs": 13_100_000},
        "ranking": {
            "text": "The winner beats the second in 2 of 3 repeated runs: the order of the finalists is weakly known.",
            "pairs_sure": 0.67,
            "noise_sigma": 0.021,
        },
        "smallest": {"predicted_ms": 0.187, "arch": "00c0ffee0000"},
        "provenance": {
            "table": TABLE,
            "table_hash": TABLE_HASH,
            "device": "this-machine",
            "cpu": "Example CPU @ 2.00 GHz",
            "runtime": "onnxruntime 1.31.1",
            "threads": 1,
            "precision": "fp32",
            "calibration": "scale 0.981 fitted on 9 whole networks",
            "table_mape_percent": 2.4,
            "not_this_machine": False,
            "dataset": "digits",
            "seed": 0,
            "versions": {"nas": "0.1.0", "torch": "2.14.0", "optuna": "5.0.0"},
            "started": "2026-11-21T10:00:00+00:00",
            "seconds": 263.0,
        },
    }


def training(epochs: int = 40) -> pd.DataFrame:
    """A history that converges, with a learning rate that falls."""
    epoch = np.arange(1, epochs + 1)
    noise = np.random.default_rng(1).normal(0, 0.01, epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": 0.35 + 1.9 * np.exp(-epoch / 6),
            "val_loss": 0.12 + 1.6 * np.exp(-epoch / 5) + np.abs(noise),
            "val_accuracy": 0.982 - 0.7 * np.exp(-epoch / 4) + noise / 5,
            "lr": 0.002 * (1 + np.cos(np.pi * epoch / epochs)) / 2,
        }
    )


def write_run(run_dir: Path, result_json: dict[str, Any] | None = None, frame: pd.DataFrame | None = None) -> Path:
    """Write everything a report reads into `run_dir`, which is made."""
    run_dir.mkdir(parents=True)
    frame = trials() if frame is None else frame
    frame.to_csv(run_dir / "trials.csv", index=False)
    training().to_csv(run_dir / "training.csv", index=False)
    (run_dir / "request.yaml").write_text(REQUEST)
    (run_dir / "result.json").write_text(json.dumps(result(frame) if result_json is None else result_json))
    return run_dir
