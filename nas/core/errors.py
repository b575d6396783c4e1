"""Every error that nas raises on purpose: one tree under `NasError`; a message says what, where and what to do next."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote


class NasError(Exception):
    """Base of all errors of this package; the command line prints its message and exits with 1."""


class InputError(NasError, ValueError):
    """Something the caller gave is wrong: a name, a number, a file's content."""


class TraceError(NasError):
    """A model computes outside its op leaves, so a table could not price it."""


class MissingLatency(NasError, KeyError):  # noqa: N818  the name of the situation
    """A table lacks rows that an architecture needs.

    Attributes:
        missing: the keys of the missing rows, as text.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class TableError(InputError):
    """A latency table cannot be read, or does not fit what it is asked to price."""


class MeasureError(NasError):
    """A runtime could not run or time a model."""


class BudgetError(InputError):
    """A budget that nothing in the space can meet, or that cannot be understood."""


class RunError(NasError):
    """A run, or a file of it, is in use, cannot be written, is incomplete, or belongs to another request."""


HIDDEN = "***"
_IN_URL = re.compile(r"(\w[\w+.-]*://[^\s/:@'\"]*:)([^\s'\"]*)@")
_IN_QUERY = re.compile(r"([?&][^\s=&]*(?:pass|pwd|secret|token)[^\s=&]*=)([^\s&'\"]*)", re.IGNORECASE)


def without_passwords(text: str, url: str = "") -> str:
    """A text as it may be shown and kept: passwords of URLs in it are hidden, those of `url` wherever they stand."""
    found = [match[2] for pattern in (_IN_URL, _IN_QUERY) for match in pattern.finditer(url)]
    for password in {form for word in found for form in (word, unquote(word))} - {"", HIDDEN}:
        text = text.replace(password, HIDDEN)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 2, 80, 80


def brief(value: Any) -> str:
    """The `repr` of something that was given, cut where it is long, for a message."""
    if isinstance(value, int) and abs(value) >= 10**18:  # Python refuses to write the longest
        return f"a whole number of about {round(value.bit_length() * 0.30103)} digits"
    return _brief.repr(value)


FEW = 12  # names that a message lists


def suggest(what: str, word: str, legal: Iterable[str]) -> str:
    """Say that `word` is no legal `what`, naming the closest legal ones, all where they are few, or some."""
    names = sorted(set(legal))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    hint = f", did you mean {' or '.join(repr(name) for name in close)}?" if close else "."
    known = ""
    if names and (len(names) <= FEW or not close):
        more = f", ... ({len(names)} in all)" if len(names) > FEW else ""
        known = f" Known: {', '.join(names[:FEW])}{more}."
    return f"unknown {what} {word!r}{hint}{known}"
