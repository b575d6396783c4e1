"""This machine: what a table's header says of the device, and whether a table was measured here."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from nas.latency import Header
from nas.profiling import runner


@dataclass(frozen=True)
class Machine:
    """A device that runs models.

    Attributes:
        cpu: model name of the processor, with what tells apart processors of one name.
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
def this_machine() -> Machine:
    """The machine that runs this process; a bundle's runner says the same of the device that it runs on."""
    return Machine(*runner.machine())
