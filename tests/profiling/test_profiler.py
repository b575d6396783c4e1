from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError, MeasureError, RunError, TableError
from nas.profiling import bench
from nas.profiling.backends.fake import CALL_US, Fake, row_us
from nas.profiling.device.journal import Journal, Sample
from nas.profiling.device.process import Worker
from nas.profiling.device.timing import GATE, Settings, reference_of
from nas.profiling.machine import Machine, this_machine
from nas.profiling.probes import Probe
from nas.profiling.profiler import job_of, measure, plan, profile, run
from nas.report.facts import table_facts
from nas.tables.table import Table, scope_of
from tests.profiling import (
    FEW,
    LOGITS,
    SHORT,
    LocalWeigher,
    LocalWorker,
    few,
    samples_of,
    stay_local,
    true_us,
    whole_lines,
)
from tests.small import TINY

NOISE = 0.02  # of a row: some graphs take ten times as long as the row between them, and are off by 0.2 %


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete table of the small space; only for copying."""
    path = tmp_path_factory.mktemp("complete") / "table.csv"
    with pytest.MonkeyPatch.context() as patch:
        stay_local(patch)
        profile(TINY, path=path, **SHORT)
    return path


@pytest.fixture
def copied(complete: Path, path: Path) -> Path:
    """A complete table with its samples, at `path`."""
    shutil.copytree(complete.parent, path.parent)
    return path


def misbehave(monkeypatch: pytest.MonkeyPatch, **behaviour: object) -> None:
    monkeypatch.setenv("NAS_FAKE", json.dumps(behaviour))


def no_worker(*args: object) -> None:
    raise AssertionError("something is measured")


def rows_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("row,")]


def test_a_profile_recovers_the_true_times(complete):
    table = Table.read(complete)
    assert {entry.row for entry in table.entries} == set(TINY.rows())
    for entry in table.entries:
        assert entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1), entry.row
        assert entry.count == SHORT["passes"] * SHORT["rounds"]
        assert 0 <= entry.spread_us < 1


def test_networks_are_measured_with_the_rows_and_calibrate_them(complete):
    table = Table.read(complete)
    assert len(table.networks) == SHORT["networks"]
    for network in table.networks:
        true = CALL_US + sum(row_us(call.row) for call in calls_of(network.arch))
        assert network.us == pytest.approx(true, rel=0.005)
    assert table.calibrations[TINY.input_shape].scale == pytest.approx(1.0, abs=0.01)
    assert table.mape_percent < 1


def test_networks_are_evenly_spread_over_the_predictions_of_the_rows(complete):
    table = Table.read(complete)
    logs = sorted(math.log(table.raw_us(calls_of(network.arch))) for network in table.networks)
    cost = table.cost_of_row(TINY)
    low, high = (math.log(us) for us in (TINY.extreme(cost)[0], TINY.extreme(cost, largest=True)[0]))
    step = (high - low) / (len(logs) - 1)
    for number, value in enumerate(logs):
        assert abs(value - low - number * step) < step / 2


def test_networks_are_chosen_once_every_row_has_its_first_pass_and_timed_among_the_rows(complete):
    lines = [json.loads(line) for line in whole_lines(samples_of(complete))]
    (at,) = (number for number, line in enumerate(lines) if "networks" in line)
    before, after = lines[1:at], [line for line in lines[at + 1 :] if "samples" in line]
    assert {line["pass"] for line in before} == {0}
    assert not any(key.startswith("network") for line in before for key in line["samples"])
    names = {f"network {Arch.from_json(text).id}" for text in lines[at]["networks"]}
    for number in range(SHORT["passes"]):
        assert names <= {key for line in after if line["pass"] == number for key in line["samples"]}
    assert any(names & set(line["samples"]) and names < set(line["samples"]) for line in after if line["pass"] == 1)


@pytest.mark.parametrize("more", [0, 1])
def test_a_profile_killed_around_the_choice_of_networks_ends_with_the_same(local, path, complete, more):
    lines = whole_lines(samples_of(complete))
    at = next(number for number, line in enumerate(lines) if b'"networks"' in line)
    path.parent.mkdir()
    samples_of(path).write_bytes(b"".join(lines[: at + more]))
    table = profile(TINY, path=path, **SHORT)
    archs = {network.arch for network in Table.read(complete).networks}
    assert {network.arch for network in table.networks} == archs
    assert sum(b'"networks"' in line for line in whole_lines(samples_of(path))) == 1


def test_without_a_row_of_the_space_no_network_is_chosen(local, path, monkeypatch):
    quick = SHORT | {"passes": 1, "rounds": 1}
    misbehave(monkeypatch, fail=LOGITS)
    with pytest.raises(MeasureError, match=LOGITS):
        profile(TINY, path=path, **quick)
    assert Table.read(path).networks == ()
    misbehave(monkeypatch)
    assert len(profile(TINY, path=path, **quick).networks) == SHORT["networks"]


def test_rows_in_doubt_get_more_rounds(local, path, monkeypatch):
    misbehave(monkeypatch, noise=0.2)
    few(path)
    noisy = Counter(key for line in whole_lines(samples_of(path))[1:] for key in json.loads(line)["samples"])
    least, most = SHORT["passes"] * SHORT["rounds"], SHORT["passes"] * 4 * SHORT["rounds"]
    assert least <= min(noisy.values())
    assert least < max(noisy.values()) <= most


def test_the_header_says_where_and_how_it_was_measured(complete):
    header, machine = Table.read(complete).header, this_machine()
    assert (header.device, header.cpu, header.cores) == (machine.slug, machine.cpu, os.cpu_count())
    assert (header.runtime, header.runtime_version, header.threads, header.precision) == ("fake", "1", 1, "fp32")
    assert (header.level, header.form, header.units) == ("block", "deployed", "us")
    assert header.spaces == (scope_of(TINY),)
    assert (header.method, header.variant) == ("chains", "default")
    assert "2 processes x 3 to 12 interleaved rounds" in header.protocol
    assert header.sentinel_us > 0


def test_the_same_command_again_measures_nothing(copied, monkeypatch):
    monkeypatch.setattr("nas.profiling.bench.ProbeWorker", no_worker)
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    profile(TINY, path=copied, **SHORT)
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before


def test_a_table_without_its_samples_is_complete_too(copied, monkeypatch):
    monkeypatch.setattr("nas.profiling.bench.ProbeWorker", no_worker)
    samples_of(copied).unlink()
    assert profile(TINY, path=copied, **SHORT).calibrations


def test_a_plan_says_what_is_left_and_measures_nothing(local, path, copied):
    done = plan(job_of(TINY, path=copied, **SHORT))
    assert (done.done, done.total, done.networks, done.seconds) == (len(TINY.rows()), len(TINY.rows()), 0, 0)
    fresh = path.with_name("fresh.csv")
    before = plan(job_of(TINY, path=fresh, **SHORT))
    assert (before.done, before.total, before.networks) == (0, len(TINY.rows()), SHORT["networks"])
    assert before.seconds > 0
    assert not fresh.exists()
    assert not samples_of(fresh).exists()
    few(fresh)
    after = plan(job_of(TINY, path=fresh, **SHORT))
    assert (after.done, after.networks) == (len(FEW), SHORT["networks"])
    assert 0 < after.seconds < before.seconds


def test_a_few_rows_first_and_the_rest_later_end_in_a_calibrated_table(local, path, complete):
    before = rows_of(few(path).path)
    assert Table.read(path).networks == ()
    table = profile(TINY, path=path, **(SHORT | {"rounds": 1}))
    assert {entry.row for entry in table.entries} == set(TINY.rows())
    assert set(before) <= set(rows_of(path))
    assert len(table.networks) == SHORT["networks"]
    left = plan(job_of(TINY, path=path, **(SHORT | {"rounds": 1})))
    assert (left.networks, left.seconds) == (0, 0)


def test_rows_that_a_table_lacks_are_added_without_touching_the_others(local, copied):
    before, networks = rows_of(copied), Table.read(copied).networks
    wider = replace(TINY, classes=20)
    table = profile(wider, path=copied, **SHORT)
    new = set(rows_of(copied)) - set(before)
    assert set(before) < set(rows_of(copied))
    assert len(new) == 2
    assert all("classes=20" in line for line in new)
    assert [network.arch for network in table.networks] == [network.arch for network in networks]
    table.require(wider)


def test_rows_are_never_added_on_another_device(local, copied, monkeypatch):
    before = copied.read_bytes()
    other = Machine("other cpu", 2, "other-box")
    monkeypatch.setattr("nas.profiling.job.this_machine", lambda runtime: other)
    with pytest.raises(InputError, match=rf"device '{this_machine().slug}', this profile has 'other-box'"):
        profile(replace(TINY, classes=20), path=copied, **SHORT)
    assert copied.read_bytes() == before


CHANGES = [
    ("runtime_version", "'1'", "'2'", {}),
    ("device", f"'{this_machine().slug}'", "'other-box'", {}),
    ("threads", "1", "2", {"threads": 2}),
    ("level", "'block'", "'op'", {"level": "op"}),
    ("runtime", "'fake'", "'torch'", {"runtime": "torch"}),
]


@pytest.mark.parametrize("found_in", ["table", "samples"])
@pytest.mark.parametrize(("name", "old", "new", "changes"), CHANGES, ids=[change[0] for change in CHANGES])
def test_measurements_of_another_kind_are_not_mixed(local, copied, monkeypatch, found_in, name, old, new, changes):
    if found_in == "table":
        samples_of(copied).unlink()
    else:
        copied.unlink()
    if name == "runtime_version":
        misbehave(monkeypatch, version="2")
    if name == "device":
        machine = replace(this_machine(), slug="other-box")
        monkeypatch.setattr("nas.profiling.job.this_machine", lambda runtime: machine)
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    with pytest.raises(InputError, match=f"with {name} {old}, this profile has {new}; .* Write to another one"):
        profile(TINY, path=copied, **(SHORT | changes))
    with pytest.raises(InputError, match=f"with {name} {old}"):
        plan(job_of(TINY, path=copied, **(SHORT | changes)))
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "fak"}, "unknown runtime 'fak', did you mean 'fake'"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"precision": "fp23"}, "unknown precision 'fp23'"),
        ({"level": "blok"}, "level: expected block or op, got 'blok'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_file_is_made(local, path, changes, message):
    with pytest.raises(InputError, match=message):
        few(path, **changes)
    assert not path.parent.exists()


def profile_and_count(path: Path, rounds: Any) -> None:
    """Profile the few rows; count the rounds that are over where another process sees it, and wait to be killed after
    some, so that none ends first on a busy machine.
    """

    class Counting(LocalWorker):
        def round(self, keys: Sequence[str]) -> dict[str, Sample]:
            if rounds.value == 5:
                signal.pause()
            samples = super().round(keys)
            rounds.value += 1
            return samples

    bench.ProbeWorker = Counting  # in a process of its own
    tempfile.tempdir = str(path.parents[1])  # a kill leaves what lies there
    few(path, rounds=6)


def profile_in_a_process(path: Path) -> tuple[multiprocessing.process.BaseProcess, Any]:
    """Start to profile for some tenths of a second, in a process to be killed, and the count of its rounds."""
    context = multiprocessing.get_context("fork")
    rounds = context.Value("i", 0, lock=False)
    process = context.Process(target=profile_and_count, args=[path, rounds])
    process.start()
    return process, rounds


def kill_at(process: multiprocessing.process.BaseProcess, path: Path, lines: int) -> None:
    """`kill -9` as soon as the side file has so many whole lines."""
    while len(whole_lines(samples_of(path))) < lines:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_profile_goes_on_and_loses_at_most_a_round(local, path, monkeypatch):
    misbehave(monkeypatch, sleep_us=300)
    before: list[bytes] = []
    for count in (0, 1, 3, 2, 3):  # rounds before each kill, of 2 passes x 6
        process, rounds = profile_in_a_process(path)
        while rounds.value < count:
            assert process.is_alive()
            time.sleep(0.001)
        kill_at(process, path, 0)
        after = whole_lines(samples_of(path))
        assert after[: len(before)] == before
        assert len(after) - max(len(before), 1) >= rounds.value - 1
        before = after
        assert not path.exists()
    misbehave(monkeypatch)
    table = few(path, rounds=6)
    after = whole_lines(samples_of(path))
    assert after[: len(before)] == before
    assert len(after) == 1 + 2 * 6  # no round was measured twice
    assert {entry.row for entry in table.entries} == set(FEW)
    assert all(entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1) for entry in table.entries)


def test_a_torn_last_line_is_cut(local, path):
    few(path)
    path.unlink()
    lines = whole_lines(samples_of(path))
    samples_of(path).write_bytes(b"".join(lines[:4]) + lines[4][:-20])
    few(path)
    after = whole_lines(samples_of(path))
    assert after[:4] == lines[:4]
    assert len(after) == len(lines)
    assert all(json.loads(line) for line in after)


def test_a_side_file_that_is_none_is_named_by_line(local, path):
    few(path)
    path.unlink()
    lines = whole_lines(samples_of(path))
    samples_of(path).write_bytes(lines[0] + b"{}\n" + b"".join(lines[2:]))
    with pytest.raises(InputError, match=r"table\.csv\..*\.samples\.jsonl:2: cannot be read as a journal"):
        few(path)


def test_a_second_process_on_one_table_is_refused(local, path, monkeypatch):
    misbehave(monkeypatch, sleep_us=5000)
    first, _ = profile_in_a_process(path)
    while len(whole_lines(samples_of(path))) < 2:
        assert first.is_alive()
        time.sleep(0.001)
    with pytest.raises(RunError, match="is in use by process"):
        few(path, rounds=6)
    kill_at(first, path, 2)
    misbehave(monkeypatch)
    assert len(few(path, rounds=6).entries) == len(FEW)


def test_a_crash_names_the_row_and_saves_the_others(path, monkeypatch):
    misbehave(monkeypatch, crash=LOGITS)
    with pytest.raises(MeasureError) as caught:
        few(path, passes=1)  # in a real process
    message = str(caught.value)
    assert "1 of 3 could not be measured with fake; the others are saved" in message
    assert f"{LOGITS}: the process ended with exit code 77" in message
    assert [str(entry.row) for entry in Table.read(path).entries] == [str(row) for row in FEW if str(row) != LOGITS]


@pytest.fixture
def hung(tmp_path, monkeypatch):
    """The file that says which process hangs; time only passes while that one lives, however slow this machine is."""
    file, now = tmp_path / "hung", [0.0]

    def monotonic() -> float:
        said = file.read_text() if file.exists() else ""
        if said and Path(f"/proc/{said}").exists():
            now[0] += 1e6
        return now[0]

    monkeypatch.setattr("nas.profiling.device.process.time", SimpleNamespace(monotonic=monotonic))
    return str(file)


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_a_process_that_died_is_started_once_more_and_nothing_is_lost(path, monkeypatch, tmp_path, hung, how):
    misbehave(monkeypatch, **{how: LOGITS, "once": str(tmp_path / "once"), "hung": hung})
    table = few(path, passes=1)  # in a real process
    assert (tmp_path / "once").exists()
    assert {entry.row for entry in table.entries} == set(FEW)


def test_a_runtime_that_never_returns_is_ended_named_and_tried_again_by_the_same_command(path, monkeypatch, hung):
    monkeypatch.setattr("nas.profiling.device.timing.PATIENCE", 0.0)
    misbehave(monkeypatch, hang=LOGITS, hung=hung)
    with pytest.raises(MeasureError) as caught:
        few(path, passes=1, patience_seconds=3)
    message = str(caught.value)
    assert "1 of 3 could not be measured with fake; the others are saved, the same command tries these again" in message
    assert f"{LOGITS}: it hung: no answer for 3 s, so its process was ended" in message
    assert [str(entry.row) for entry in Table.read(path).entries] == [str(row) for row in FEW if str(row) != LOGITS]
    misbehave(monkeypatch)
    assert len(few(path, passes=1).entries) == len(FEW)


def test_a_runtime_that_does_nothing_but_hang_is_given_up(path, monkeypatch, hung):
    monkeypatch.setattr("nas.profiling.device.timing.PATIENCE", 0.0)
    misbehave(monkeypatch, hang="@", hung=hung)
    with pytest.raises(MeasureError, match="4 did in a row with nothing measured between"):
        profile(TINY, path=path, **SHORT, patience_seconds=3)


def test_a_process_that_hangs_ends_with_the_one_that_asks(tmp_path):
    """The parent is killed, so nobody closes pipes in order or ends the process that never looks at its input."""
    file = tmp_path / "hung"
    code = (
        "from nas.profiling.profiler import measure; from tests.small import TINY; import random;"
        "measure(TINY.sample(random.Random(0)), runtime='fake')"
    )
    behaviour = json.dumps({"hang": "Logits", "hung": str(file)})
    with subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ, NAS_FAKE=behaviour)) as parent:
        while not (file.exists() and file.read_text()):
            assert parent.poll() is None
            time.sleep(0.1)
        worker = Path(f"/proc/{file.read_text()}")
        assert worker.exists()
        parent.kill()
    while worker.exists() and " Z" not in (worker / "stat").read_text():  # ends: the test's point
        time.sleep(0.1)


def test_a_whole_network_that_hangs_is_no_end_for_ever_either(rng, monkeypatch, hung):
    misbehave(monkeypatch, hang="Logits", hung=hung)
    with pytest.raises(MeasureError, match=r"network .*: it hung: no answer for \d+ s"):
        measure(TINY.sample(rng), runtime="fake", settings=Settings(rounds=1, passes=1, patience_seconds=1))


def test_a_worker_killed_between_rounds_is_replaced_and_no_probe_blamed(path, monkeypatch):
    ask, killed = Worker.round, []

    def kill_first(self: Worker, keys: Sequence[str]) -> dict[str, Sample]:
        if not killed:
            killed.append(self)
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return ask(self, keys)

    monkeypatch.setattr(Worker, "round", kill_first)
    assert len(few(path, passes=1).entries) == len(FEW)
    assert killed


def test_once_the_cause_of_a_failure_is_gone_only_the_failed_is_measured(local, path, monkeypatch):
    misbehave(monkeypatch, fail=LOGITS)
    with pytest.raises(MeasureError, match=f"1 of 3 .*\n  {LOGITS}: RuntimeError: fake failure at {LOGITS}"):
        few(path)
    before = rows_of(path)
    assert len(before) == 2
    misbehave(monkeypatch)
    lines = len(whole_lines(samples_of(path)))
    few(path)
    rounds = [json.loads(line) for line in whole_lines(samples_of(path))[1:]]
    assert any(LOGITS in key for line in rounds[lines - 1 :] for key in line["samples"])
    taken = Counter((line["pass"], key) for line in rounds for key in line["samples"])
    assert set(taken.values()) == {SHORT["rounds"]}  # no graph was measured twice
    assert set(before) < set(rows_of(path))
    assert len(rows_of(path)) == 3


def test_networks_that_failed_are_measured_once_the_cause_is_gone(local, copied, monkeypatch):
    text = copied.read_text().splitlines()
    networks = [line for line in text if line.startswith("network,")]
    copied.write_text("\n".join(line for line in text if line not in networks[3:]) + "\n")
    table = profile(TINY, path=copied, **SHORT)
    assert sorted(line for line in copied.read_text().splitlines() if line.startswith("network,")) == sorted(networks)
    assert table.calibrations


def test_slow_spells_do_not_move_the_values(local, path, monkeypatch):
    misbehave(monkeypatch, slow=[700, 1100])
    table = few(path, passes=1, rounds=6)
    with Journal(samples_of(path)) as journal:
        reference = reference_of(journal.samples)
        sentinels = [s.sentinel_us for taken in journal.samples[0].values() for s in taken]
    slow = sum(sentinel > GATE * reference for sentinel in sentinels)
    assert 0.1 < slow / len(sentinels) < 0.6  # it was there
    for entry in table.entries:
        assert entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1)


def test_ops_are_rows_at_op_level(local, path):
    rows = tuple(row for row in TINY.op_rows() if row.inputs[0].is_map)[:8]
    table = profile(TINY, path=path, level="op", rows=rows, **SHORT)
    assert table.header.level == "op"
    assert {entry.row for entry in table.entries} == set(rows)
    for entry in table.entries:
        assert entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1), entry.row


def test_a_network_is_measured_whole(local, rng):
    arch = TINY.sample(rng)
    found = measure(arch, runtime="fake", settings=Settings(rounds=3, passes=2))
    assert found.us == pytest.approx(CALL_US + sum(row_us(call.row) for call in calls_of(arch)), rel=0.005)
    assert (found.runtime, found.runtime_version, found.variant) == ("fake", "1", "default")
    assert (found.device, found.count) == (this_machine().slug, 6)
    with pytest.raises(InputError, match="did you mean 'fake'"):
        measure(arch, runtime="fak")


def test_a_precision_that_a_runtime_lacks_is_said_before_a_process_dies_of_it(rng, monkeypatch):
    monkeypatch.setattr(bench, "ProbeWorker", None)
    with pytest.raises(InputError, match="fake: unknown precision 'fp1'"):
        measure(TINY.sample(rng), runtime="fake", precision="fp1")


def test_a_process_that_cannot_even_begin_is_an_error_of_measuring(rng, monkeypatch):
    monkeypatch.setenv("NAS_FAKE", "{")  # which no process of the runtime survives
    monkeypatch.setattr(Fake, "__init__", lambda self, *args: None)
    with pytest.raises(MeasureError, match=r"the process ended with exit code 1.*it runs no graph") as caught:
        measure(TINY.sample(rng), runtime="fake", variant="default", settings=Settings(rounds=1, passes=1))
    assert type(caught.value) is MeasureError


class Shifting(LocalWorker):
    """Counts the processes that time, and makes those from number `quiet_from` on quiet."""

    count, quiet_from = 0, 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if Shifting.count >= Shifting.quiet_from:
            self.backend.behaviour.clear()
        Shifting.count += 1


@pytest.mark.parametrize("quiet_from", [2, 10**9])
def test_a_measurement_on_a_disturbed_machine_is_taken_again_and_says_so(local, rng, monkeypatch, quiet_from):
    arch, settings = TINY.sample(rng), Settings(rounds=4, passes=2)
    true = CALL_US + sum(row_us(call.row) for call in calls_of(arch))
    quiet = measure(arch, runtime="fake", settings=settings)
    assert (quiet.noise, quiet.disturbed) == (0.0, False)
    assert quiet.text.startswith("quiet machine: 0% of samples in slow spells")
    monkeypatch.setattr(bench, "ProbeWorker", Shifting)
    monkeypatch.setattr(Shifting, "count", 0)
    monkeypatch.setattr(Shifting, "quiet_from", quiet_from)
    misbehave(monkeypatch, slow=[0, 10**9])  # all of it, steadily: nothing else than an earlier measurement tells
    found = measure(arch, runtime="fake", settings=settings, sentinel_us=quiet.sentinel_us)
    if quiet_from == 2:
        assert (found.noise, found.disturbed, Shifting.count) == (0.0, False, 4)
        assert found.us == pytest.approx(true, rel=0.005)
        assert "measured 2 times" in found.text
    else:
        assert (found.noise, found.disturbed, Shifting.count) == (1.0, True, 6)
        assert found.us == pytest.approx(1.4 * true, rel=0.005)
        assert re.match(r"disturbed machine: 100% .* 1\.4\d times its quiet time, measured 3 times; close", found.text)


def test_slow_spells_within_a_measurement_are_measured_anew_without_an_earlier_one(local, rng, monkeypatch):
    arch = TINY.sample(rng)
    misbehave(monkeypatch, slow=[0, 360])  # most of the samples until half of the rounds are good
    found = measure(arch, runtime="fake", settings=Settings(rounds=12, passes=1))
    assert "measured 2 times" in found.text
    assert not found.disturbed
    assert 0 < found.noise <= 0.5
    assert found.us == pytest.approx(CALL_US + sum(row_us(call.row) for call in calls_of(arch)), rel=0.005)


def test_a_network_that_cannot_be_measured_is_named(local, rng, monkeypatch):
    misbehave(monkeypatch, fail="Logits")
    arch = TINY.sample(rng)
    with pytest.raises(MeasureError, match=f"network {arch.id}: RuntimeError: fake failure at Logits"):
        measure(arch, runtime="fake", settings=Settings(rounds=1, passes=1))


def test_progress_ends_where_it_said_it_would(local, path):
    seen: list[tuple[float, float, float | None, str]] = []
    few(path, progress=lambda *values: seen.append(values))
    shares = [done / total for done, total, _, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.1)
    assert any("pass 2 of 2: round 3" in text for *_, text in seen)


def test_a_machine_too_noisy_is_refused_and_the_same_command_measures_anew(local, path, monkeypatch):
    misbehave(monkeypatch, slow=[200, 1200])
    with pytest.raises(
        MeasureError, match=r"too noisy .*: \d+% of samples in slow spells, .* at most 50%.*--accept-noise"
    ):
        few(path, passes=1, rounds=6)
    assert not path.exists()
    taken = len(whole_lines(samples_of(path)))
    assert taken > 1
    misbehave(monkeypatch)
    table = few(path, passes=1, rounds=6)
    assert len(whole_lines(samples_of(path))) > taken + 1
    for entry in table.entries:
        assert entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1)


def test_noise_that_is_accepted_stands_in_the_header(local, path, monkeypatch):
    misbehave(monkeypatch, slow=[200, 1200])
    with pytest.raises(MeasureError, match="too noisy"):
        few(path, passes=1, rounds=6)
    lines = len(whole_lines(samples_of(path)))
    table = few(path, passes=1, rounds=6, accept_noise=True)
    assert table.header.noisy
    assert 0.5 < table.header.noise <= 1
    facts = table_facts(Table.read(path))
    assert (facts["noise"], facts["noisy"]) == (table.header.noise, True)
    assert len(whole_lines(samples_of(path))) == lines  # it took what was there


def test_a_table_says_how_noisy_its_machine_was_and_one_without_still_reads(local, path):
    quiet = few(path)
    assert (quiet.header.noise, quiet.header.noisy) == (0.0, False)
    text = path.read_text()
    path.write_text(text.replace("# noise: 0.0\n", ""))
    old = Table.read(path)
    assert (old.header.noise, table_facts(old)["noisy"]) == (None, False)
    old.write(path)
    assert "# noise" not in path.read_text()
    for wrong in ("nan", "1.5", "-1", "much"):
        path.write_text(text.replace("# noise: 0.0\n", f"# noise: {wrong}\n"))
        with pytest.raises(TableError, match=rf"table\.csv:\d+: noise: expected .*, got '{wrong}'"):
            Table.read(path)


def test_new_rows_in_another_state_of_the_machine_are_refused_beyond_a_third(local, copied, monkeypatch):
    before, wider = copied.read_bytes(), replace(TINY, classes=20)
    misbehave(monkeypatch, slow=[0, 10**9])  # all of it, steadily
    with pytest.raises(MeasureError, match=r"takes \d+ us now and took \d+ us when .* over 30% apart"):
        profile(wider, path=copied, **SHORT)
    assert copied.read_bytes() == before
    misbehave(monkeypatch)
    table = profile(wider, path=copied, **SHORT)
    new = [entry for entry in table.entries if "classes=20" in str(entry.row)]
    assert len(new) == 2
    for entry in new:
        assert entry.us == pytest.approx(true_us(entry.row), rel=NOISE, abs=0.1)


class FullDisk:
    """A file on a disk that takes only so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: self.room]
        self.room -= len(part)
        return int(self.file.write(part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_loses_one_round(local, path, monkeypatch):
    few(path)
    whole = whole_lines(samples_of(path))
    path.unlink()
    samples_of(path).write_bytes(b"".join(whole[:3]))
    opened = Journal.__init__

    def on_a_full_disk(self: Journal, file: Path) -> None:
        opened(self, file)
        self._file = FullDisk(self._file, len(whole[3]) + 10)  # a round and a bit

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__init__", on_a_full_disk)
        with pytest.raises(RunError, match=r"samples\.jsonl: cannot be written \(No space left on device\); make room"):
            few(path)
    assert len(whole_lines(samples_of(path))) == 5  # with the torn one
    few(path)
    after = whole_lines(samples_of(path))
    assert len(after) == len(whole)
    assert all(json.loads(line) for line in after)


def test_a_table_that_cannot_be_written_says_so(local, path, monkeypatch):
    def write(temporary: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with pytest.raises(RunError, match=r"table\.csv: cannot be written \(No space left on device\)"):
            few(path)
    lines = len(whole_lines(samples_of(path)))
    few(path)
    assert len(whole_lines(samples_of(path))) == lines  # nothing was measured again


def test_the_memory_of_networks_is_measured_once(local, copied, monkeypatch):
    assert all(network.peak_bytes == 10**6 + len(network.arch.to_text()) for network in Table.read(copied).networks)
    monkeypatch.setattr("nas.profiling.bench.Weigher", no_worker)
    profile(TINY, path=copied, **SHORT)


def test_a_kill_among_the_networks_that_are_weighed_repeats_none(local, path, monkeypatch):
    weighed: list[str] = []

    class Killed(LocalWeigher):
        def weigh(self, probe: Probe, files: Mapping[str, Path]) -> int:
            if len(weighed) == 4:
                raise KeyboardInterrupt
            weighed.append(probe.key)
            return super().weigh(probe, files)

    monkeypatch.setattr(bench, "Weigher", Killed)
    with pytest.raises(KeyboardInterrupt):
        profile(TINY, path=path, **SHORT)
    assert len(Table.read(path).networks) == SHORT["networks"]  # it is there already
    weighed.append("after")
    table = profile(TINY, path=path, **SHORT)
    assert len(set(weighed)) == len(weighed) == SHORT["networks"] + 1
    assert all(network.peak_bytes == 10**6 + len(network.arch.to_text()) for network in table.networks)


def test_memory_that_cannot_be_measured_is_none_and_said(local, path, monkeypatch):
    class Failing(LocalWeigher):
        def weigh(self, probe: Probe, files: Mapping[str, Path]) -> int:
            raise MeasureError("it fails")

    monkeypatch.setattr(bench, "Weigher", Failing)
    outcome = run(job_of(TINY, path=path, **SHORT))
    assert {network.peak_bytes for network in outcome.table.networks} == {None}
    assert len(outcome.problems) == 3
    assert "not measured: it fails" in outcome.problems[0]
    assert "4 further networks not tried" in outcome.problems[-1]


def test_memory_that_nothing_counts_is_said_and_no_file_is_touched(local, copied, monkeypatch):
    text = copied.read_text()
    copied.write_text(re.sub(r"(?m)^(network,.*),\d+$", r"\1,", text))
    samples_of(copied).unlink()
    before = {file: file.read_bytes() for file in copied.parent.iterdir()}
    monkeypatch.setattr(Fake, "memory", None)
    assert run(job_of(TINY, path=copied, **SHORT)).problems == (
        "nothing counts the memory that fake takes on its device",
    )
    assert {file: file.read_bytes() for file in copied.parent.iterdir()} == before
    monkeypatch.setattr(Fake, "memory", "process")
    run(job_of(TINY, path=copied, **SHORT))
    assert [line for line in copied.read_text().splitlines() if line.startswith("network,")] == [
        line for line in text.splitlines() if line.startswith("network,")
    ]


def test_more_networks_are_measured_where_more_are_asked_for(local, copied):
    before = Table.read(copied).networks
    table = profile(TINY, path=copied, **(SHORT | {"networks": 9}))
    assert len(table.networks) == 9
    assert set(before) < set(table.networks)


def test_a_method_that_does_not_exist_is_refused(path):
    with pytest.raises(InputError, match=r"unknown method 'in-situ'\. Known: chains"):
        job_of(TINY, path=path, runtime="fake", method="in-situ")


def test_a_process_that_times_files_does_without_pytorch():
    code = "import sys, nas.profiling.worker, nas.profiling.backends.onnxruntime; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
