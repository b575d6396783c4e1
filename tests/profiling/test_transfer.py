from __future__ import annotations

import errno
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

import search_spaces
from nas import commands
from nas.core.arch import calls_of
from nas.core.errors import InputError, RunError
from nas.core.files import lock_of
from nas.profiling.backends.fake import CALL_US, row_us
from nas.profiling.device.timing import Settings
from nas.profiling.transfer import transfer_table
from nas.tables.table import Entry, NetworkEntry, Table
from tests.profiling import whole_lines
from tests.small import fake_table

SPACE = search_spaces.load("efficientformer-32")
QUICK = Settings(rounds=3, passes=2)


@pytest.fixture(scope="module")
def source() -> Table:
    """Another device: about half as fast as the fake runtime, differently for each row."""
    rng = random.Random(3)
    rows = [Entry(row, row_us(row) * rng.uniform(1.8, 2.2), 0.1, 5) for row in SPACE.rows()]
    return Table(fake_table(SPACE, networks=0).header, rows)


def samples_of(path):
    return path.with_name(path.name + ".transfer.samples.jsonl")


def true_us(arch) -> float:
    """What the fake runtime takes for a network."""
    return CALL_US + sum(row_us(call.row) for call in calls_of(arch))


def test_a_table_comes_from_a_few_networks_measured_here(local, path, source, rng):
    table = transfer_table([source], path=path, measure=20, runtime="fake", settings=QUICK)
    assert Table.read(path).to_text() == table.to_text()
    assert (table.header.runtime, table.header.method, table.header.spaces) == ("fake", "transfer", (SPACE.name,))
    assert source.hash[:8] in table.header.protocol
    assert {entry.row for entry in table.entries} == set(SPACE.rows())
    assert {entry.source for entry in table.entries} == {"predicted"}
    assert len(table.networks) == 7
    seen = {network.arch for network in table.networks}
    for arch in {SPACE.sample(rng) for _ in range(100)} - seen:
        assert table.price(calls_of(arch)).total_us == pytest.approx(true_us(arch), rel=0.06)
    for network in table.networks:
        assert network.us == pytest.approx(true_us(network.arch), rel=0.01)


def test_fewer_than_ten_networks_leave_the_table_uncalibrated(local, path, source, rng):
    table = transfer_table([source], path=path, measure=5, runtime="fake", settings=QUICK)
    assert (table.networks, table.mape_percent) == ((), None)
    arch = SPACE.sample(rng)
    assert table.price(calls_of(arch)).total_us == pytest.approx(true_us(arch), rel=0.15)


@pytest.mark.parametrize("lines", [1, 4])
def test_a_stopped_transfer_goes_on_and_ends_with_the_same(local, path, source, lines):
    settings = {"measure": 10, "runtime": "fake", "settings": QUICK}
    whole = transfer_table([source], path=path, **settings)
    written = whole_lines(samples_of(path))
    path.unlink()
    samples_of(path).write_bytes(b"".join(written[:lines]) + written[lines][:-20])
    again = transfer_table([source], path=path, **settings)
    after = whole_lines(samples_of(path))
    assert after[:lines] == written[:lines]
    assert len(after) == len(written)  # no round was measured twice
    assert [item.arch for item in again.networks] == [item.arch for item in whole.networks]
    assert transfer_table([source], path=path, **settings).to_text() == again.to_text()  # nothing is measured again
    assert whole_lines(samples_of(path)) == after


def test_what_does_not_go_together_is_refused(local, path, source):
    with pytest.raises(InputError, match="expected at least 5 networks, got 4"):
        transfer_table([source], path=path, measure=4, runtime="fake")
    transfer_table([source], path=path, measure=5, runtime="fake", settings=QUICK)
    with pytest.raises(InputError, match=r"threads 1, this transfer has 2"):
        transfer_table([source], path=path, measure=5, runtime="fake", threads=2, settings=QUICK)
    other = Table(source.header, source.entries, [NetworkEntry(SPACE.sample(random.Random(0)), 1.0, 0.1, 1)])
    with pytest.raises(InputError, match=r"holds samples with protocol"):
        transfer_table([other], path=path, measure=5, runtime="fake", settings=QUICK)
    source.write(path)
    with pytest.raises(InputError, match=r"was measured, not transferred"):
        transfer_table([source], path=path, measure=5, runtime="fake", settings=QUICK)


def test_the_same_transfer_keeps_the_card_and_another_is_refused(local, path, source):
    table = transfer_table([source], path=path, measure=10, runtime="fake", settings=QUICK)
    rng, seen = random.Random(9), {network.arch for network in table.networks}
    checks = [NetworkEntry(arch, true_us(arch), 0.1, 3) for arch in {SPACE.sample(rng) for _ in range(20)} - seen]
    header = replace(table.header, checked="20 networks")
    Table(header, table.entries, table.networks, None, checks).write(path)
    again = transfer_table([source], path=path, measure=10, runtime="fake", settings=QUICK)
    assert again.card is not None
    assert Table.read(path).header.checked == "20 networks"
    samples_of(path).unlink()
    with pytest.raises(
        InputError, match=r"table\.csv: holds a table with protocol .* Write to another table with --to"
    ):
        transfer_table([source], path=path, measure=11, runtime="fake", settings=QUICK)
    assert Table.read(path).header.checked == "20 networks"


def test_a_table_that_another_process_writes_is_left_alone(local, path, source):
    with lock_of(path), pytest.raises(RunError, match=r"table\.csv is in use by process"):
        transfer_table([source], path=path, measure=5, runtime="fake", settings=QUICK)
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv.lock"]


def test_a_full_disk_is_said_with_what_to_do(local, path, source, monkeypatch):
    def full(temporary: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"table\.csv: cannot be written \(No space left on device\); make room"):
        transfer_table([source], path=path, measure=5, runtime="fake", settings=QUICK)


def test_the_command_transfers(local, path, source, tmp_path, monkeypatch, capsys):
    known = source.write(tmp_path / "source.csv")
    options = ["--from", known, "--to", path, "--measure", 10, "--runtime", "fake", "--json"]
    monkeypatch.setattr("sys.argv", ["nas", "transfer", *map(str, options)])
    commands.main()
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == "transfer"
    assert facts["unmeasured_rows"] == facts["rows"] == len(SPACE.rows())
    assert facts["networks"] == 5
