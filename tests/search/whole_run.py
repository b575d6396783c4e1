"""A whole run that a test can kill: `python -m tests.search.whole_run FOLDER TABLE`; scores and times are made up."""

from __future__ import annotations

import sys
from typing import Any

from nas.core.arch import calls_of
from nas.search import context
from nas.search.finalists import Timing
from nas.search.limits import Survey
from nas.search.request import Request
from nas.search.run import run_search
from nas.search.steps import measure
from tests.search.fakes import FakeScorer


def _measure(arch: Any, table: Any) -> Any:
    return Timing(table.price(calls_of(arch)).total_us, 1.0, 0.0, False, "quiet")


def main(folder: str, table: str) -> None:
    """Search digits, and train the winner for three epochs."""
    context.scorer_of = lambda found, asked: FakeScorer(seconds=0.1)  # type: ignore[assignment,return-value]
    measure.measure_arch = _measure
    Survey.__init__.__defaults__ = (200,)
    request = Request(
        name="r",
        out=folder,
        table=table,
        budgets=("params<=p50",),
        trials=8,
        workers=1,
        finalists=2,
        repeats=1,
        final_epochs=3,
        device="cpu",
    )
    run_search(request, log=lambda line: None)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
