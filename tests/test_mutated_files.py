"""Tables, archs and requests as a slip of the hand leaves them: read, or refused by a `NasError`; soon either way."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

import search_spaces
from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError, NasError, TableError
from nas.core.ops import Shape, parse_unit
from nas.core.tracing import macs_of_unit
from nas.networks.building import load_arch
from nas.search.request import Request
from nas.tables.table import Table
from tests.small import TINY, fake_table

LONG, ENDLESS = "9" * 400, "9" * (sys.get_int_max_str_digits() + 1)  # Python does not read the second
VALUES = (
    "0", "-1", "1", "2", "7", "65536", "1e400", "nan", "inf", "-0", "0.5", "true", "null", "", "[", "{}", "none",
    "\x00", "é", "- 1", "!!float x", "2001-99-99", LONG, ENDLESS,
)  # fmt: skip
TOKEN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|[A-Za-z_]+")
REQUEST = """
name: quick
space: efficientformer-32
runtime: onnxruntime
budgets:
  - latency_ms<=p40
  - params<=3e6
dataset: digits
sampler: tpe
trials: 60
workers: 2
seed: 0
allow_uncalibrated: false
"""


def mutated(text: str, rng: random.Random) -> str:
    """One or two slips: a number or word replaced, a line lost, doubled or moved, a character lost or put in."""
    for _ in range(rng.choice((1, 1, 2))):
        lines, at = text.split("\n"), rng.randrange(len(text) + 1)
        line = rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind <= 2 and (found := list(TOKEN.finditer(text))):
            token = rng.choice(found)
            text = text[: token.start()] + rng.choice(VALUES) + text[token.end() :]
        elif kind == 3:
            text = "\n".join(lines[:line] + lines[line + 1 :])
        elif kind == 4:
            text = "\n".join([*lines[:line], rng.choice(lines), *lines[line:]])
        elif kind == 5:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
        else:
            text = text[:at] + rng.choice([*VALUES, ",", ":", '"', "\n", " ", "=", "x", "|"]) + text[at:]
    return text


def read_table(path):
    table = Table.read(path)
    assert table.hash
    for network in table.networks[:1]:
        table.price(calls_of(network.arch))


def read_arch(path):
    for call in calls_of(load_arch(path)):
        macs_of_unit(call.row)


def arch_text() -> str:
    return json.dumps(json.loads(TINY.sample(random.Random(3)).to_json()), indent=0)


CASES = {
    "table.csv": (fake_table(TINY, error=0.02).to_text(), read_table, 150),
    "arch.json": (arch_text(), read_arch, 150),
    "request.yaml": (REQUEST, Request.read, 200),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mutated_file_is_read_or_refused_on_purpose(name, tmp_path):
    text, read, count = CASES[name]
    path, rng, refused = tmp_path / name, random.Random(name), 0
    longest = 0
    path.write_text(text, encoding="utf-8")
    read(path)
    for number in range(count):
        broken = mutated(text, rng)
        path.write_bytes(broken.encode("utf-8", "surrogatepass"))
        try:
            read(path)
        except NasError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            pytest.fail(f"mutation {number} of {name}: {type(error).__name__}: {error}\n{broken[:2000]}")
    assert count / 4 < refused < count
    assert longest < 20_000


def put(text: str, key: str, value: str) -> str:
    """The text with another value of its first such field."""
    changed, count = re.subn(rf'("?{key}"?[=:] ?)-?[\w.]+', lambda found: found[1] + value, text, count=1)
    assert count == 1
    return changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("convs", LONG, r"Stem\.convs: expected .*(1 to 8|at most 18 digits)"),
        ("convs", "0", r"Stem\.convs: expected 1 to 8, got 0"),
        ("ratio", "-1", r"M\w+\.ratio: expected 1 to 64, got -1"),
        ("cout", "0", r"\w+\.cout: expected 1 to 65536, got 0"),
        ("cout", "65537", r"\w+\.cout: expected 1 to 65536, got 65537"),
        ("classes", "1000001", r"classes: expected 1 to 1000000, got 1000001"),
    ],
)
def test_a_field_has_bounds_in_files_of_either_kind(tmp_path, key, value, message):
    arch, table = tmp_path / "arch.json", tmp_path / "table.csv"
    arch.write_text(put(TINY.sample(random.Random(0)).to_json(), key, value))
    with pytest.raises(InputError, match=rf"arch\.json.*{message}"):
        load_arch(arch)
    table.write_text(put(fake_table(TINY).to_text(), key, value))
    with pytest.raises(TableError, match=rf"table\.csv:\d+, column .*{message}"):
        Table.read(table)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"us": "0.000", "spread_us": "0.000"}, "column us: a time of 0 with a spread of 0 was never measured"),
        ({"us": "1e10"}, r"column us: expected a finite number >= 0, at most 1e\+09"),
        ({"count": "1.5"}, "column count: expected a whole number from 0"),
        ({"peak_bytes": LONG}, "column peak_bytes: expected a whole number from 1 to"),
    ],
)
def test_a_cell_has_bounds(tmp_path, cells, message):
    path, lines = tmp_path / "table.csv", fake_table(TINY).to_text().splitlines()
    kind = "network" if "peak_bytes" in cells else "row"
    number = next(n for n, line in enumerate(lines) if line.startswith(f"{kind},"))
    columns = ["us", "spread_us", "count", "source", "peak_bytes"]
    *start, rest = lines[number].rsplit(",", 5)[0], lines[number].rsplit(",", 5)[1:]
    values = dict(zip(columns, rest, strict=True)) | cells
    lines[number] = ",".join([*start, *values.values()])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match=rf"table\.csv:{number + 1}, {message}"):
        Table.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"family": ' * 50_000, "nested too deeply"),
        (f'{{"family": {ENDLESS}}}', "not the JSON of an arch"),
        ('{"family": "a", "family": "b"}', "key 'family' stands there twice"),
        (json.dumps({"family": "efficientformer", "input": [3, 32, 32], "classes": 10, "stages": [[]] * 65}), "65"),
        (
            json.dumps({"family": "efficientformer", "input": [3, 32, 32], "classes": 10, "stages": [[0] * 1025]}),
            r"stages\[0\]: expected at most 1024 entries, got 1025",
        ),
    ],
)
def test_nesting_and_counts_of_an_arch_are_bounded(tmp_path, text, message):
    path = tmp_path / "arch.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_arch(path)


@pytest.mark.parametrize("count", ["0", "1025", "99999999999", LONG])
def test_a_repeated_block_in_a_line_is_counted_before_it_is_made(count):
    search_spaces.load("efficientformer")
    with pytest.raises(InputError, match="expected 1 to 1024 blocks"):
        Arch.from_text(f"MB4D ratio=4 x{count}", "efficientformer", (3, 32, 32), 10)


def test_blocks_too_large_for_any_machine_are_refused_before_memory_is_taken():
    arch = Arch.from_text("Stem cout=65536 convs=1; Embedding cout=65536", "efficientformer", (3, 64, 64), 10)
    with pytest.raises(InputError, match=r"Embedding cout=65536 .*parameters, expected at most 1,000,000,000"):
        calls_of(arch)
    arch = Arch.from_text("Stem cout=4096 convs=1", "efficientformer", (3, 8192, 8192), 10)
    with pytest.raises(InputError, match="bytes of activations, expected at most 16,000,000,000"):
        calls_of(arch)


@pytest.mark.parametrize("text", ["1x3x", "1x" * 6 + "1", "1x99999", LONG, "1x٣"])
def test_sizes_have_bounds(text):
    with pytest.raises(InputError, match="shape: expected"):
        Shape.parse(text)


def test_what_no_module_could_be_made_of_is_no_unit():
    search_spaces.load("t2t")
    with pytest.raises(InputError, match="neighbourhoods of 3 do not cover a map in steps of 4"):
        parse_unit("SoftSplit", "side=8 kernel=3 stride=4").build(Shape(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"Conv\.act: expected none or relu or"):
        parse_unit("Conv", "cin=3 cout=4 act=rely")
    with pytest.raises(InputError, match="field 'cin' stands there twice"):
        parse_unit("Conv", "cin=3 cin=4 cout=4")
    with pytest.raises(InputError, match=r"Conv\.bias: expected 0 or 1, got '2'"):
        parse_unit("Conv", "cin=3 cout=4 bias=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: 5\nseed: 1\ntrials: 6\n", r"key 'trials' stands there twice: lines 1 and 3"),
        ("trials: " + "[" * 20_000, "nested too deeply|cannot be read as YAML"),
        (f"trials: {LONG}", r"trials: expected at most 1000000, got a whole number of about 400 digits"),
        (f"seed: {ENDLESS}", "cannot be read as YAML"),
        ("seed: 2001-99-99", "cannot be read as YAML"),
        ("seed: -1", "seed: expected at least 0, got -1"),
        (f"name: {'a' * 101}", "name: expected at most 100 characters"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntrials: [*c, *c]", "trials: expected a whole number"),
    ],
)
def test_a_request_has_bounds_and_every_key_once(tmp_path, text, message):
    path = tmp_path / "request.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"request\.yaml:(?s:.*)({message})"):
        Request.read(path)


def test_the_mark_that_a_spreadsheet_puts_in_front_is_skipped(tmp_path):
    mark = "\ufeff"
    table, arch, request = tmp_path / "table.csv", tmp_path / "arch.json", tmp_path / "request.yaml"
    table.write_text(mark + fake_table(TINY).to_text(), encoding="utf-8")
    assert Table.read(table).hash == fake_table(TINY).hash
    chosen = TINY.sample(random.Random(0))
    arch.write_text(mark + chosen.to_json(), encoding="utf-8")
    assert load_arch(arch) == chosen
    request.write_text(mark + REQUEST, encoding="utf-8")
    assert Request.read(request).trials == 60


def test_a_header_names_everything_once(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(fake_table(TINY).to_text().replace("# threads: 1\n", "# threads: 1\n# threads: 2\n"))
    with pytest.raises(TableError, match=r"'threads' stands there twice, first in line \d+"):
        Table.read(path)


@pytest.mark.parametrize("value", ["0", "-1", LONG, "inf"])
def test_a_sentinel_is_a_time_or_unknown(tmp_path, value):
    path = tmp_path / "table.csv"
    path.write_text(put(fake_table(TINY).to_text(), "sentinel_us", value))
    with pytest.raises(TableError, match="sentinel_us: expected nan or more than 0"):
        Table.read(path)
