from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import search_spaces
from nas.core import remembered, tracing
from nas.core import space as spaces
from nas.core.arch import steps_of
from nas.core.ops import Conv, Row, Shape
from nas.core.remembered import LIMIT_BYTES, Remembered
from nas.core.source import code_of, code_of_package
from nas.core.tracing import calls_of_unit, macs_of_op, params_of_unit

ROOT = Path(__file__).parents[2]
CODE = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where this test remembers."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    return remembered.folder()


def kept(**values: object) -> Path:
    """The file of these values."""
    memory = Remembered(CODE)
    for key, value in values.items():
        memory.put(key, value)
    memory.flush()
    return Path(os.environ["NAS_CACHE"]) / "traced" / f"{CODE}.jsonl"


def test_what_one_process_puts_another_gets(folder):
    memory = Remembered(CODE)
    memory.put("tab\tand\nline", [1, "x", {"y": None}])
    assert memory.get("tab\tand\nline") == [1, "x", {"y": None}]  # at once in its own process
    kept(number=0, text="")
    found = Remembered(CODE)
    assert (found.get("number"), found.get("text"), found.get("other")) == (0, "", None)
    assert Remembered("another code").get("number") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "doubled"])
def test_what_is_damaged_is_passed_over_and_made_again(folder, damage):
    path = kept(first=1, second=[2, 2])
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-5],
            "flipped": content.replace(b"[2,2]", b"[2,3]"),
            "foreign": b"\x00\xff\tSQLite format 3\n" * 100 + content.replace(b"second", b"seconds"),
            "empty": b"",
            "doubled": content + content[: len(content) // 2],
        }[damage]
    )
    assert Remembered(CODE).get("second") in (None, [2, 2])
    assert (Remembered(CODE).get("second") is None) == (damage != "doubled")
    kept(second=[2, 2])
    assert Remembered(CODE).get("second") == [2, 2]


def test_processes_that_write_at_once_lose_nothing(folder):
    writer = (
        "import sys; from nas.core.remembered import Remembered\n"
        "for step in range(200):\n"
        f"    memory = Remembered({CODE!r}); memory.put(f'{{sys.argv[1]}}-{{step}}', ['x' * 997, step]); memory.flush()"
    )
    command = [sys.executable, "-c", writer]
    processes = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    found = Remembered(CODE)
    assert all(found.get(f"{number}-{step}") == ["x" * 997, step] for number in range(4) for step in range(200))


def test_a_folder_that_cannot_be_made_or_read_changes_no_answer(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/nowhere")):
        monkeypatch.setenv("NAS_CACHE", str(place))
        kept(first=1)
        assert Remembered(CODE).get("first") is None
    row = Row(Conv(3, 8), (Shape(1, 3, 4, 4),))
    assert tracing._once("params", row, tracing._count_params, int, tracing._as_read) == 3 * 8 + 2 * 8


def test_a_full_file_takes_no_more_and_is_still_read(folder):
    path = kept(first=1)
    with path.open("ab") as file:
        file.truncate(LIMIT_BYTES + 1)
    kept(second=2)
    assert path.stat().st_size == LIMIT_BYTES + 1
    assert (Remembered(CODE).get("first"), Remembered(CODE).get("second")) == (1, None)


def test_files_that_nobody_reads_go(folder):
    old = kept(first=1).rename(folder / "old.jsonl")
    os.utime(old, (0, 0))
    kept(first=1)
    assert not old.exists()


# what a result depends on

FAMILY = """
from dataclasses import dataclass
from nas.core.ops import Block, Conv
{imports}
@dataclass(frozen=True)
class RememberedBlock(Block):
    cout: int = 8

    def build(self, x):
        return Conv(x.channels, {width}).module()

SPACE = None  # a family ends in one; this one is not asked for it
"""
ASK = """
import json, sys
import search_spaces
from nas.core.ops import Row, Shape
from nas.core.tracing import _code_behind, params_of_unit
family = search_spaces.family("outside")
row = Row(family.RememberedBlock(), (Shape(1, 3, 4, 4),))
print(json.dumps([_code_behind(type(row.unit)), params_of_unit(row)]))
"""


def test_a_change_of_an_outside_family_or_of_what_it_imports_is_seen(tmp_path):
    def ask(imports: str = "", width: str = "self.cout", helper: str = "WIDTH = 5") -> tuple[str, int]:
        (tmp_path / "outside.py").write_text(FAMILY.format(imports=imports, width=width))
        (tmp_path / "lib" / "outside_helper").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / "outside_helper" / "__init__.py").write_text("")
        (tmp_path / "lib" / "outside_helper" / "widths.py").write_text(helper)
        paths = os.pathsep.join([str(ROOT), str(tmp_path / "lib")])
        more = {"NAS_SPACES": str(tmp_path), "NAS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
        command = [sys.executable, "-B", "-c", ASK]
        done = subprocess.run(command, env=os.environ | more, cwd=ROOT, capture_output=True, text=True, check=True)
        code, params = json.loads(done.stdout)
        return code, params

    first, helped = ask(), ("from outside_helper import widths", "widths.WIDTH")
    assert ask() == first
    assert first[1] == 3 * 8 + 2 * 8
    changed = [ask(width="4"), ask(*helped), ask(*helped, helper="WIDTH = 6")]
    assert [params for _, params in changed] == [5 * 4, 5 * 5, 5 * 6]
    assert len({first[0], *(code for code, _ in changed)}) == 4
    assert ask() == first


def test_a_class_that_files_do_not_tell_is_not_remembered(monkeypatch):
    from search_spaces.efficientformer import MB4D

    def build(self, x):
        return Conv(x.channels, x.channels).module()

    assert tracing._code_behind(MB4D) is not None
    tracing._code_behind.cache_clear()
    monkeypatch.setattr(MB4D, "build", build)  # as in a notebook
    assert tracing._code_behind(MB4D) is None
    monkeypatch.undo()
    tracing._code_behind.cache_clear()
    monkeypatch.setattr(sys.modules["search_spaces.efficientformer"], "MB4D", None)  # as of a class made in a function
    assert tracing._code_behind(MB4D) is None
    tracing._code_behind.cache_clear()


def test_the_code_of_the_package_follows_the_families_outside_it(monkeypatch, tmp_path):
    monkeypatch.delenv("NAS_SPACES", raising=False)
    own = code_of_package()
    (tmp_path / "family.py").write_text("import numpy\n")
    monkeypatch.setenv("NAS_SPACES", str(tmp_path))
    assert own != code_of_package() is not None
    assert code_of("nas.core.ops") == code_of("search_spaces.deit") not in (own, None)
    assert code_of("__nowhere__") is None


# what is read equals what is made


@pytest.mark.parametrize("name", sorted(search_spaces.spaces()))
def test_what_is_remembered_of_blocks_equals_what_is_traced(name):
    rng = random.Random(0)
    for row in {call.row for call in steps_of(search_spaces.load(name).sample(rng))}:
        call, memory = calls_of_unit(row), tracing.remembered(tracing._code_behind(type(row.unit)))
        key = f"{row.unit!r} @ {' '.join(map(str, row.inputs))}"
        assert tracing._read_call(row, memory.get(f"call {key}")) == call == tracing._trace_unit(row)
        assert params_of_unit(row) == tracing._count_params(row) == memory.get(f"params {key}")
        for op in rng.sample(call.ops, min(2, len(call.ops))):
            assert macs_of_op(op.row) == tracing._trace_macs(op.row)


@pytest.mark.parametrize("name", ["efficientformer-32", "hybrid-32", "mobileformer-32", "deit-32"])
def test_what_is_remembered_of_a_space_equals_what_is_walked(name):
    space = search_spaces.load(name)
    asked = space.all_rows(), space.op_rows(), space.count()
    memory, text = space._memory
    assert memory.code is not None
    walked = sorted(space._walked_rows(), key=str)
    assert space._read_rows("all rows") == tuple(walked)
    assert asked[0] == tuple(sorted(walked, key=lambda row: not calls_of_unit(row).ops))
    assert asked[1] == space._read_rows("op rows")
    assert asked[2] == space._walked_count() == memory.get(f"count {text}")


def test_two_spaces_of_one_name_are_told_apart_and_a_lambda_is_not_remembered():
    from dataclasses import replace

    space = search_spaces.load("efficientformer-32")
    one = replace(space, stages=space.stages[1:])
    texts = {item._memory[1] for item in (space, one, replace(space, classes=11), replace(space, monotone=1))}
    assert len(texts) == 4
    assert replace(space, head=lambda last: space.head)._memory[0].code is None
    modules: set[str] = set()
    spaces._spell(search_spaces.load("hybrid"), modules)
    assert modules >= {"search_spaces.hybrid", "search_spaces.mobilevit", "nas.core.space", "nas.core.ops"}
