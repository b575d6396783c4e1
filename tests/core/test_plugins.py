"""Files outside the package: found by their constant, in folders or by entry points, refused with their path."""

from __future__ import annotations

import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from nas import metrics
from nas.core import plugins
from nas.core.errors import InputError
from nas.evaluation import datasets, evaluators
from nas.profiling.backends import load_backend, runtimes
from nas.search import samplers
from nas.search.budgets import Budget
from nas.search.executors.local import Pool
from nas.search.workers import Task

EVALUATOR = """
from dataclasses import dataclass

from nas.evaluation.evaluators import Evaluator, Score
from ._half import HALF


@dataclass(frozen=True)
class {name}(Evaluator):
    epochs: int = 1

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        return Score(HALF, "half", seconds=0.0)


EVALUATOR = {name}
"""
OTHERS = {
    "families": "from dataclasses import replace\nfrom search_spaces.efficientformer import SMALL\n"
    'SPACE = replace(SMALL, name="my-space")\n',
    "backends": "from nas.profiling.backends.fake import Fake\n\n\n"
    "class Mine(Fake):\n    name = 'mine'\n\n\nBACKEND = Mine\n",
    "metrics": "from nas.metrics.params import Parameters\n\n\n"
    "class Mine(Parameters):\n    name = 'mine_too'\n\n\nMETRIC = Mine()\n",
    "datasets": "from nas.evaluation.datasets.digits import load as DATASET\n",
    "samplers": "from optuna.samplers import RandomSampler\n\n\n"
    "def SAMPLER(seed, context):\n    return RandomSampler(seed)\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of plug-ins, empty as yet; the modules of other tests are forgotten."""
    for name in [name for name in sys.modules if name.split(".")[0] == plugins.OUTSIDE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("NAS_PLUGINS", str(tmp_path))
    search_spaces.family.cache_clear()
    yield tmp_path
    search_spaces.family.cache_clear()


def write_evaluator(folder: Path, name: str = "constant") -> Path:
    (folder / "_half.py").write_text("HALF = 0.5\n")
    path = folder / f"{name}.py"
    path.write_text(EVALUATOR.format(name=name.title()))
    return path


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_kind_has_files_in_its_folder_that_end_in_its_constant(kind):
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert plugins.load(kind, name) is not None


@pytest.mark.parametrize("inside", ["", "anything"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_outside_is_what_its_constant_says(folder, kind, inside):
    (folder / inside).mkdir(exist_ok=True)
    (folder / inside / "mine_too.py").write_text(OTHERS[kind])
    known = {
        "families": search_spaces.families,
        "backends": runtimes,
        "metrics": metrics.names,
        "datasets": datasets.names,
        "samplers": samplers.names,
    }
    for other, names in known.items():
        assert any(name in names() for name in ("mine_too", "mine-too")) == (other == kind)
    if kind == "families":
        assert search_spaces.load("my-space").sample  # and its module is imported
    elif kind == "backends":
        assert load_backend("mine_too").name == "mine"
    elif kind == "metrics":
        assert Budget.parse("mine_too<=5").asked == "mine_too<=5"
    elif kind == "datasets":
        assert datasets.loader("mine-too").__module__ == "nas.evaluation.datasets.digits"
    else:
        assert type(samplers.load_sampler("mine_too", 0, {}, None)).__name__ == "Seeded"


class Asking:
    """A scorer that asks an evaluator of a file outside, without building anything."""

    def __init__(self, evaluator: evaluators.Evaluator) -> None:
        self.evaluator = evaluator

    def __call__(self, arch: str, seed: int, on_epoch: Any = None) -> evaluators.Score:
        return self.evaluator.score(None, None, arch=None, prepared={}, seed=seed)


def test_a_file_outside_reaches_the_processes_that_score(folder):
    write_evaluator(folder)
    evaluator = evaluators.load_evaluator("constant", epochs=3)
    assert pickle.loads(pickle.dumps(evaluator)) == evaluator
    with Pool(Asking(evaluator), 1) as pool:
        (outcome,) = pool.run([Task(7, "", 0)])
    assert outcome.score is not None, outcome.reason
    assert (outcome.key, outcome.score.value) == (7, 0.5)


def test_a_family_outside_reaches_the_command_line(folder):
    (folder / "mine.py").write_text(OTHERS["families"])
    code = "import search_spaces; print(search_spaces.load('my-space').name, search_spaces.family('mine').__file__)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.split() == ["my-space", str(folder / "mine.py")]


def test_a_name_that_is_taken_is_refused(folder, tmp_path, monkeypatch):
    path = write_evaluator(folder, "short")
    with pytest.raises(
        InputError, match=rf"{path}: the evaluator 'short' is there already, nas\.evaluation\.evaluators"
    ):
        evaluators.names()
    path.unlink()
    first = write_evaluator(folder)
    (folder / "more").mkdir()
    second = write_evaluator(folder / "more")
    with pytest.raises(InputError, match=rf"{second}: .*already, {first}|{first}: .*already, {second}"):
        evaluators.names()
    second.unlink()
    monkeypatch.setenv("NAS_PLUGINS", f"{folder}:{folder}")  # the same file twice is one
    assert "constant" in evaluators.names()


def test_a_space_that_another_family_has_is_refused(folder):
    (folder / "mine.py").write_text("from search_spaces.efficientformer import SPACE\n")
    with pytest.raises(InputError, match=r"another family has a space 'efficientformer'"):
        search_spaces.spaces()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EVALUATOR = 1 / 0\n", r":1: cannot be loaded as evaluator: ZeroDivisionError: division by zero"),
        ("import nothing_there\nEVALUATOR = 1\n", r":1: cannot be loaded as evaluator: ModuleNotFoundError: No mod"),
        ("\nEVALUATOR = (\n", r":2: '\(' was never closed"),
        ("HELPER = 1\n", r": ends in none of BACKEND, .*, STEP; helpers begin with _"),
    ],
)
def test_an_error_in_a_file_outside_names_the_file(folder, text, said):
    (folder / "mine.py").write_text(text)
    with pytest.raises(InputError, match=f"{folder / 'mine.py'}{said}"):
        evaluators.load_evaluator("mine")


def test_a_folder_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setenv("NAS_PLUGINS", str(folder / "nothing"))
    with pytest.raises(InputError, match=r"NAS_PLUGINS: there is no folder .*nothing"):
        evaluators.names()


def test_an_installed_package_offers_its_files_by_entry_points(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NAS_PLUGINS")
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write_evaluator(package, "theirs")
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nas.evaluators]\ntheirs = their_package.theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entry_points.cache_clear()
    try:
        assert [point.name for point in importlib.metadata.entry_points(group="nas.evaluators")] == ["theirs"]
        assert evaluators.load_evaluator("theirs").score(None, None, arch=None, prepared={}).value == 0.5
    finally:
        monkeypatch.undo()
        plugins._entry_points.cache_clear()


def test_folders_of_families_alone_still_work(folder, monkeypatch):
    monkeypatch.delenv("NAS_PLUGINS")
    monkeypatch.setenv("NAS_SPACES", str(folder))
    (folder / "mine.py").write_text(OTHERS["families"])
    assert search_spaces.load("my-space").sample
    (folder / "mine.py").write_text("")
    search_spaces.family.cache_clear()
    sys.modules.pop(f"{plugins.OUTSIDE}.families.mine", None)
    with pytest.raises(InputError, match=rf"{folder / 'mine.py'}: is no family: it ends in no SPACE"):
        search_spaces.spaces()
