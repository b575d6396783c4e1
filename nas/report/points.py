"""Models of other libraries that were measured, as points beside a search and beside published networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.core.errors import InputError
from nas.core.files import lock_of, write_text

FILE = "points.json"  # in the folder of a run: what its report shows
#: of each point; top1 is a fraction, as the user gave it, or None
FIELDS = {
    "name": str,
    "input": list,
    "params": int,
    "macs": int,
    "measured_ms": float,
    "measured_spread_ms": float,
    "runtime": str,
    "precision": str,
    "threads": int,
    "device": str,
    "disturbed": bool,
    "date": str,
}
SAME = ("name", "input", "precision", "threads", "device")  # with the runtime's name: measured anew, it is replaced


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points in a file that `add_point` wrote.

    Raises:
        InputError: it is missing or holds something else, saying where.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a file of points: {error}. nas measure --points writes one"
        ) from error
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of points, as nas measure --points writes it")
    for place, point in enumerate(found):
        for key, kind in FIELDS.items():
            value = point.get(key) if isinstance(point, dict) else None
            if not isinstance(value, (int, float) if kind is float else kind):
                raise InputError(f"{path}: point {place}: {key}: expected {kind.__name__}, got {value!r}")
        if point.get("top1") is not None and not isinstance(point["top1"], float):
            raise InputError(f"{path}: point {place}: top1: expected a fraction, got {point['top1']!r}")
    return found


def add_point(path: Path, point: Mapping[str, Any]) -> None:
    """Add a point to a file; one of the same model, measured in the same way, gives way.

    Raises:
        InputError: the file holds something else.
        RunError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(path):
        known = read_points(path) if path.is_file() else []
        kept = [each for each in known if _how(each) != _how(point)]
        write_text(path, json.dumps([*kept, dict(point)], indent=2) + "\n")


def _how(point: Mapping[str, Any]) -> list[Any]:
    return [point["runtime"].partition(" ")[0], *(point[key] for key in SAME)]


def beside(point: Mapping[str, Any], runtime: str, precision: str, threads: int, device: str) -> str:
    """Why a point does not compare with latencies of this kind; empty where it does."""
    mine = (point["runtime"].partition(" ")[0], point["precision"], point["threads"], point["device"])
    other = (runtime.partition(" ")[0], precision, threads, device)
    return "" if mine == other else f"measured with {mine[0]} {mine[1]}, {mine[2]} thread(s), on {mine[3]}"
