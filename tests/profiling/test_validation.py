from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import statistics
from pathlib import Path

import pytest
from scipy import stats

import search_spaces
from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError, MissingLatency, RunError
from nas.core.files import lock_of
from nas.profiling import validation
from nas.profiling.backends.fake import Fake, row_us
from nas.profiling.device.journal import Journal
from nas.profiling.device.timing import Noise, Settings
from nas.profiling.job import Job
from nas.profiling.machine import this_machine
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import measure, time_networks
from nas.profiling.validation import LEAST, validate
from nas.tables.table import Entry, NetworkEntry, Table
from tests.profiling import LocalWeigher, LocalWorker, true_us
from tests.small import TINY, fake_table

SPACE = search_spaces.load("efficientformer-32")
HYBRID = search_spaces.load("hybrid-32")
QUICK = Settings(rounds=2, passes=1)


def table_off_by(error: float, networks: int = 6, **header: object) -> Table:
    """A table of this machine on the fake runtime, its rows off by about `error`, with networks that it has seen."""
    rng = random.Random(3)
    machine = this_machine()
    values = {"device": machine.slug, "cpu": machine.cpu} | header
    rows = [Entry(row, true_us(row) * rng.uniform(1 - error, 1 + error), 0.1, 5) for row in SPACE.rows()]
    seen = {SPACE.sample(rng) for _ in range(networks)}
    measured = [NetworkEntry(arch, 6.0 + sum(row_us(call.row) for call in calls_of(arch)), 0.1, 3) for arch in seen]
    return Table(fake_table(SPACE, **values).header, rows, measured)


@pytest.fixture(autouse=True)
def no_process_for_memory(monkeypatch):
    monkeypatch.setattr("nas.profiling.bench.Weigher", LocalWeigher)


@pytest.fixture(scope="module")
def sentinel_us() -> float:
    """The reference block on the fake runtime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.profiling.bench.ProbeWorker", LocalWorker)
        return measure(SPACE.sample(random.Random(0)), runtime="fake", settings=QUICK).sentinel_us


@pytest.fixture(scope="module")
def checked(sentinel_us):
    """A table with errors and its validation."""
    table = table_off_by(0.3, sentinel_us=sentinel_us)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.profiling.bench.ProbeWorker", LocalWorker)
        patch.setattr("nas.profiling.bench.Weigher", LocalWeigher)
        return table, validate(table, archs=LEAST, settings=QUICK)


def test_the_networks_are_unseen_distinct_and_measured(checked):
    table, found = checked
    archs = [item.arch for item in found.card.networks]
    assert len(set(archs)) == len(archs) == LEAST == 12
    assert set(archs).isdisjoint(network.arch for network in table.networks)
    for item in found.card.networks:
        assert item.arch in SPACE
        assert item.predicted_us == pytest.approx(table.price(calls_of(item.arch)).total_us)
        assert item.measured_us == pytest.approx(sum(true_us(call.row) for call in calls_of(item.arch)), rel=0.01)
    assert all(item.peak_bytes == 10**6 + len(item.arch.to_text()) for item in found.table.checks)


def test_the_networks_are_even_in_log_latency(checked):
    table, found = checked
    (low, _), (high, _) = table.extremes(SPACE)
    logs = sorted(math.log(item.predicted_us) for item in found.card.networks)
    step = math.log(high / low) / (len(logs) - 1)
    for number, value in enumerate(logs):  # none is half a step from its place between the ends of the space
        assert abs(value - math.log(low) - number * step) < step / 2
    assert found.card.ratio == pytest.approx(high / low, rel=0.3)


def test_the_errors_are_those_by_hand(checked):
    _, found = checked
    networks = found.card.networks
    guess, truth = [n.predicted_us for n in networks], [n.measured_us for n in networks]
    off = [(p - m) / m for p, m in zip(guess, truth, strict=True)]
    assert max(map(abs, off)) > 0.01  # else nothing is checked
    errors = found.card.errors
    assert errors.mape_percent == pytest.approx(100 * statistics.mean(map(abs, off)))
    assert errors.bias_percent == pytest.approx(100 * statistics.mean(off))
    assert errors.within_5_percent == pytest.approx(100 * sum(abs(e) <= 0.05 for e in off) / len(off))
    assert errors.within_10_percent == pytest.approx(100 * sum(abs(e) <= 0.10 for e in off) / len(off))
    assert errors.worst_percent == pytest.approx(100 * max(off, key=abs))
    assert errors.spearman == pytest.approx(stats.spearmanr(guess, truth).statistic)
    assert errors.kendall == pytest.approx(stats.kendalltau(guess, truth).statistic)
    assert found.scale == pytest.approx(1, abs=0.01)  # this machine, in the same state
    assert found.here
    assert abs(found.sentinel_drift) < 0.01


def test_the_facts_are_complete_and_every_network_can_be_rebuilt(checked):
    _, found = checked
    facts = found.facts()
    asked = ["mape", "bias", "within_5", "within_10", "coverage"]
    asked = [f"{name}_percent" for name in asked] + ["spearman", "kendall", "reference_kendall", "families", "worst"]
    assert set(asked) < set(facts)
    assert facts["mape_percent"] == found.card.errors.mape_percent
    assert facts["coverage_percent"] is None  # six calibration networks give no interval
    assert facts["worst"]["error_percent"] == found.card.errors.worst_percent
    assert facts["families"][0] | {"mape_percent": 0, "bias_percent": 0} == {
        "family": "efficientformer-32",
        "networks": LEAST,
        "mape_percent": 0,
        "bias_percent": 0,
        "covered": None,
    }
    assert facts["repeatability"]["networks_p95_percent"] >= 0
    for item, network in zip(facts["networks"], found.card.networks, strict=True):
        assert Arch.from_json(json.dumps(item["architecture"])) == network.arch
        assert item["measured_ms"] == network.measured_us / 1000
    assert f"MAPE {found.card.errors.mape_percent:.1f} %" in found.text()
    assert "card not written: the table is no file" in found.text()


def on_disk(table: Table, folder) -> Table:
    return Table.read(table.write(folder / "table.csv"))


def test_the_card_is_written_into_the_table_and_predictions_stay(local, sentinel_us, tmp_path):
    table = on_disk(table_off_by(0.1, sentinel_us=sentinel_us), tmp_path)
    assert table.card is None
    found = validate(table, archs=LEAST, seed=4, settings=QUICK)
    assert found.unwritten == ""
    again = Table.read(table.path)
    assert again.card.errors.mape_percent == pytest.approx(found.card.errors.mape_percent, rel=1e-3)
    assert "seed 4" in again.header.checked
    assert again.hash == table.hash
    assert again.networks == table.networks
    assert list(tmp_path.glob("*.jsonl")) == []
    other = validate(again, archs=LEAST, seed=5, settings=QUICK)  # other networks replace them
    assert {n.arch for n in other.table.checks} != {n.arch for n in again.checks}
    assert len(Table.read(table.path).checks) == LEAST


def test_a_card_of_another_machine_or_version_or_of_a_read_only_file_is_only_shown(
    local, sentinel_us, tmp_path, monkeypatch
):
    table = on_disk(table_off_by(0.1, cpu="another cpu", sentinel_us=sentinel_us), tmp_path)
    text = table.path.read_text()
    found = validate(table, archs=LEAST, settings=QUICK)
    assert "a table of another machine" in found.unwritten
    assert table.path.read_text() == text
    table = on_disk(table_off_by(0.1, runtime_version="0.9", sentinel_us=sentinel_us), tmp_path)
    found = validate(table, archs=LEAST, settings=QUICK)
    assert "was measured with fake 0.9, this is 1" in found.unwritten
    table = on_disk(table_off_by(0.1, sentinel_us=sentinel_us), tmp_path)
    text = table.path.read_text()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.W_OK and allowed(path, mode, **more))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")  # also where there is nothing to remove

    monkeypatch.setattr(Path, "unlink", refuse)
    found = validate(table, archs=LEAST, settings=QUICK)
    assert "cannot be written here; copy it" in found.text()
    assert table.path.read_text() == text
    assert os.listdir(tmp_path) == ["table.csv"]


def test_an_interrupted_validation_goes_on_where_it_was(sentinel_us, tmp_path, monkeypatch):
    table = on_disk(table_off_by(0.1, sentinel_us=sentinel_us), tmp_path)
    rounds: list[int] = []

    class Counting(LocalWorker):
        def round(self, keys):
            if len(rounds) == 3:
                rounds.append(0)
                raise KeyboardInterrupt
            rounds.append(len(keys))
            return super().round(keys)

    monkeypatch.setattr("nas.profiling.bench.ProbeWorker", Counting)
    settings = Settings(rounds=5, passes=1)
    with pytest.raises(KeyboardInterrupt):
        validate(table, archs=LEAST, settings=settings)
    (journal,) = tmp_path.glob("*.jsonl")
    assert journal.name == "table.csv.validation-1.samples.jsonl"
    with pytest.raises(InputError, match=r"holds samples of another validation, its networks differ"):
        validate(table, archs=LEAST + 1, settings=settings)
    before = len(rounds)
    found = validate(table, archs=LEAST, settings=settings)
    full = LEAST + validation.ANCHORS
    assert rounds[:3] == [full] * 3
    assert rounds[before : before + 2] == [full] * 2  # three of five rounds were on disk
    assert len(found.card.networks) == LEAST
    assert not journal.exists()


def test_the_hybrid_is_checked_on_mixed_networks_and_on_pure_ones_of_every_kind():
    machine = this_machine()
    table = fake_table(HYBRID, device=machine.slug, cpu=machine.cpu)
    seen = {network.arch for network in table.networks}
    drawn = validation._draw(table, 28, random.Random(2), seen)
    assert len(drawn) == len(set(drawn)) == 28
    assert seen.isdisjoint(drawn)
    assert all(arch in HYBRID for arch in drawn)
    kinds = {"mb4d", "mb3d", "shuffle", "nextvit", "mobileformer", "mobilevit", "inverted"}
    from nas.tables.kinds import family_of

    families = [family_of(arch) for arch in drawn]
    assert {f"hybrid-32:{kind}" for kind in kinds} <= set(families)
    assert families.count("hybrid-32") >= 10


def test_several_spaces_of_a_table_have_equal_parts():
    other = search_spaces.load("nextvit-32")
    one, two = fake_table(SPACE), fake_table(other)
    header = dataclasses.replace(one.header, spaces=(SPACE.name, other.name))
    rows = {entry.row: entry for entry in (*one.entries, *two.entries)}
    drawn = validation._draw(Table(header, rows.values()), 13, random.Random(0), set())
    count = sum(arch.family == SPACE.name for arch in drawn)
    assert {count, len(drawn) - count} == {6, 7}


def test_a_profile_after_a_validation_measures_none_of_the_cards_networks(path):
    table = fake_table(TINY)
    checks = [NetworkEntry(arch, 100.0, 0.1, 3) for arch in list(TINY.archs())[:12:2]]
    carded = Table(table.header, table.entries, [], path, checks)
    job = Job(TINY, path, RuntimeConfig("fake", 1, "fp32"), "block", Settings(rounds=2, passes=1, networks=20))
    with Journal(path.with_name("journal")) as journal:
        chosen = job.networks(journal, carded)
    assert len(chosen) == 20
    assert {network.arch for network in checks}.isdisjoint(chosen)


def test_on_another_machine_errors_are_also_given_after_one_scale(local, sentinel_us, monkeypatch):
    timed = []

    def spy(archs, *args, **kwargs):
        timed.append(list(archs))
        return time_networks(archs, *args, **kwargs)

    monkeypatch.setattr(validation, "time_networks", spy)
    honest = table_off_by(0.0, cpu="another cpu", device="elsewhere", sentinel_us=sentinel_us)
    slower = [dataclasses.replace(entry, us=1.5 * entry.us) for entry in honest.entries]
    networks = [dataclasses.replace(network, us=1.5 * network.us) for network in honest.networks]
    found = validate(Table(honest.header, slower, networks), archs=LEAST, settings=QUICK)
    assert not found.here
    assert "NOT THIS MACHINE" in found.text()
    assert found.card.errors.mape_percent == pytest.approx(50, abs=1)
    assert found.scale == pytest.approx(1 / 1.5, rel=0.01)
    assert found.scaled.mape_percent < 1
    test = {item.arch for item in found.card.networks}
    (together,) = timed  # in the same rounds
    refit = set(together) - test
    assert len(refit) == 5
    assert test < set(together)
    assert refit.isdisjoint(network.arch for network in networks)


def test_a_table_that_was_imported_is_validated_without_a_drift_to_tell(local):
    header = {"method": "imported", "variant": "unknown", "sentinel_us": math.nan, "cpu": "unknown"}
    found = validate(table_off_by(0.1, networks=0, **header), archs=LEAST, settings=QUICK)
    assert (found.here, found.sentinel_drift) == (False, None)
    json.dumps(found.facts(), allow_nan=False)
    assert found.scaled is not None
    assert "nan" not in found.text()
    assert "sentinel not known" in found.table.header.checked


def test_the_state_of_the_machine_is_told_by_networks_of_the_table(local, sentinel_us):
    table = table_off_by(0.0, sentinel_us=sentinel_us / 1.1)
    faster = [dataclasses.replace(network, us=network.us / 1.2) for network in table.networks]
    found = validate(Table(table.header, table.entries, faster), archs=LEAST, settings=QUICK)
    assert found.here
    assert found.scale == pytest.approx(1.2, rel=0.01)  # the same networks take so much longer now
    assert found.sentinel_drift == pytest.approx(0.1, abs=0.01)
    assert found.card.errors.bias_percent == pytest.approx(100 * (1 / 1.2 - 1), abs=1)  # the card is as measured
    assert found.scaled.mape_percent < 1
    assert "5 of the table's networks, measured again, take 1.20" in found.text()
    assert ", 5 of its networks +20" in found.table.header.checked


def test_a_noisy_machine_stands_in_the_card(local, sentinel_us, monkeypatch):
    noisy = Noise(0.7, 1.2)
    monkeypatch.setattr("nas.profiling.device.timing.noise_of", lambda samples: noisy)
    found = validate(table_off_by(0.0, sentinel_us=sentinel_us), archs=LEAST, settings=QUICK)
    assert "THIS MACHINE IS NOISY" in found.text()
    assert found.table.header.checked.endswith(f"; noisy machine: {noisy}")


def test_a_table_that_another_process_writes_is_left_alone(local, sentinel_us, tmp_path):
    path = tmp_path / "table.csv"
    made = table_off_by(0.0, sentinel_us=sentinel_us)
    made.write(path)
    table = Table.read(path)
    with lock_of(path), pytest.raises(RunError, match="is in use by process"):
        validate(table, archs=LEAST, settings=QUICK)
    Table(made.header, made.entries, made.networks[1:]).write(path)
    with pytest.raises(InputError, match="has changed since it was read"):
        validate(table, archs=LEAST, settings=QUICK)


def test_memory_that_nobody_counts_is_told_and_left_out(local, sentinel_us, monkeypatch):
    monkeypatch.setattr(Fake, "memory", None)
    found = validate(table_off_by(0.0, sentinel_us=sentinel_us), archs=LEAST, settings=QUICK)
    assert "peak memory was not measured: nothing counts the memory that fake takes" in found.text()
    assert {item.peak_bytes for item in found.table.checks} == {None}


def test_too_few_networks_and_missing_rows_are_refused(local, sentinel_us):
    table = table_off_by(0.0, sentinel_us=sentinel_us)
    with pytest.raises(InputError, match="archs: expected at least 12, got 11"):
        validate(table, archs=11)
    with pytest.raises(MissingLatency, match="lacks 1 of"):
        validate(Table(table.header, table.entries[1:]))
    with pytest.raises(InputError, match="holds no space as a whole"):
        validate(Table(dataclasses.replace(table.header, spaces=()), table.entries))
