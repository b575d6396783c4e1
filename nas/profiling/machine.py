"""This machine: what a table's header says of the device, and whether a table was measured here."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.profiling.backends import load_backend, runtimes
from nas.profiling.device.machine import machine, slug

if TYPE_CHECKING:
    from nas.tables.records import Header


@dataclass(frozen=True)
class Machine:
    """A device that runs models.

    Attributes:
        cpu: model name of the processor, with what tells apart processors of one name; of a GPU, before its host's.
        cores: logical cores.
        slug: short name, fit for a folder: `x86_64-intel-xeon-processor`.
    """

    cpu: str
    cores: int
    slug: str

    def measured(self, header: Header) -> bool:
        """Whether a table with this header was measured on a machine like this one."""
        return (header.device, header.cpu) == (self.slug, self.cpu)


@functools.cache
def this_machine(runtime: str | None = None) -> Machine:
    """The machine that runs this process, or what a runtime uses of it: a GPU bears its own name.

    A bundle's run.py says the same of the device that it runs on.
    """
    host = Machine(*machine())
    name = load_backend(runtime).device_name() if runtime in runtimes() else None  # others have imported tables
    return host if name is None else Machine(f"{name} in {host.cpu}", host.cores, slug(name))
