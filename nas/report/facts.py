"""What the commands print: plain data about archs, spaces and tables, the same for a notebook and for `--json`.

Latencies are in milliseconds here, since these are figures for people; each says whether it is predicted or measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from typing import Any

import search_spaces
from nas.core.arch import Arch, calls_of, stage_runs, steps_of
from nas.core.errors import BudgetError, MissingLatency, NasError, TableError
from nas.core.ops import Block
from nas.core.space import Space
from nas.core.tracing import Call, macs_of_unit, params_of_unit
from nas.core.units import to_ms
from nas.metrics import MB, load_metric
from nas.networks.building import cost_of, with_classes
from nas.profiling.machine import this_machine
from nas.tables.kinds import line_of
from nas.tables.table import Latency, Table

ROW_SECONDS, ROW_SECONDS_224 = 0.7, 1.1  # of a block row: fixed, and in proportion to pixels; from the shipped tables


def describe(arch: Arch) -> dict[str, Any]:
    """Parameters, multiply-adds, peak activation bytes, blocks and ops of an arch; a block's `width` are the channels
    of `x` that it gives, None where it gives none.
    """
    cost = cost_of(arch)
    blocks = [
        {
            "stage": call.stage,
            "block": str(call.row.unit),
            "inputs": [str(shape) for shape in call.row.inputs],
            "width": width_of(call),
            "params": params_of_unit(call.row),
            "macs": macs_of_unit(call.row),
            "ops": [str(op.row) for op in call.ops],
        }
        for call in calls_of(arch)
    ]
    return {
        "arch": arch.id,
        "family": arch.family,
        "input": list(arch.input_shape),
        "classes": arch.classes,
        "params": cost.params,
        "macs": cost.macs,
        "activation_bytes": cost.peak_bytes,
        "blocks": blocks,
    }


def width_of(call: Call) -> int | None:
    """The channels of `x` that a block gives, None where it gives none."""
    shapes = dict(zip(call.row.unit.gives, call.outputs, strict=True)) if isinstance(call.row.unit, Block) else {}
    return shapes["x"].channels if "x" in shapes else None


def architecture(arch: Arch) -> list[dict[str, str]]:
    """The stages in words, equal neighbours counted: `Embedding cout=96, MB4D ratio=4 x3`."""
    stages = enumerate(arch.stages)
    return [{"stage": arch.stage_name(index), "blocks": ", ".join(stage_runs(stage))} for index, stage in stages]


def in_short(arch: Arch) -> dict[str, Any]:
    """An arch in a few figures, to lay several side by side: cost, and of every stage but the head how many blocks it
    has, of which kinds, and how many channels its map has at its end.
    """
    cost, steps = cost_of(arch), iter(steps_of(arch))
    widths, depths, channels = [], [], arch.input_shape[0]
    kinds: Counter[str] = Counter()
    for stage in arch.stages[:-1]:
        for block, step in zip(stage, steps, strict=False):
            channels = width_of(step) or channels
            kinds[type(block).__name__] += 1
        widths.append(channels)
        depths.append(len(stage))
    return {
        "input": arch.input_shape[1],
        "parameters": f"{cost.params:,}",
        "MACs": f"{cost.macs:,}",
        "peak activation bytes": f"{cost.peak_bytes:,}",
        "widths": widths,
        "depths": depths,
        "blocks": ", ".join(f"{name} x{count}" for name, count in kinds.items()),
    }


def estimate(arch: Arch, table: Table) -> dict[str, Any]:
    """The predicted latency of an arch with each block's share, and its peak memory where the table knows it.

    Raises:
        MissingLatency: naming every row the table lacks.
    """
    latency, fit = table.price(calls_of(arch), line_of(arch)), table.memory_fit if table.knows_memory else None
    blocks = [
        {
            "stage": call.stage,
            "block": str(call.row.unit),
            "inputs": ", ".join(map(str, call.row.inputs)),
            "us": us,
            "share": us / latency.total_us,
        }
        for call, us in latency.blocks
    ]
    return {
        "arch": arch.id,
        "latency_ms": to_ms(latency.total_us),
        "predicted_ms": to_ms(latency.total_us),
        "predicted_low_ms": None if latency.low_us is None else to_ms(latency.low_us),
        "predicted_high_ms": None if latency.high_us is None else to_ms(latency.high_us),
        "source": f"predicted{'' if latency.calibrated else ', uncalibrated'}"
        f"{', from imported rows' if table.header.method == 'imported' else ''}",
        "unmeasured_percent": 100 * latency.unmeasured_us / latency.total_us,
        "memory_bytes": None if fit is None else fit.peak_bytes(arch),
        "memory_mape_percent": None if fit is None else fit.mape_percent,
        "outside_blocks_us": latency.offset_us,
        "table": table.where,
        "table_hash": table.hash,
        "device": table.header.device,
        "cpu": table.header.cpu,
        "this_machine": this_machine(table.header.runtime).measured(table.header),
        "noise": table.header.noise,
        "noisy": table.header.noisy,
        "blocks": blocks,
    }


def preset_facts() -> list[dict[str, Any]]:
    """Of every preset what it costs anywhere, what its authors report, and the name of its weights in timm."""
    from nas.timm_models import weights_in_timm  # timm takes a while

    published, found = search_spaces.published(), []
    for name, arch in sorted(search_spaces.presets().items()):
        cost = cost_of(arch)
        facts = {"name": name, "family": arch.family, "arch": arch.id, "input": list(arch.input_shape)}
        found.append(
            facts
            | published[name]._asdict()
            | {"params": cost.params, "macs": cost.macs, "weights": weights_in_timm(name)}
        )
    return found


def presets_on(table: Table) -> dict[str, dict[str, Any]]:
    """What every preset takes by a table: latency in ms with its 90 % interval, memory in MB; or the rows that are
    `missing`. What a table does not know is None.
    """
    found = {}
    for name, arch in search_spaces.presets().items():
        figures: dict[str, Any] = dict.fromkeys(
            ("predicted_ms", "low_ms", "high_ms", "memory_mb", "unmeasured_percent")
        )
        figures["missing"] = []
        try:
            latency = table.price(calls_of(arch), line_of(arch))
        except MissingLatency as error:
            figures["missing"] = list(error.missing)
        else:
            figures |= _in_ms(latency)
            figures["unmeasured_percent"] = 100 * latency.unmeasured_us / latency.total_us
            figures["memory_mb"] = table.memory(arch) / MB if table.knows_memory else None
        found[name] = figures
    return found


def _in_ms(latency: Latency) -> dict[str, float | None]:
    ends = {"predicted_ms": latency.total_us, "low_ms": latency.low_us, "high_ms": latency.high_us}
    return {key: None if us is None else to_ms(us) for key, us in ends.items()}


def published_beside(space: Space, table: Table) -> list[dict[str, Any]]:
    """The published networks that images of a space fit and a table prices, with as many classes as the space has where
    the table knows such a head, else with their own; the fastest first.
    """
    known, found = search_spaces.published(), []
    for name, arch in search_spaces.presets().items():
        if known[name].top1 is None or arch.input_shape != space.input_shape:
            continue
        for each in (with_classes(arch, space.classes), arch):
            with contextlib.suppress(MissingLatency):
                latency, cost = table.price(calls_of(each), line_of(each)), cost_of(each)
                counts = {"params": cost.params, "macs": cost.macs}
                found.append({"name": name, **known[name]._asdict(), **_in_ms(latency), **counts})
                break
    return sorted(found, key=lambda row: row["predicted_ms"])


def presets_by(metric: str, table: Table, confidence: float | None = None) -> dict[str, float | None]:
    """A metric of every preset, None where the table lacks rows of it.

    Raises:
        TableError, BudgetError: the table knows the metric, or that confidence, of none of those that it prices.
    """
    known = load_metric(metric)
    found: dict[str, float | None] = {}
    failure: NasError | None = None
    for name, arch in search_spaces.presets().items():
        found[name] = None
        try:
            found[name] = known.predict(arch, table, confidence)
        except MissingLatency:
            pass
        except (BudgetError, TableError) as error:
            failure = error
    if failure is not None and set(found.values()) == {None}:
        raise failure
    return found


def space_facts(space: Space) -> dict[str, Any]:
    """Number of distinct archs, rows at both levels, and how long profiling takes."""
    rows = space.rows()
    return {
        "space": space.name,
        "input": list(space.input_shape),
        "classes": space.classes,
        "archs": space.count(),
        "rows": len(rows),
        "op_rows": len(space.op_rows()),
        "minutes_to_profile": round(profiling_seconds(space) / 60, 1),
        "choices": {name: list(choice.values) for name, choice in space.choices.items()},
    }


def profiling_seconds(space: Space) -> float:
    """About how long profiling a space at block level takes with ONNX Runtime on a machine like the shipped tables'.

    From its rows and resolution alone; `nas profile SPACE --dry-run` counts multiply-adds, which takes a while itself.
    """
    pixels = space.input_shape[1] * space.input_shape[2]
    return len(space.rows()) * (ROW_SECONDS + ROW_SECONDS_224 * pixels / 224**2)


def table_facts(table: Table) -> dict[str, Any]:
    """What a table was measured on, what it holds and how far it can be trusted."""
    header, card = table.header, table.card
    return {
        "table": table.where,
        "device": header.device,
        "cpu": header.cpu,
        "cores": header.cores,
        "runtime": f"{header.runtime} {header.runtime_version}",
        "precision": header.precision,
        "threads": header.threads,
        "level": header.level,
        "spaces": list(header.spaces),
        "method": header.method,
        "variant": header.variant,
        "date": header.date,
        "noise": header.noise,
        "noisy": header.noisy,
        "rows": len(table.entries),
        "networks": len(table.networks),
        "unmeasured_rows": sum(entry.source != "measured" for entry in table.entries),
        "calibrations": {"x".join(map(str, size)): str(fit) for size, fit in table.calibrations.items()},
        "mape_percent": table.mape_percent,
        "memory": dataclasses.asdict(table.memory_fit) if table.knows_memory else None,
        "checked": header.checked,
        "card": None if card is None else card.facts(),
        "table_hash": table.hash,
    }
