"""The tables of the docs are what the script that writes them writes now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = r"\d+(?:\.\d+)?"


def test_the_tables_are_current():
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written, kept = script.text(), script.FILE.read_text(encoding="utf-8")
    hint = "run: python docs/make_tables.py"
    # digits may differ in the last place, as a fit does on another machine; counts and words may not
    assert re.sub(r"\d+\.\d+", "x", written) == re.sub(r"\d+\.\d+", "x", kept), hint
    numbers = [list(map(float, re.findall(NUMBER, text))) for text in (written, kept)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.11), hint
