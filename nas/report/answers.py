"""What `nas spaces`, `tables`, `describe`, `estimate` and `shortlist` show, as plain data.

An answer follows from its question, the files that it names and our code; it is remembered on disk, so that only the
first one waits for PyTorch. What depends on the machine that asks is never part of what is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import latency_tables
import search_spaces
from nas.core.errors import TableError
from nas.core.remembered import remembered
from nas.core.source import code_of_package
from nas.profiling import backends
from nas.profiling.machine import this_machine

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.tables.table import Table


def spaces() -> dict[str, Any]:
    """`facts.space_facts` of every known space, and the names of the presets of each family that has some."""

    def find() -> dict[str, Any]:
        from nas.report import facts

        presets = {
            name: sorted(getattr(search_spaces.family(name), "PRESETS", {})) for name in search_spaces.families()
        }
        return {
            "spaces": [facts.space_facts(space) for _, space in sorted(search_spaces.spaces().items())],
            "presets": {name: found for name, found in presets.items() if found},
        }

    answer: dict[str, Any] = _answer("spaces", find)
    return answer


def tables(*paths: Path) -> list[dict[str, Any]]:
    """`facts.table_facts` of the shipped tables and of those named, each with the name that finds it and whether it was
    measured on a machine like this one; one that cannot be read says why.
    """
    found = []
    for name in (*latency_tables.names(), *map(str, paths)):
        try:
            found.append(table(name))
        except TableError as error:
            found.append({"name": name, "table": str(latency_tables.find(name)), "error": str(error)})
    return found


def table(name: str | os.PathLike[str]) -> dict[str, Any]:
    """`facts.table_facts` of one table, with its name and whether it was measured on a machine like this one.

    Raises:
        InputError: there is no such file.
        TableError: for a file that is no table.
    """

    def find(facts: ModuleType, table: Table) -> dict[str, Any]:
        return facts.table_facts(table)  # type: ignore[no-any-return]

    known = _of_table("table", name, find)
    here = _is_this_machine(known["runtime"].split()[0], known["device"], known["cpu"])
    return {"name": str(name), **known, "table": str(latency_tables.find(name)), "this_machine": here}


def presets() -> list[dict[str, Any]]:
    """`facts.preset_facts`."""

    def find() -> list[dict[str, Any]]:
        from nas.report import facts

        return facts.preset_facts()

    answer: list[dict[str, Any]] = _answer("presets", find)
    return answer


def presets_on(table: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """`facts.presets_on` a table; raises as `table`."""
    answer: dict[str, dict[str, Any]] = _of_table("presets", table, lambda facts, table: facts.presets_on(table))
    return answer


def presets_by(metric: str, table: str | os.PathLike[str], confidence: float | None) -> dict[str, float | None]:
    """`facts.presets_by` a metric; raises as that and as `table`."""
    answer: dict[str, float | None] = _of_table(
        f"presets by {metric} {confidence}", table, lambda facts, table: facts.presets_by(metric, table, confidence)
    )
    return answer


def _of_table(question: str, name: str | os.PathLike[str], find: Callable[[ModuleType, Table], Any]) -> Any:
    """What `find`, given the module `facts` and a table, says of the table of this name."""
    path = latency_tables.find(name)

    def answer() -> Any:
        from nas.report import facts
        from nas.tables.table import Table

        return find(facts, Table.read(path))

    return _answer(f"{question} {_fingerprint(path)}", answer)


def describe(name: str, load: Callable[[str], Arch]) -> dict[str, Any]:
    """`facts.describe` of what `load` finds under a name.

    Raises:
        InputError: there is no such arch.
    """
    found = _of_run(name, load)

    def find() -> dict[str, Any]:
        from nas.report import facts

        return facts.describe(found or load(name))

    answer: dict[str, Any] = _answer(f"describe {name!r} {_fingerprint(name)}", find, keep=found is None)
    return answer


def estimate(name: str, table: str, load: Callable[[str], Arch]) -> dict[str, Any]:
    """`facts.estimate` of what `load` finds under a name, with a table.

    Raises:
        InputError: for what cannot be found, or a file that is no arch.
        TableError: for a file that is no table.
        MissingLatency: naming every row the table lacks.
    """
    arch = _of_run(name, load)
    path = latency_tables.find(table)

    def find() -> dict[str, Any]:
        from nas.report import facts
        from nas.tables.table import Table

        known = Table.read(path)
        return facts.estimate(arch or load(name), known) | {"runtime": known.header.runtime}

    question = f"estimate {name!r} {_fingerprint(name)} {_fingerprint(path)}"
    found = dict(_answer(question, find, keep=arch is None))
    here = _is_this_machine(found.pop("runtime"), found["device"], found["cpu"])
    return found | {"table": str(path), "this_machine": here}


def runtimes() -> dict[str, dict[str, Any]]:
    """All runtimes: the precisions that each can have, the hardware that we could not run it on (None where we did),
    and whether the CPU runs it.
    """

    def find() -> dict[str, dict[str, Any]]:
        known = {name: backends.load_backend(name) for name in backends.runtimes()}
        return {
            name: {
                "precisions": list(backend.precisions),
                "untested": backend.untested,
                "cpu": backend.device_name.__func__ is backends.Backend.device_name.__func__,  # type: ignore[attr-defined]
            }
            for name, backend in known.items()
        }

    answer: dict[str, dict[str, Any]] = _answer("runtimes", find)
    return answer


def _is_this_machine(runtime: str, device: str, cpu: str) -> bool:
    """Whether what ran there is what the runtime uses here; what the CPU runs is told without loading the runtime."""
    on_cpu = runtimes().get(runtime, {"cpu": True})["cpu"]
    return (device, cpu) == ((machine := this_machine(None if on_cpu else runtime)).slug, machine.cpu)


def _of_run(name: str, load: Callable[[str], Arch]) -> Arch | None:
    """The arch of a run or of one of its trials, which a trial may change; None for a preset or a file."""
    return load(name) if "@" in name or Path(name).is_dir() else None


def _answer(question: str, find: Callable[[], Any], keep: bool = True) -> Any:
    """What `find` gives, as JSON has it; read where the same code was asked the same question before, unless what it
    rests on may change (`keep`).
    """
    if not keep:
        return json.loads(json.dumps(find()))
    memory = remembered(code_of_package())
    known = memory.get(question)
    if known is None:
        known = json.loads(json.dumps(find()))
        memory.put(question, known)
    return known


def _fingerprint(path: str | os.PathLike[str]) -> str:
    """What a file holds; nothing where there is none or it cannot be read, which who reads it will say."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""
