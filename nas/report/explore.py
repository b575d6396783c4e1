"""Runs to look into by hand: the candidates of one or several, on the table of the search or on another.

All that is shown is worked out here and stands in the page as data; the page's own script draws it, and loads nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

import latency_tables
from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError, MissingLatency, NasError
from nas.core.files import write_text
from nas.core.ops import Row
from nas.core.tracing import Call, macs_of_unit
from nas.core.units import to_ms
from nas.evaluation.evaluators import title_of
from nas.networks.building import with_classes
from nas.profiling.machine import this_machine
from nas.report import facts, plots
from nas.report.front import evaluated_trials, non_dominated
from nas.report.runs import Run, read_run
from nas.tables.kinds import line_of
from nas.tables.table import Table

Named = str | os.PathLike[str]
Size = tuple[int, int, int]

TEMPLATES = Path(__file__).parent / "templates"
MOST_SCORED, MOST_UNSCORED = 1500, 500  # candidates that a page holds
DIGITS = 5  # of a figure in a page
ENDS = ("predicted_ms", "predicted_low_ms", "predicted_high_ms")
SHOWN = ("evaluated", "stopped", "infeasible")


@dataclass(frozen=True)
class Explorer:
    """Candidates to look into; a notebook shows it, `save` makes a file of it.

    Attributes:
        data: what the page shows. `tables`: each with its `name`, CPU and whether it is of this machine. `runs`: each
            with its name, path, settings, `winner` and budget. `candidates`: a column for each of `run`, `number`,
            `state`, `value` and others, and for each table `ms`, `low` and `high`, None where it cannot price them;
            `blocks` are places in `rows`. `published`: networks by table. `points`: measured models of other
            libraries. `left_out`: how many candidates a page does not hold.
    """

    data: Mapping[str, Any]

    @property
    def html(self) -> str:
        """The page."""
        title = ", ".join(dict.fromkeys(run["name"] for run in self.data["runs"]))
        return templates().get_template("explore_page.html").render(title=title, component=component(self.data))

    def save(self, path: Named) -> Path:
        """Write the page as one file, which needs nothing else.

        Raises:
            RunError: it cannot be written.
        """
        write_text(path, self.html)
        return Path(path)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither its styles nor the notebook's reach the other."""
        style = "width:100%;height:1000px;border:0"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}" title="candidates of a search"></iframe>'


def explore(run: Named, *more_runs: Named, tables: Named | Table | Sequence[Named | Table] | None = None) -> Explorer:
    """The candidates of a finished run to look into, or of several in one plot.

    Args:
        run, more_runs: folders of runs whose candidates were scored by one score.
        tables: on which to price the candidates beside the table of the search: files, names of shipped tables, or
            tables; by default every shipped table that has their rows.

    Raises:
        RunError: a run is not finished, or cannot be read.
        InputError: the runs were scored by different scores; there is no such table.
        TableError: a table cannot be read.
        MissingLatency: a table that was asked for lacks rows of every candidate.
    """
    runs = [read_run(path) for path in dict.fromkeys(map(str, (run, *more_runs)))]
    if tables is None:
        return Explorer(look_into(runs))
    one = isinstance(tables, str | os.PathLike | Table)
    return Explorer(look_into(runs, [tables] if one else list(tables)))  # type: ignore[arg-type, list-item]


def look_into(runs: Sequence[Run], tables: Sequence[Named | Table] | None = None) -> dict[str, Any]:
    """`Explorer.data` of runs; arguments and errors as of `explore`."""
    scores = list(dict.fromkeys(run.result["score"] for run in runs))
    if len(scores) > 1:
        raise InputError(f"runs scored by {' and '.join(scores)} have no values that compare: explore each by itself")
    frame = pd.concat([_candidates(run, place) for place, run in enumerate(runs)], ignore_index=True)
    pairs = zip(frame["run"], frame["number"], strict=True)
    archs = [runs[place].archs.get(int(number)) for place, number in pairs]
    known = _known(runs, archs, tables)
    prices = [table.price(runs, frame, archs) for table in known]
    kept = _kept(frame, prices, runs)
    blocks, rows = _blocks([archs[place] for place in kept])
    candidates = {name: _plain(frame[name].iloc[kept]) for name in frame if name not in ENDS}
    candidates |= {name: [_plain(each[name].iloc[kept]) for each in prices] for name in ("ms", "low", "high")}
    return {
        "score": title_of(scores[0]),
        "tables": [table.about(runs, rows) for table in known],
        "runs": [_about_run(run, label) for run, label in zip(runs, _labels(runs), strict=True)],
        "rows": [_about_row(call) for call in rows.values()],
        "candidates": candidates | {"blocks": blocks},
        "published": [table.published(runs) for table in known],
        "points": [
            {"run": place, "name": point["name"], "ms": _rounded(float(point["measured_ms"]))}
            for place, run in enumerate(runs)
            for point in run.points
            if not point["elsewhere"]
        ],
        "left_out": len(frame) - len(kept),
    }


@dataclass(frozen=True)
class _Known:
    """A table by which candidates are priced.

    Attributes:
        facts: its name, device, CPU, runtime, precision and threads, and whether it is of this machine.
        hash: of its content.
        table: None where a search's own is not there any more.
        classes: of the heads that it prices, where it has none of the runs' own.
    """

    facts: Mapping[str, Any]
    hash: str | None
    table: Table | None
    classes: int | None = None

    def about(self, runs: Sequence[Run], rows: Iterable[tuple[Size, Row]]) -> dict[str, Any]:
        """Its facts, the runs whose own it is, the time outside the blocks in us for each run, and what each row adds
        to the sum that a prediction is made of: in one network the times of blocks are to each other as these.
        """
        fits = {} if self.table is None else self.table.calibrations
        known = [fits.get(run.space.input_shape) if run.space is not None else None for run in runs]
        outside = [0.0 if fit is None else _rounded(fit.offset_us) for fit in known]
        weights: list[float | None] = []
        costs = {
            run.space.input_shape: self.table.cost_of_row(run.space)
            for run in runs
            if self.table is not None and run.space is not None
        }
        for size, row in rows:
            us = None
            with contextlib.suppress(MissingLatency, KeyError):
                us = _rounded(costs[size](self._with_head(row)))
            weights.append(us)
        own = [place for place, run in enumerate(runs) if run.result["provenance"]["table_hash"] == self.hash]
        told = {"own": own, "classes": self.classes, "outside_us": outside, "weights": weights}
        return {**self.facts, **told}

    def _with_head(self, row: Row) -> Row:
        """The row, with the classes of the table's heads where it is one of a head."""
        if self.classes is None or not hasattr(row.unit, "classes"):
            return row
        return row._replace(unit=dataclasses.replace(row.unit, classes=self.classes))  # type: ignore[call-arg]

    def price(self, runs: Sequence[Run], frame: pd.DataFrame, archs: Sequence[Arch | None]) -> pd.DataFrame:
        """What each candidate takes, in ms, with the ends of its interval: as the search knew it on its own table."""
        own = {place for place, run in enumerate(runs) if run.result["provenance"]["table_hash"] == self.hash}
        found = frame[list(ENDS)].to_numpy(dtype=float, na_value=np.nan)
        for place, (run, arch) in enumerate(zip(frame["run"], archs, strict=True)):
            if run not in own:
                found[place] = np.nan
                if self.table is not None and arch is not None:
                    with contextlib.suppress(MissingLatency):
                        latency = self.table.price(calls_of(_laid(arch, self.classes)), line_of(arch))
                        ends = (latency.total_us, latency.low_us, latency.high_us)
                        found[place] = [np.nan if us is None else to_ms(us) for us in ends]
        return pd.DataFrame(found, columns=["ms", "low", "high"])

    def published(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """The published networks that take the images of a run, on this table."""
        found: dict[str, dict[str, Any]] = {}
        for run in runs:
            if run.result["provenance"]["table_hash"] == self.hash:
                rows: Sequence[Mapping[str, Any]] = run.result.get("published", [])
            else:
                rows = [] if self.table is None or run.space is None else facts.published_beside(run.space, self.table)
            for row in rows:
                told = {key: row[key] for key in ("name", "top1", "source")}
                found.setdefault(row["name"], told | {"ms": _rounded(row["predicted_ms"])})
        return list(found.values())


def _known(runs: Sequence[Run], archs: Sequence[Arch | None], asked: Sequence[Named | Table] | None) -> list[_Known]:
    """The tables of the runs, each once, then those that were asked for, or every shipped one that has their rows."""
    found: dict[str | None, _Known] = {}
    for run in runs:
        source = run.result["provenance"]
        keys = ("device", "cpu", "runtime", "precision", "threads")
        about = {"name": _short(source["table"] or "table of the search"), **{key: source[key] for key in keys}}  # type: ignore[literal-required]
        about["here"] = not source["not_this_machine"]
        if source["table_hash"] not in found:
            found[source["table_hash"]] = _Known(about, source["table_hash"], _table_of(run))
    laid = [arch for arch in archs if arch is not None]
    some = laid[:: max(1, len(laid) // 8)]
    for each in _shipped(some) if asked is None else asked:
        table = each if isinstance(each, Table) else Table.read(latency_tables.find(each))
        if table.hash in found:
            found[table.hash] = dataclasses.replace(found[table.hash], table=table)
            continue
        classes = _classes(table, some if asked is None else laid)
        if classes is None and asked is None:
            continue
        if classes is None:
            raise _refusal(table, laid, runs)
        header = table.header
        about = {"name": _short(table.where if isinstance(each, Table) else str(each))}
        about |= {"device": header.device, "cpu": header.cpu, "runtime": f"{header.runtime} {header.runtime_version}"}
        about |= {"precision": header.precision, "threads": header.threads}
        about["here"] = this_machine(header.runtime).measured(header)
        own_heads = classes in {arch.classes for arch in some}
        found[table.hash] = _Known(about, table.hash, table, None if own_heads else classes)
    return list(found.values())


def _table_of(run: Run) -> Table | None:
    """The table of a search, where it is as it was then."""
    source = run.result["provenance"]
    for name in (run.path / "table.csv", source["table"]):
        with contextlib.suppress(NasError):
            table = Table.read(latency_tables.find(name or ""))
            if table.hash == source["table_hash"]:
                return table
    return None


def _shipped(archs: Sequence[Arch]) -> list[Table]:
    """The shipped tables of blocks that may price some of these networks; sums of ops are off by more."""
    found = []
    sizes = {"x".join(map(str, arch.input_shape)) for arch in archs}
    for path in map(latency_tables.find, latency_tables.names()):
        text = path.read_text(encoding="utf-8")
        if any(size in text for size in sizes):  # quicker than to read all of a table
            table = Table.read(path)
            found += [table] if table.header.level == "block" else []
    return found


def _classes(table: Table, archs: Sequence[Arch]) -> int | None:
    """The classes of the heads with which a table prices some of these networks: their own, else those of the networks
    that it was calibrated on; None where it prices none.
    """
    own, others = {arch.classes for arch in archs}, {network.arch.classes for network in table.networks}
    for classes in (*sorted(own), *sorted(others - own)):
        if any(not table.missing(table.rows_of(calls_of(_laid(arch, classes)))) for arch in archs):
            return classes
    return None


def _laid(arch: Arch, classes: int | None) -> Arch:
    return arch if classes in (None, arch.classes) else with_classes(arch, classes or 0)


def _refusal(table: Table, archs: Sequence[Arch], runs: Sequence[Run]) -> NasError:
    """Why a table prices no candidate."""
    if not archs:
        return InputError(
            f"{runs[0].path}: the networks of this run cannot be laid by this version, so no other table prices them; "
            "use the version of its provenance (nas report)"
        )
    try:
        table.price(calls_of(archs[0]))
    except MissingLatency as error:
        return error
    raise AssertionError("a table prices what it has the rows of")


def _short(name: str) -> str:
    """A table by its last two parts, device and runtime, as shipped ones are named."""
    return "/".join(Path(name).with_suffix("").parts[-2:])


def _candidates(run: Run, place: int) -> pd.DataFrame:
    """The trials of a run that have a latency, with what the page tells of each."""
    evaluated_trials(run.trials, "predicted_ms", "value")
    shown = run.trials["state"].isin(SHOWN) & run.trials["predicted_ms"].notna()
    columns = ["number", "state", "reason", "arch", "value", "val_accuracy", "params", "macs"]
    return run.trials.loc[shown, [*columns, *ENDS]].assign(run=place).sort_values("number")


def _kept(frame: pd.DataFrame, prices: Sequence[pd.DataFrame], runs: Sequence[Run]) -> np.ndarray:
    """The places of the candidates that a page holds: whoever can be the best under some budget on some table, the
    finalists, the others by their value, and of those without one so many over the whole range.
    """
    scored = (frame["state"] == "evaluated").to_numpy()
    finalists = [{each["number"] for each in run.result["finalists"]} for run in runs]
    numbers = zip(frame["run"], frame["number"], strict=True)
    first = np.array([number in finalists[run] for run, number in numbers], dtype=bool)
    for each in prices:
        for place in range(len(runs)):
            there = np.flatnonzero(scored & (frame["run"] == place).to_numpy() & each["ms"].notna().to_numpy())
            costs = np.column_stack([each["ms"].to_numpy()[there], frame["value"].to_numpy(dtype=float)[there]])
            first[there[non_dominated(costs)]] = True
    order = np.lexsort((frame["value"].to_numpy(dtype=float), ~first))
    best = order[scored[order]][: max(MOST_SCORED, int(first.sum()))]
    others = np.flatnonzero(~scored)
    others = others[np.argsort(frame["predicted_ms"].to_numpy()[others])]
    if len(others) > MOST_UNSCORED:
        others = others[np.linspace(0, len(others) - 1, MOST_UNSCORED).astype(int)]
    return np.sort(np.concatenate([best, others]))


def _blocks(archs: Iterable[Arch | None]) -> tuple[list[list[Any] | None], dict[tuple[Size, Row], Call]]:
    """Each network as its stages, `[name, places of its blocks in the list of all]`; and that list."""
    rows: dict[tuple[Size, Row], Call] = {}
    places: dict[tuple[Size, Row], int] = {}
    found: list[list[Any] | None] = []
    for arch in archs:
        if arch is None:
            found.append(None)
            continue
        stages = []
        for stage, calls in itertools.groupby(calls_of(arch), lambda call: call.stage):
            here = []
            for call in calls:
                key = (arch.input_shape, call.row)
                rows.setdefault(key, call)
                here.append(places.setdefault(key, len(places)))
            stages.append([stage, here])
        found.append(stages)
    return found, rows


def _about_row(call: Call) -> dict[str, Any]:
    """A block for the page, as `describe` has it."""
    text = str(call.row.unit)
    about = {"kind": text.split()[0], "block": text, "inputs": ", ".join(map(str, call.row.inputs))}
    return about | {"width": facts.width_of(call), "macs": macs_of_unit(call.row)}


def _about_run(run: Run, label: str) -> dict[str, Any]:
    source, winner = run.result["provenance"], run.result["winner"]
    finalists = {}
    for each in run.result["finalists"]:
        again, accuracies = each["values"][1:], each["val_accuracies"][1:]
        finalists[each["number"]] = {
            "measured": each["measured_ms"],
            "again": len(again),
            "value": float(np.mean(again)) if again else None,
            "accuracy": float(np.mean(accuracies)) if accuracies else None,
        }
    named = shlex.quote(f"{run.path}@0").rpartition("0")
    train = f" --data {shlex.quote(source.get('dataset', 'DATASET'))} --epochs {winner['training']['epochs']}"
    return {
        "name": run.result["name"],
        "label": label,
        "path": str(run.path),
        "space": run.result["space"],
        "sampler": run.asked.get("sampler"),
        "seed": source["seed"],
        "budget_ms": run.latency_budget_ms,
        "winner": winner["number"],
        "finalists": finalists,
        "command": [f"nas train {named[0]}", f"{named[2]}{train}"],
    }


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: the shortest that tells them apart."""
    names = [run.result["name"] for run in runs]
    spaces = [f"{run.result['name']}, {run.result['space']}" for run in runs]
    samplers = [f"{run.result['name']}, {run.asked.get('sampler')}" for run in runs]
    seeds = [f"{name}, seed {run.result['provenance']['seed']}" for name, run in zip(samplers, runs, strict=True)]
    for found in (names, spaces, samplers, seeds):
        if len(set(found)) == len(runs):
            return found
    return [str(run.path) for run in runs]


def _plain(column: pd.Series) -> list[Any]:
    """A column as JSON has it, its numbers rounded."""
    return [None if pd.isna(value) or value == "" else _rounded(value) for value in column]


def _rounded(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}")
    return int(value) if isinstance(value, np.integer) else value


def templates() -> jinja2.Environment:
    """The templates of the report and of this page. They escape every text."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nas.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def component(data: Mapping[str, Any]) -> Markup:
    """The part of a page that shows `Explorer.data`: its styles, its data and its script.

    A name from a run cannot end the script that holds the data: `<` is written as an escape.
    """
    style = {"colors": plots.COLORS, "winner": plots.GREEN, "budget": plots.RED, "front": plots.ORANGE}
    held = json.dumps({**data, "style": style}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    files = {name: Markup((TEMPLATES / f"explore.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return Markup(templates().get_template("explore.html").render(data=Markup(held), **files))
