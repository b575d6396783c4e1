"""Profiles with a time budget: the most used rows measured, the others predicted, until a later run measures them."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.core.arch import calls_of
from nas.core.errors import MeasureError
from nas.profiling import bench, profiler
from nas.profiling.device.journal import Log
from nas.profiling.importance import halvings, usage
from nas.profiling.profiler import job_of, plan, profile, run, run_each, unmeasured_percent
from nas.tables.table import Table, scope_of
from tests.profiling import SHORT, LocalWorker, samples_of, stay_local, true_us, whole_lines
from tests.small import TINY

QUICK: dict[str, Any] = SHORT | {"networks": 8}


def pass_slowly(patch: pytest.MonkeyPatch) -> None:
    """Measure in this process, where only rounds take time: a second each."""
    now = [1000.0]

    class Slow(LocalWorker):
        def round(self, keys: Any) -> Any:
            now[0] += 1.0
            return super().round(keys)

    stay_local(patch)
    patch.setattr("nas.profiling.bench.ProbeWorker", Slow)
    patch.setattr(time, "monotonic", lambda: now[0])


def take(patch: pytest.MonkeyPatch, count: int, least_seconds: float = 0.0) -> None:
    """Measure so many rows a step, as long as there are more than these seconds left."""
    patch.setattr(profiler, "_step", lambda rows, bench, clock, seconds: rows[: count * (clock.left > least_seconds)])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `pass_slowly`."""
    pass_slowly(monkeypatch)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a budget that does not reach for all rows; only for copying."""
    path = tmp_path_factory.mktemp("short") / "table.csv"
    with pytest.MonkeyPatch.context() as patch:
        pass_slowly(patch)
        take(patch, 4)
        profile(TINY, path=path, budget_minutes=1.0, **QUICK)
    return path


@pytest.fixture
def short(once: Path, path: Path) -> Path:
    """That table with its samples, at `path`."""
    shutil.copytree(once.parent, path.parent)
    return path


def sources(table: Table) -> dict[str, set[Any]]:
    return {
        source: {entry.row for entry in table.entries if entry.source == source} for source in ("measured", "predicted")
    }


def test_the_most_used_rows_are_measured_and_the_others_predicted(short):
    table = Table.read(short)
    found = sources(table)
    assert found["measured"] | found["predicted"] == set(TINY.rows())
    assert len(found["measured"]) >= 12
    assert len(found["predicted"]) >= 5
    used = usage(TINY)
    worst = max(halvings(used.get(row, 0.0)) for row in found["measured"])
    assert worst <= min(halvings(used.get(row, 0.0)) for row in found["predicted"])
    assert table.header.spaces == (scope_of(TINY),)
    table.require(TINY)


def test_predicted_rows_are_near_the_truth_and_say_how_near(short):
    predicted = [entry for entry in Table.read(short).entries if entry.source == "predicted"]
    errors = [entry.us / true_us(entry.row) - 1 for entry in predicted]
    assert np.mean(np.abs(errors)) < 0.25
    assert all(entry.count == 0 and entry.spread_us > 0 for entry in predicted)
    measured = [entry for entry in Table.read(short).entries if entry.source == "measured"]
    for entry in measured:
        assert entry.us == pytest.approx(true_us(entry.row), rel=0.02, abs=0.1)


def test_networks_are_measured_within_the_budget_and_calibrate(short):
    table = Table.read(short)
    assert 5 <= len(table.networks) <= QUICK["networks"]
    assert table.calibrations
    prices = [table.price(calls_of(TINY.sample(random.Random(seed)))) for seed in range(50)]
    assert any(price.unmeasured_us > 0 for price in prices)
    assert 0 < unmeasured_percent(table, TINY) < 100


def test_a_later_run_without_a_budget_measures_what_was_predicted(short, local):
    before = {entry.row: entry for entry in Table.read(short).entries if entry.source == "measured"}
    left = plan(job_of(TINY, path=short, **QUICK))
    assert left.total - left.done == len(TINY.rows()) - len(before)
    table = profile(TINY, path=short, **QUICK)
    assert {entry.source for entry in table.entries} == {"measured"}
    for entry in table.entries:
        assert entry.us == pytest.approx(true_us(entry.row), rel=0.02, abs=0.1)
    assert {entry.row: entry for entry in table.entries if entry.row in before} == before
    assert unmeasured_percent(table, TINY) == 0
    assert len(table.networks) == QUICK["networks"]


def test_a_second_budget_goes_on_where_the_first_ended(short, slow, monkeypatch):
    take(monkeypatch, 4, least_seconds=10)
    before = sources(Table.read(short))
    again = run(job_of(TINY, path=short, **QUICK), budget_minutes=0.5)
    after = sources(again.table)
    assert before["measured"] < after["measured"]
    assert again.prediction is None or {entry.row for entry in again.prediction.entries} == after["predicted"]


def test_a_budget_that_reaches_for_everything_predicts_nothing(path, local):
    outcome = run(job_of(TINY, path=path, **QUICK), budget_minutes=60)
    assert outcome.prediction is None
    assert {entry.source for entry in outcome.table.entries} == {"measured"}
    assert len(outcome.table.networks) == QUICK["networks"]


def test_a_budget_too_short_for_any_prediction_saves_what_it_has(path, slow, monkeypatch):
    take(monkeypatch, 3, least_seconds=50)
    with pytest.raises(MeasureError, match=r"too short: \d+ rows are measured; to predict \d+ others .* at least 12"):
        profile(TINY, path=path, budget_minutes=1.0, **(QUICK | {"networks": 0}))
    table = Table.read(path)
    assert 0 < len(table.entries) < 12
    assert {entry.source for entry in table.entries} == {"measured"}
    assert table.header.spaces == ()


def test_rows_that_cannot_run_are_not_predicted(path, slow, monkeypatch):
    take(monkeypatch, 8)
    first = job_of(TINY, path=path, **QUICK).lacking[0]
    monkeypatch.setenv("NAS_FAKE", json.dumps({"fail": str(first)}))
    with pytest.raises(MeasureError, match="fake failure"):
        profile(TINY, path=path, budget_minutes=1.0, **QUICK)
    assert first not in Table.read(path)


def test_a_step_is_what_there_is_time_for(path, monkeypatch):
    monkeypatch.setattr(profiler, "STEP_SECONDS", 0.0)
    job = job_of(TINY, path=path, **QUICK)
    rows, work = job.items(), bench.Bench(job.config, job.settings, Log())
    whole = work.seconds(rows)
    clock = bench.Clock(whole, until=time.monotonic() + 1000.0)
    taken = profiler._step(rows, work, clock, whole * 0.9)
    assert rows[: len(taken)] == taken
    assert 0 < work.seconds(taken) <= whole * 0.9
    assert profiler._step(rows, work, clock, whole) == rows
    assert not profiler._step(rows, work, bench.Clock(1.0, until=-math.inf), 1e9)


def test_several_spaces_go_into_one_table_and_share_the_budget(path, local):
    wider = dataclasses.replace(TINY, classes=20)
    jobs = [job_of(space, path=path, **QUICK) for space in (TINY, wider)]
    outcomes = run_each(jobs, budget_minutes=60)
    assert outcomes[-1].table.header.spaces == (scope_of(TINY), scope_of(wider))
    rows = {entry.row for entry in Table.read(path).entries}
    assert rows == {*TINY.rows(), *wider.rows()}
    assert samples_of(path).exists()
    assert samples_of(path, wider).exists()
    keys = [key for line in whole_lines(samples_of(path, wider))[1:] for key in json.loads(line).get("samples", {})]
    assert keys
    assert len(set(keys)) < 12  # only what the first space did not have
