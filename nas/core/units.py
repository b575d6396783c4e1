"""Units inside the engine (microseconds, bytes, multiply-adds) and how they are shown to people."""

from __future__ import annotations

US_PER_MS = 1000.0


def to_ms(us: float) -> float:
    """Microseconds as milliseconds."""
    return us / US_PER_MS


def show_us(us: float) -> str:
    """A latency for a person: `12.3 us`, `4.56 ms`, `1.20 s`."""
    if us < 1e3:
        return f"{us:.1f} us"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.2f} s"


def show_count(count: float) -> str:
    """A count for a person: `12.29 M`, `1.29 G`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.4g} {letter}"
    return f"{count:g}"


def show_bytes(size: float) -> str:
    """A size for a person, in binary units: `3.2 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def show_seconds(seconds: float) -> str:
    """A duration for a person: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
