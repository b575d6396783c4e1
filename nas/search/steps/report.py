"""Last, and every time: the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.report.page import write_report
from nas.search.context import Context
from nas.search.steps import Step


class Report(Step):
    """Writes `report.html` from what the run has left."""

    name = "report"
    after = "export"
    every_time = True

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {}

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        run.log(f"report: {write_report(run.folder)}")
        return {}


STEP = Report()
