"""This machine: what a table's header says of the device, and whether a table was measured here."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nas.latency import Header

#: instruction sets that change what a runtime's kernels reach, from common to rare
VECTOR_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "asimd", "asimddp", "sve")


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
    """The machine that runs this process."""
    info = _cpuinfo()
    model = info.get("model name") or info.get("Hardware") or _brand() or platform.processor() or "unknown cpu"
    flags = set((info.get("flags") or info.get("Features") or "").split())
    details = [f"{key} {info[key]}" for key in ("cpu family", "model") if key in info]
    details += [" ".join(name for name in VECTOR_SETS if name in flags)]
    cpu = f"{model} ({', '.join(filter(None, details))})" if any(details) else model
    return Machine(cpu, os.cpu_count() or 1, slug(model))


def slug(model: str) -> str:
    """A folder name for a processor: architecture and model, without trade marks and clock."""
    plain = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b", " ", model, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join([platform.machine().lower() or "unknown", *words])


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _brand() -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
