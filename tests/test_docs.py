"""The docs: generated tables are current, the site builds, commands that pages show exist, examples run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from nas.commands import app
from nas.commands._app import BUILT_LATE
from nas.search.request import Request

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NUMBER = r"\d+(?:\.\d+)?"


def load(name: str):
    """A script of the docs, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_tables_are_current():
    script = load("make_tables")
    hint = "run: python docs/make_tables.py"
    # in a process of its own: other tests bring families along
    ask = "import json, make_tables; print(json.dumps([make_tables.text(), make_tables.readme()]))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{DOCS}"}
    told = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    for file, written in zip((script.FILE, script.README), json.loads(told.stdout), strict=True):
        kept = file.read_text(encoding="utf-8")
        # digits may differ in the last place, as a fit does on another machine; counts and words may not
        assert re.sub(r"\d+\.\d+", "x", written) == re.sub(r"\d+\.\d+", "x", kept), hint
        numbers = [list(map(float, re.findall(NUMBER, text))) for text in (written, kept)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.11), hint


def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "furo", "myst_nb"):
        if find_spec(name) is None:
            pytest.skip(f"no {name} here: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", str(DOCS), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    fields = (tmp_path / "reference" / "request.html").read_text()
    assert [name for name in Request.model_fields if f">{name}<" not in fields] == []
    commands = (tmp_path / "reference" / "cli.html").read_text()
    assert [name for name in typer.main.get_command(app).commands if f"nas {name}" not in commands] == []
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {path.stem for path in (tmp_path / "notebooks").glob("*.html")}


def test_a_page_that_asks_for_a_part_which_is_not_there_does_not_build():
    with pytest.raises(KeyError, match="weather"):
        load("generated").filled("# Page\n\n<!-- generated: weather -->\n")


def shown_commands() -> list[tuple[str, list[str]]]:
    """Every `nas ...` in a shell block of a page, with the page's name."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if "nas" in words:
                    found.append((page.name, words[words.index("nas") + 1 :]))
    return found


def test_commands_that_pages_show_exist_with_their_options():
    group = typer.main.get_command(app)
    shown = shown_commands()
    assert len(shown) > 40
    unknown = []
    for page, (name, *words) in shown:
        command = BUILT_LATE[name]() if name in BUILT_LATE else group.commands.get(name)
        options = {option for param in command.params for option in param.opts} if command else set()
        given = {word for word in words if re.match(r"--?[a-z]", word)}
        unknown += [f"{page}: nas {name} {word}" for word in sorted(given - options)]
    assert unknown == []


def test_files_that_pages_link_to_exist():
    links = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    found = [(page, target) for page in PAGES for target in links.findall(page.read_text(encoding="utf-8"))]
    assert len(found) > 40
    assert [f"{page}: {target}" for page, target in found if not (page.parent / target).exists()] == []


def test_the_examples_are_found_and_searched(tmp_path):
    """The family, the data set and the score that pages show, in one search on the runtime that runs nothing."""
    flags = "--space wide --dataset stripes --runtime fake --trials 3 --workers 1 --finalists 1 --repeats 0"
    flags += " --final-epochs 1 --limit 200 --device cpu"
    evaluator = "{density: {power: 0.5}}"
    command = [sys.executable, "-m", "nas", "search", "--out", str(tmp_path / "run"), *flags.split()]
    environment = os.environ | {"NAS_PLUGINS": str(DOCS / "examples")}
    ran = subprocess.run([*command, "--evaluator", evaluator], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "density" in ran.stderr + ran.stdout
    archs = json.loads((tmp_path / "run" / "result.json").read_text())["feasible"]["archs"]
    assert archs == (3 * 2 * 6) * (3 * 3 * 6) == 1944  # widths, depths, kernels and expansions: as the page says
