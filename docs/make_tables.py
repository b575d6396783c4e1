"""The tables of `docs/tables.md`: published networks, spaces, shipped latency tables. Run it when one of them changes.

python docs/make_tables.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nas.report import answers

FILE = Path(__file__).with_name("tables.md")


def text() -> str:
    """The whole file."""
    tables = answers.tables()
    parts = [
        "# Networks, spaces, tables",
        "Written by `docs/make_tables.py`; a test holds it current.",
        "## Published networks",
        "Top-1 on ImageNet at the size of the images, as their authors report it; a dash where no figure was found. "
        "Recipes differ and make for a part of the differences. Parameters and MACs are counted here (convolutions, "
        "linears, matrix products; training form). On a device: `nas shortlist`.",
        _table(
            ("network", "input", "top-1", "parameters", "MACs", "weights in timm", "source; recipe"),
            map(_preset, answers.presets()),
        ),
        "## Spaces",
        "Rows are what a table needs for all of a space; minutes are of ONNX Runtime on one core.",
        _table(("space", "input", "networks", "rows", "op rows", "minutes to profile"), map(_space, _spaces())),
        "## Shipped latency tables",
        "Cards are of networks that a table was not fitted on (`nas validate`); in brackets what chance allows.",
        _table(
            ("table", "rows", "networks", "card", "off", "bias", "within 5 %, 10 %", "Kendall", "in the 90 % interval"),
            (_shipped(table) for table in tables),
        ),
        "Of these spaces none is shipped; one command each makes it: "
        + ", ".join(f"`nas profile {name}`" for name in _unshipped(tables))
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _spaces() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answers.spaces()["spaces"]
    return found


def _unshipped(tables: Sequence[dict[str, Any]]) -> list[str]:
    """The spaces that no shipped table holds."""
    shipped = {space for table in tables for space in table["spaces"]}
    return [space["space"] for space in _spaces() if space["space"] not in shipped]


def _preset(preset: dict[str, Any]) -> Sequence[str]:
    top1 = "-" if preset["top1"] is None else f"{100 * preset['top1']:.1f}"
    said = "; ".join(filter(None, (preset["source"], preset["recipe"]))) or "-"
    weights = f"`{preset['weights']}`" if preset["weights"] else "-"
    side = str(preset["input"][-1])
    return (f"`{preset['name']}`", side, top1, f"{preset['params']:,}", f"{preset['macs']:,}", weights, said)


def _space(space: dict[str, Any]) -> Sequence[str]:
    counts = (f"{space['archs']:,}", str(space["rows"]), str(space["op_rows"]))
    return (f"`{space['space']}`", str(space["input"][-1]), *counts, f"{space['minutes_to_profile']:g}")


def _shipped(table: dict[str, Any]) -> Sequence[str]:
    predicted = f" ({table['unmeasured_rows']} predicted)" if table["unmeasured_rows"] else ""
    begin = (f"`{table['name']}`", f"{table['rows']}{predicted}", str(table["networks"]))
    card = table["card"]
    if card is None:
        return (*begin, "none", f"{table['mape_percent']:.1f} % held out", "", "", "", "")
    covered = "-"
    if card["coverage_percent"] is not None:
        low, high = card["coverage_band_percent"]
        covered = f"{card['coverage_percent']:.0f} % ({low:.0f} to {high:.0f})"
    return (
        *begin,
        f"{len(card['networks'])} networks",
        f"{card['mape_percent']:.1f} %",
        f"{card['bias_percent']:+.1f} %",
        f"{card['within_5_percent']:.0f} %, {card['within_10_percent']:.0f} %",
        f"{card['kendall']:.3f}",
        covered,
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
