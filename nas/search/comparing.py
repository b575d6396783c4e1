"""Networks side by side: their blocks, costs and predicted latency, stage by stage."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from nas.core.errors import InputError, MissingLatency
from nas.core.units import show_bytes, show_count, to_ms
from nas.report import answers

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.tables.table import Table

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#1f2933", "#8a94a0")  # those of plots
CELL = 'style="text-align:left;padding:3px 14px 3px 0;vertical-align:top"'


@dataclass(frozen=True)
class Comparison:
    """Networks side by side; a notebook draws it.

    Attributes:
        data: plain data. `networks`: of each `name`, `params`, `macs`, `activation_bytes`, its `blocks`, and `stages`:
            of each its `blocks` in words, `depth`, `width` (channels behind it), `params`, `macs`, `us`. With a table
            also `predicted_ms` with `low_ms` and `high_ms`, `memory_bytes` and `outside_blocks_us`, None where it lacks
            rows, which are `missing`. `table`: its name, CPU and whether it is of this machine; None without one.
    """

    data: dict[str, Any]

    def costs(self) -> list[tuple[str, ...]]:
        """What the networks cost in words, a line for each cost, beginning with its name."""
        rows: list[tuple[str, list[Any]]] = [
            ("input", ["x".join(map(str, each["input"])) for each in self.data["networks"]]),
            ("parameters", self._shown("params", show_count)),
            ("MACs", self._shown("macs", show_count)),
            ("activations, fp32", self._shown("activation_bytes", show_bytes)),
        ]
        if self.data["table"] is not None:
            rows += [
                ("predicted latency", self._shown("predicted_ms", lambda ms: f"{ms:.4g} ms")),
                ("90 % interval", list(map(_interval, self.data["networks"]))),
                ("memory", self._shown("memory_bytes", lambda size: f"{size / 1e6:.0f} MB")),
            ]
        return [(name, *cells) for name, cells in rows]

    def stages(self) -> list[tuple[str, ...]]:
        """A line for each stage: its name, and of each network the blocks there, and the latency with a table."""
        networks = [{stage["stage"]: stage for stage in each["stages"]} for each in self.data["networks"]]
        order = sorted(dict.fromkeys(name for stages in networks for name in stages), key=_place)
        lines = []
        for name in order:
            cells: list[str] = []
            for stages in networks:
                stage = stages.get(name)
                cells.append(", ".join(stage["blocks"]) if stage else "")
                if self.data["table"] is not None:
                    cells.append("-" if stage is None or stage["us"] is None else f"{to_ms(stage['us']):.4g}")
            lines.append((name, *cells))
        return lines

    def _shown(self, key: str, show: Any) -> list[str]:
        return ["-" if each[key] is None else show(each[key]) for each in self.data["networks"]]

    def _repr_html_(self) -> str:
        """Costs as a table; below it every network as a strip of its blocks in order, all strips on one scale."""
        names = ("", *(each["name"] for each in self.data["networks"]))
        lines = [f"<tr>{''.join(f'<th {CELL}>{escape(name)}</th>' for name in names)}</tr>"]
        lines += [f"<tr>{''.join(f'<td {CELL}>{escape(cell)}</td>' for cell in line)}</tr>" for line in self.costs()]
        return f'<div style="overflow-x:auto">{self._where()}<table>{"".join(lines)}</table>{self._strips()}</div>'

    def _where(self) -> str:
        table = self.data["table"]
        if table is None:
            return ""
        here = "measured on a machine like this one" if table["this_machine"] else "<b>not this machine</b>"
        return f"<p>{escape(table['name'])}, {escape(table['cpu'])}: {here}</p>"

    def _strips(self) -> str:
        """Widths are latency, or MACs where some network has no latency."""
        networks = self.data["networks"]
        key = "us" if all(block["us"] is not None for each in networks for block in each["blocks"]) else "macs"
        most = max(sum(block[key] for block in each["blocks"]) for each in networks) or 1
        kinds = dict.fromkeys(block["block"].split()[0] for each in networks for block in each["blocks"])
        color = dict(zip(kinds, itertools.cycle(COLORS), strict=False))
        parts = [f"<p>blocks in order, as wide as {'their latency' if key == 'us' else 'their MACs'}</p>"]
        for each in networks:
            boxes = "".join(
                f'<span title="{escape(_about(block))}" style="display:inline-block;height:28px;box-sizing:border-box;'
                f"border-right:1px solid white;width:{100 * block[key] / most:.3f}%;"
                f'background:{color[block["block"].split()[0]]}"></span>'
                for block in each["blocks"]
            )
            parts.append(f'<div>{escape(each["name"])}</div><div style="white-space:nowrap;font-size:0">{boxes}</div>')
        legend = "".join(
            f'<span style="margin-right:14px"><span style="color:{color[kind]}">&#9632;</span> {escape(kind)}</span>'
            for kind in kinds
        )
        return f"{''.join(parts)}<p>{legend}</p>"


def compare(*archs: str | os.PathLike[str] | Arch, table: str | os.PathLike[str] | Table | None = None) -> Comparison:
    """Lay networks side by side.

    Args:
        archs: presets, files, runs or trials of them as `nas.load_arch` takes them, or archs.
        table: a file, the name of a shipped table, or a table; without one nothing is said of latency.

    Raises:
        InputError: fewer than two networks, or one that is not there.
        TableError: for a file that is no table.
        MissingLatency: the table lacks rows of every network; where it prices some, the others say what is missing.
    """
    if len(archs) < 2:
        raise InputError(f"expected two networks or more to compare, got {len(archs)}")
    networks, failures = [], []
    about = None
    for arch in archs:
        facts, estimate = _described(arch), None
        if table is not None:
            try:
                estimate = _estimated(arch, table)
                keys = ("table", "table_hash", "device", "cpu", "this_machine")
                about = {"name": _name_of(table)} | {key: estimate[key] for key in keys}
            except MissingLatency as error:
                failures.append(error)
        missing = list(failures[-1].missing) if table is not None and estimate is None else []
        networks.append(_network(arch, facts, estimate, missing))
    if len(failures) == len(archs):
        raise failures[0]
    return Comparison({"table": about, "networks": networks})


def _described(arch: str | os.PathLike[str] | Arch) -> dict[str, Any]:
    from nas.report import facts

    return answers.describe(str(arch), _load) if isinstance(arch, str | os.PathLike) else facts.describe(arch)


def _estimated(arch: str | os.PathLike[str] | Arch, table: str | os.PathLike[str] | Table) -> dict[str, Any]:
    if isinstance(arch, str | os.PathLike) and isinstance(table, str | os.PathLike):
        return answers.estimate(str(arch), str(table), _load)
    import latency_tables
    from nas.report import facts
    from nas.tables.table import Table

    known = Table.read(latency_tables.find(table)) if isinstance(table, str | os.PathLike) else table
    return facts.estimate(_load(arch) if isinstance(arch, str | os.PathLike) else arch, known)


def _load(name: str | os.PathLike[str]) -> Arch:
    from nas.search.archs import load_arch

    return load_arch(name)


def _name_of(thing: Any) -> str:
    if isinstance(thing, str | os.PathLike):
        return str(thing)
    return str(getattr(thing, "where", "")) or str(thing.id)


def _network(
    arch: Any, facts: Mapping[str, Any], estimate: Mapping[str, Any] | None, missing: Sequence[str]
) -> dict[str, Any]:
    known: Mapping[str, Any] = estimate or {}
    times = known.get("blocks") or [{"us": None, "share": None}] * len(facts["blocks"])
    keys = ("stage", "block", "inputs", "width", "params", "macs")
    blocks = [
        {key: block[key] for key in keys} | {"us": time["us"], "share": time["share"]}
        for block, time in zip(facts["blocks"], times, strict=True)
    ]
    return {
        "name": _name_of(arch) if isinstance(arch, str | os.PathLike) else arch.id,
        **{key: facts[key] for key in ("arch", "family", "input", "classes", "params", "macs", "activation_bytes")},
        "predicted_ms": known.get("predicted_ms"),
        "low_ms": known.get("predicted_low_ms"),
        "high_ms": known.get("predicted_high_ms"),
        "memory_bytes": known.get("memory_bytes"),
        "outside_blocks_us": known.get("outside_blocks_us"),
        "missing": missing,
        "blocks": blocks,
        "stages": [_stage(name, list(group)) for name, group in itertools.groupby(blocks, lambda each: each["stage"])],
    }


def _stage(name: str, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = [(text, len(list(group))) for text, group in itertools.groupby(block["block"] for block in blocks)]
    widths = [block["width"] for block in blocks if block["width"] is not None]
    return {
        "stage": name,
        "blocks": [f"{text} x{count}" if count > 1 else text for text, count in runs],
        "depth": len(blocks),
        "width": widths[-1] if widths else None,
        "params": sum(block["params"] for block in blocks),
        "macs": sum(block["macs"] for block in blocks),
        "us": None if blocks[0]["us"] is None else sum(block["us"] for block in blocks),
    }


def _place(stage: str) -> tuple[int, str]:
    """Numbered stages in order, then the head."""
    return (int(stage), "") if stage.isdigit() else (10**9, stage)


def _interval(network: Mapping[str, Any]) -> str:
    low, high = network["low_ms"], network["high_ms"]
    return "-" if low is None else f"{low:.4g} to {high:.4g} ms"


def _about(block: Mapping[str, Any]) -> str:
    time = "" if block["us"] is None else f", {block['us']:.1f} us, {block['share']:.1%}"
    begin = f"stage {block['stage']}: {block['block']} on {', '.join(block['inputs'])}"
    return f"{begin}, {show_count(block['macs'])} MACs{time}"
