"""The machine that runs this process: its processor, and a short name for folders."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path

#: instruction sets that change what a runtime's kernels reach, from common to rare
VECTOR_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "asimd", "asimddp", "sve")


def machine() -> tuple[str, int, str]:
    """The processor with what tells apart processors of one name, its logical cores, and a short name for folders."""
    blocks = _cpuinfo()
    first = blocks[0] if blocks else {}
    known = {key: value for block in reversed(blocks) for key, value in block.items()}
    model = first.get("model name") or _board() or known.get("Hardware") or platform.processor() or "unknown cpu"
    flags = set((first.get("flags") or first.get("Features") or "").split())
    parts = sorted({block["CPU part"] for block in blocks if "CPU part" in block})
    details = [f"{key} {first[key]}" for key in ("cpu family", "model") if key in first]
    details += [f"parts {' '.join(parts)}" if parts else "", " ".join(name for name in VECTOR_SETS if name in flags)]
    cpu = f"{model} ({', '.join(filter(None, details))})" if any(details) else model
    return cpu, os.cpu_count() or 1, slug(model)


def slug(model: str) -> str:
    """A folder name for a processor: architecture and model, without trade marks and clock."""
    plain = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b", " ", model, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join([platform.machine().lower() or "unknown", *words])


def _cpuinfo() -> list[dict[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = ([line.partition(":") for line in block.splitlines()] for block in text.split("\n\n") if block.strip())
    return [{key.strip(): value.strip() for key, _, value in block} for block in blocks]


def _board() -> str:
    """The name that the system gives a board, phone or Mac; "" where it gives none."""
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
    for command in [brand] if platform.system() == "Darwin" else [["getprop", "ro.product.model"]]:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""
