"""What a device sent back, checked to the last number before anything is made of it: a board is not to be trusted.

Nothing is written here, and whatever is wrong is an `InputError` that names file and line.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nas.core.errors import InputError
from nas.profiling.device.journal import FORMAT, Log, Sample

DEVICE = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")  # what run.py makes of a processor's name: a folder, no path
LONGEST = {"device": 120, "cpu": 400, "runtime_version": 100, "date": 10}  # characters
MOST_CORES = 2**16
MOST_US = 1e12  # of a call: eleven days
MOST_REASON = 2000  # characters of a failure
AGAIN = "copy it from the device again; where it is the same there, remove it there and run python run.py again"


def read_samples(path: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], Log]:
    """The header that the device wrote, and its samples. A torn last line, what a kill leaves, does not count.

    Args:
        path: of samples.jsonl.
        manifest: of the bundle: its graphs, settings and header.

    Raises:
        InputError: naming the line that is not as run.py writes it.
    """
    log, header = Log(), dict[str, Any]()
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {AGAIN}") from error
    for number, text in enumerate(lines, 1):
        if not text.endswith(b"\n") and number == len(lines):
            break
        try:
            line = _object(json.loads(text), "line")
            if number == 1:
                header = _header(line, manifest["header"])
            else:
                log.add(*_round(line, manifest))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: {error}; {AGAIN}") from error
    return header, log


def read_failures(path: Path, known: Collection[str]) -> dict[str, str]:
    """Why graphs could not be measured, by key; none where there is no file.

    Raises:
        InputError: for what run.py does not write.
    """
    if not path.exists():
        return {}
    try:
        found = _object(json.loads(path.read_bytes()), "content")
        for key, reason in found.items():
            if key not in known or not isinstance(reason, str):
                raise ValueError(f"expected reasons of graphs of the bundle, got {_short(key)}: {_short(reason)}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    return {key: _printable(reason) for key, reason in found.items()}


def _header(line: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a table: what the device says of itself, and else what the bundle was made with."""
    if line.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {_short(line.get('format'))}")
    said = _object(line.get("header"), "header")
    if lacking := [name for name in made if name not in said]:
        raise ValueError(f"the header lacks {', '.join(lacking)}")
    for name, most in LONGEST.items():
        value = said[name]
        if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
            raise ValueError(f"{name}: expected 1 to {most} printable characters, got {_short(value)}")
    if not DEVICE.fullmatch(said["device"]):
        raise ValueError(f"device: expected words of a to z, digits and _ with - between, got {_short(said['device'])}")
    if type(said["cores"]) is not int or not 0 < said["cores"] <= MOST_CORES:
        raise ValueError(f"cores: expected a whole number from 1 to {MOST_CORES}, got {_short(said['cores'])}")
    datetime.date.fromisoformat(said["date"])
    own = {*LONGEST, "cores"}
    for name, value in made.items():
        if name not in own and (said[name] != value or type(said[name]) is not type(value)):
            raise ValueError(
                f"the samples have {name} {_short(said[name])}, the bundle {_short(value)}; they are of another bundle"
            )
    return {name: said[name] for name in made}


def _round(line: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[int, dict[str, Sample]]:
    """The number of the pass and the samples of a round."""
    settings, number = manifest["settings"], line.get("pass")
    if type(number) is not int or not 0 <= number < settings["passes"]:
        raise ValueError(f"pass: expected 0 to {settings['passes'] - 1}, got {_short(number)}")
    samples = {}
    for key, values in _object(line.get("samples"), "samples").items():
        if key not in manifest["graphs"]:
            raise ValueError(f"the bundle has no graph {_short(key)}")
        if not isinstance(values, list) or not 2 <= len(values) <= 1 + settings["most"]:
            raise ValueError(f"{key}: expected the sentinel and 1 to {settings['most']} calls, got {_short(values)}")
        for value in values:
            if type(value) not in (int, float) or not 0 < value < MOST_US:  # which NaN is not, either
                raise ValueError(f"{key}: expected microseconds, more than 0, got {_short(value)}")
        samples[key] = Sample(float(values[0]), tuple(map(float, values[1:])))
    return number, samples


def _object(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{what}: expected a JSON object, got {_short(found)}")
    return found


def _short(value: Any) -> str:
    """A value for a message: whatever a device sends, on one line."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _printable(text: str) -> str:
    """A reason without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_REASON])
