"""First: the latency table, made or completed where needed; with it the run begins, and what it rests on is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.search.context import Context
from nas.search.resolved import complete_table
from nas.search.steps import Step


class Profile(Step):
    """Measures what the table lacks, resolves the budgets and begins the run; never again in the life of that."""

    name = "profile"
    after = ""

    def inputs(self, run: Context) -> Mapping[str, Any]:
        return {}

    def is_due(self, run: Context) -> bool:
        return not run.begun

    def carry_out(self, run: Context) -> Mapping[str, Any]:
        table = complete_table(run.named, run.log, run.progress)
        run.begin(table)
        return {"table": table.where, "table_hash": table.hash}


STEP = Profile()
