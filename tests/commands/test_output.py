"""Progress on standard error: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nas.commands import _output
from nas.commands._output import Lines, note, print_table, progress_bar, say


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=40)


def test_without_a_terminal_a_line_comes_at_once_and_then_every_half_minute_at_most(console):
    now = 100.0
    lines = Lines(console, lambda: now)
    for now in range(100, 200):  # a report every second
        lines(now - 100, 200, 3.0 * (200 - now), f"candidate [{now}]")
    assert written(console) == [
        "0%, candidate [100], 5 min 00 s left",
        "15%, candidate [130], 3 min 30 s left",
        "30%, candidate [160], 2 min 00 s left",
        "45%, candidate [190], 30 s left",
    ]


def test_what_is_not_known_is_left_out(console):
    Lines(console, lambda: 0.0)(0, 0, None, "profiling")
    assert written(console) == ["profiling"]


def test_notes_are_written_at_any_time(console):
    lines = Lines(console, lambda: 0.0)
    lines(1, 4, None, "first")
    lines(2, 4, None, "too soon")
    note("trial 3: loss 0.1 [bold]", lines)
    assert written(console) == ["25%, first", "trial 3: loss 0.1 [bold]"]


def test_in_a_pipe_there_is_no_bar(capsys):
    with progress_bar() as report:
        assert isinstance(report, Lines)
        report(1, 2, 60.0, "half")
    assert capsys.readouterr().err == "50%, half, 1 min 00 s left\n"


def test_in_a_terminal_the_bar_shows_text_and_time_left(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, legacy_windows=False, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **settings: terminal)
    with progress_bar() as report:
        report(3, 12, 200.0, "3 candidates evaluated; epochs 1/4 [2/4]")
        note("trial 2: loss 0.5", report)
    assert "3 candidates evaluated; epochs 1/4 [2/4]" in shown.getvalue()
    assert "3 min 20 s left" in shown.getvalue()
    assert "trial 2: loss 0.5" in shown.getvalue()
    assert _output.Lines.SECONDS == 30


def test_a_row_is_folded_in_a_terminal_and_is_a_line_in_a_pipe(monkeypatch, capsys):
    row = ("a" * 60, "b" * 60)
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("one", "two"), [row])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["one", "two"], list(row)]
    monkeypatch.setenv("COLUMNS", "80")
    print_table(("one", "two"), [row])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_name_with_brackets_is_printed_as_it_is(capsys):
    say(("runs/[bold]/x[1].csv", "bold"), ": budget latency_ms[other.csv]<=5 [/red]")
    print_table(("name", ">[ms]"), [("[red]table", "[1]")])
    shown = capsys.readouterr().out
    assert "runs/[bold]/x[1].csv: budget latency_ms[other.csv]<=5 [/red]\n" in shown
    assert "[red]table" in shown
    assert "[1]" in shown
