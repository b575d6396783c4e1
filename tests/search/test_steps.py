"""The steps of a run: their order, when one is done again; nothing changes under it, no set is of two winners."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import search_spaces
from nas.core.arch import Arch, calls_of
from nas.core.errors import BudgetError, InputError, NasError, RunError
from nas.evaluation.runs import train_arch
from nas.report.front import read_trials
from nas.report.page import write_report
from nas.search import resolved, run
from nas.search.request import Request
from nas.search.steps import Step, in_order, load_steps
from nas.search.steps.export import SET
from nas.tables.table import Entry, Table
from tests.search import test_run
from tests.search.fakes import fake_table
from tests.search.test_run import carry_out, evaluations, request

SPACE = search_spaces.load("efficientformer-32")
table_path, world = test_run.table_path, test_run.world


def content_of(folder):
    """Every file of a run but the locks, the report and temporary ones, by its hash."""
    left_out = ("lock", "study.journal.owner", "report.html")
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


class Profiler:
    """Stands for measuring: the table as it is, or the rows asked for; peaks differ each time."""

    def __init__(self, table):
        self.table, self.calls = table, 0

    def __call__(self, space, *, path, rows=(), **settings):
        self.calls += 1
        table = Table.read(path) if path.is_file() else self.table
        networks = [replace(item, peak_bytes=10**6 * self.calls) for item in table.networks]
        entries = [*table.entries, *(Entry(row, 1.0, 0.0, 1) for row in rows or ())]
        return Table.read(Table(table.header, entries, networks).write(path))


@pytest.fixture
def profiler(monkeypatch, table_path):
    made = Profiler(Table.read(table_path))
    monkeypatch.setattr(resolved.profiler, "profile", made)
    return made


def own(tmp_path, table_path, **changes):
    """A request without a table: this machine is profiled."""
    return request(tmp_path, table_path, table=None, space=SPACE.name, runtime="fake", **changes)


def test_a_refused_command_measures_nothing_and_leaves_the_run_as_it_was(tmp_path, table_path, world, profiler):
    folder, _ = carry_out(own(tmp_path, table_path), world)
    before = content_of(folder)
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        carry_out(own(tmp_path, table_path, seed=1), world)
    with pytest.raises(RunError, match="budgets: "):
        carry_out(own(tmp_path, table_path, budgets=[]), world)
    assert profiler.calls == 1
    assert content_of(folder) == before


def test_a_run_that_goes_on_measures_no_rows_or_peaks_again(tmp_path, table_path, world, profiler):
    folder, first = carry_out(own(tmp_path, table_path), world)
    table = (folder / "table.csv").read_bytes()
    _, again = carry_out(own(tmp_path, table_path), world)
    _, more = carry_out(own(tmp_path, table_path, trials=6), world)
    assert profiler.calls == 1
    assert (folder / "table.csv").read_bytes() == table
    assert first["provenance"]["table_hash"] == again["provenance"]["table_hash"] == more["provenance"]["table_hash"]


def lacking(table_path, path, factor):
    """A table like another, but slower, that lacks two rows."""
    table = Table.read(table_path)
    entries = [replace(entry, us=factor * entry.us) for entry in table.entries]
    used = {call.row for item in table.networks[:3] for call in calls_of(item.arch)}
    spare = [entry for entry in entries if entry.row not in used][:2]
    networks = [replace(item, us=factor * item.us) for item in table.networks[:3]]
    entries = [entry for entry in entries if entry not in spare]
    return Table(table.header, entries, networks).write(path)


def test_rows_that_a_table_lacks_are_measured_once_and_never_for_a_refused_request(
    tmp_path, table_path, world, profiler
):
    path = lacking(table_path, tmp_path / "a.csv", 1)
    folder, _ = carry_out(request(tmp_path, path, allow_uncalibrated=True), world)
    before = content_of(folder)
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        carry_out(request(tmp_path, path, seed=1, allow_uncalibrated=True), world)
    assert content_of(folder) == before
    carry_out(request(tmp_path, path, allow_uncalibrated=True), world)
    assert "is finished" in "".join(world.lines)
    assert profiler.calls == 1


def test_an_attempt_that_ended_early_leaves_no_table_for_another(tmp_path, table_path, world, profiler):
    first, second = (lacking(table_path, tmp_path / f"{name}.csv", factor) for name, factor in (("a", 1), ("b", 3)))
    with pytest.raises(BudgetError):
        carry_out(request(tmp_path, first, budgets=["latency_ms<=0.0001"], allow_uncalibrated=True), world)
    _, result = carry_out(request(tmp_path, second, allow_uncalibrated=True), world)
    used = Table.read(Path(result["provenance"]["table"]))
    times = {entry.row: entry.us for entry in used.entries}
    for entry in Table.read(second).entries:
        assert times[entry.row] == entry.us
    assert Table.read(second).entries[0].us == pytest.approx(3 * Table.read(first).entries[0].us)


def test_the_tables_that_budgets_name_are_fixed(tmp_path, table_path, world):
    other = fake_table(SPACE, device="a-phone", cpu="a phone's").write(tmp_path / "phone.csv")
    asked = request(tmp_path, table_path, budgets=[f"latency_ms[{other}]<=p60"])
    folder, _ = carry_out(asked, world)
    table, before = Table.read(other), content_of(folder)
    Table(table.header, table.entries, table.networks[1:]).write(other)
    with pytest.raises(RunError, match=rf"begun with other content: table .*phone\.csv \({table.hash} there"):
        carry_out(request(tmp_path, table_path, budgets=asked.budgets, trials=9), world)
    assert content_of(folder) == before


def test_a_data_set_of_other_images_is_refused(tmp_path, table_path, world, monkeypatch):
    folder, _ = carry_out(request(tmp_path, table_path), world)
    before, load = content_of(folder), resolved.load_data

    def others(*args, **settings):
        return replace(load(*args, **settings), fingerprint="others")  # as many of them, and other ones

    monkeypatch.setattr(resolved, "load_data", others)
    with pytest.raises(RunError, match=r"begun with other content: digits: fingerprint \("):
        carry_out(request(tmp_path, table_path, trials=9), world)
    assert content_of(folder) == before


def test_other_versions_are_said_aloud_and_stay_in_the_result(tmp_path, table_path, world, monkeypatch):
    _, result = carry_out(request(tmp_path, table_path, trials=3), world)
    now = result["provenance"]["versions"]
    assert result["provenance"]["version_changes"] == []
    assert result["provenance"]["runtime"] == "fake 1"  # of the table
    assert result["provenance"]["runtime_here"] == f"fake {resolved.load_backend('fake').version()}"
    monkeypatch.setattr(resolved.Resolved, "versions", lambda self: {"nas": now["nas"], "torch": "9.0", "fake": "7"})
    carry_out(request(tmp_path, table_path, trials=3), world)  # nothing is left to do
    assert "OTHER VERSIONS" not in "".join(world.lines)
    folder, result = carry_out(request(tmp_path, table_path, trials=5), world)
    (line,) = (line for line in world.lines if "OTHER VERSIONS" in line)
    (change,) = result["provenance"]["version_changes"]
    assert change in line
    assert f"torch {now['torch']} -> 9.0 from trial " in change
    assert change in (folder / "report.html").read_text().replace("&gt;", ">")


def test_a_training_is_refused_in_the_folder_of_a_search_and_a_search_in_that_of_a_training(
    tmp_path, table_path, world
):
    folder, _ = carry_out(request(tmp_path, table_path), world)
    before = content_of(folder)
    with pytest.raises(InputError, match="there is the run of a search"):
        train_arch(Arch.from_json((folder / "best.json").read_text()), "digits", folder, {"epochs": 1})
    with pytest.raises(InputError, match=f"there is the run of a search, {folder},"):  # which deletes next/ as its own
        train_arch(Arch.from_json((folder / "best.json").read_text()), "digits", folder / "next" / "a", {"epochs": 1})
    assert content_of(folder) == before
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "weights.pt").touch()
    with pytest.raises(RunError, match=r"holds weights\.pt, but no request\.yaml"):
        carry_out(request(tmp_path, table_path, out=str(tmp_path / "t")), world)


@pytest.mark.parametrize("stored", [False, True])
def test_a_run_whose_study_is_gone_is_not_written_over(tmp_path, table_path, world, stored):
    database = tmp_path / "study.db"
    storage = f"sqlite:///{database}" if stored else None
    folder, _ = carry_out(request(tmp_path, table_path, storage=storage), world)
    (database if stored else folder / "study.journal").unlink()
    before, done = content_of(folder), evaluations(tmp_path)
    with pytest.raises(RunError, match=r"holds steps\.json, trials\.csv, result\.json, but .* is gone or empty"):
        carry_out(request(tmp_path, table_path, storage=storage), world)
    assert content_of(folder) == before
    assert evaluations(tmp_path) == done


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The folder of a run that version 0.1 finished, without its weights and files that can be made from them."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(Path(__file__).parents[1] / "data" / "run-0.1", "old"))


def test_a_run_of_the_version_before_opens_in_the_report_and_is_finished(old_run, world):
    write_report(old_run)
    assert json.loads((old_run / "result.json").read_text())["winner"]["arch"] in (old_run / "report.html").read_text()
    before = content_of(old_run)
    for _ in range(2):
        carry_out(Request.read(old_run / "request.yaml"), world)
        assert "is finished" in "".join(world.lines)
        assert content_of(old_run) == before


def test_a_run_of_the_version_before_goes_on(old_run, world):
    before = read_trials(old_run / "trials.csv")
    _, result = carry_out(Request.read(old_run / "request.yaml", trials=5), world)
    after = read_trials(old_run / "trials.csv")
    assert result["counts"]["evaluated"] == 5
    assert after[: len(before)][list(before)].equals(before)
    assert result["budgets"][0]["limit"] == pytest.approx(0.478002, rel=1e-5)
    assert "unknown versions before trial" in result["provenance"]["version_changes"][0]


def test_a_run_keeps_its_sampler_where_the_request_names_none(old_run, world):
    said = Request.read(old_run / "request.yaml").model_dump()
    del said["sampler"]
    assert Request(**said).sampler != "tpe"
    _, result = carry_out(Request(**said | {"trials": 4}), world)
    assert result["counts"]["evaluated"] == 4
    assert Request.read(old_run / "request.yaml").sampler == "tpe"
    with pytest.raises(RunError, match="sampler: 'tpe' there, 'guided' now"):
        carry_out(Request(**said | {"trials": 4, "sampler": "guided"}), world)


def test_a_run_of_the_version_before_is_refused_with_a_reason(old_run, world):
    table = Table.read(old_run / "table.csv")
    Table(table.header, table.entries, table.networks[1:]).write(old_run / "table.csv")
    with pytest.raises(RunError, match="is not the one this run was begun with"):
        carry_out(Request.read(old_run / "request.yaml", trials=5), world)


def stop_at(monkeypatch, wanted, name, number=0):
    """End the process, as it were, at a call of `name` of `Path` whose file belongs to a winner's set."""
    count, real = 0, getattr(Path, name)

    def die(self, *args, **settings):
        nonlocal count
        if self.name in SET and self.parent.name == wanted:
            if count == number:
                raise KeyboardInterrupt
            count += 1
        return real(self, *args, **settings)

    monkeypatch.setattr(Path, name, die)


@pytest.mark.parametrize(
    ("parent", "name", "number"), [("r", "unlink", n) for n in range(5)] + [("next", "replace", n) for n in range(5)]
)
def test_the_winners_files_are_those_of_one_winner_wherever_a_process_dies(
    tmp_path, table_path, world, monkeypatch, parent, name, number
):
    folder, first = carry_out(request(tmp_path, table_path, trials=2, repeats=0), world)
    old = content_of(folder)
    more = request(tmp_path, table_path, trials=12, repeats=0)
    with monkeypatch.context() as patch:
        stop_at(patch, parent, name, number)
        with pytest.raises(KeyboardInterrupt):
            carry_out(more, world)
    between = {name: hash for name, hash in content_of(folder).items() if name in SET}
    _, second = carry_out(more, world)
    assert first["winner"]["arch"] != second["winner"]["arch"], "the test needs two winners"
    new = content_of(folder)
    shared = [name for name in SET if old[name] == new[name]]
    assert shared in ([], ["training.csv"])  # made up here
    former = all(between[name] == old[name] for name in between)
    later = all(between[name] == new[name] for name in between if name != "result.json")  # which tells the time
    assert former or later
    assert "result.json" not in between or set(between) == set(SET)
    assert (
        json.loads((folder / "best.json").read_text())["stages"]
        == json.loads(Arch.from_json((folder / "best.json").read_text()).to_json())["stages"]
    )
    assert Arch.from_json((folder / "best.json").read_text()).id == second["winner"]["arch"]
    assert not (folder / "next").exists()


def test_more_trials_leave_the_old_winner_whole_until_the_new_one_is_trained(tmp_path, table_path, world, monkeypatch):
    folder, first = carry_out(request(tmp_path, table_path, trials=2, repeats=0), world)
    old = {name: hash for name, hash in content_of(folder).items() if name in SET}

    def die(*args, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nas.evaluation.runs.train", die)
        with pytest.raises(KeyboardInterrupt):
            carry_out(request(tmp_path, table_path, trials=12, repeats=0), world)
    now = content_of(folder)
    assert {name: now[name] for name in SET} == old
    assert json.loads((folder / "result.json").read_text())["winner"] == first["winner"]


def test_the_same_winner_is_not_trained_again(tmp_path, table_path, world, monkeypatch):
    trained, real = [], test_run.untrained

    def train(*args, **settings):
        trained.append(1)
        return real(*args, **settings)

    monkeypatch.setattr("nas.evaluation.runs.train", train)
    folder, first = carry_out(request(tmp_path, table_path, trials=12, repeats=0), world)
    weights = (folder / "best.pt").read_bytes()
    _, second = carry_out(request(tmp_path, table_path, trials=12, repeats=1, finalists=1), world)
    assert second["winner"]["arch"] == first["winner"]["arch"]
    assert len(second["winner"]["val_losses"]) == 2
    assert (folder / "best.pt").read_bytes() == weights
    assert len(trained) == 1
    (folder / "best.pt").write_bytes(b"")  # damaged: made again
    carry_out(request(tmp_path, table_path, trials=12, repeats=1, finalists=1), world)
    assert len(trained) == 2
    assert len((folder / "best.pt").read_bytes()) == len(weights)


def test_a_damaged_result_is_written_again(tmp_path, table_path, world):
    folder, result = carry_out(request(tmp_path, table_path), world)
    begun = evaluations(tmp_path)
    (folder / "result.json").write_text("{}")
    _, again = carry_out(request(tmp_path, table_path), world)
    assert {**again, "provenance": 0} == {**result, "provenance": 0}
    assert evaluations(tmp_path) == begun


class Noted(Step):
    """A step that notes who won; made for tests."""

    def __init__(self, name, after):
        self.name, self.after = name, after
        self.done = []

    def inputs(self, run):
        return {"winner": run.output("repeat")["winner"]}

    def carry_out(self, run):
        self.done.append(run.output("repeat")["winner"])
        return {"seen": self.done[-1]}


def test_a_step_of_ones_own_is_done_once_and_again_when_what_it_reads_changed(tmp_path, table_path, world, monkeypatch):
    noted = Noted("noted", "repeat")
    monkeypatch.setattr(run, "load_steps", lambda: in_order([noted, *load_steps()]))
    for trials in (2, 2, 12, 12):
        folder, result = carry_out(request(tmp_path, table_path, trials=trials, repeats=0), world)
    assert len(noted.done) == 2
    assert noted.done[1] == result["winner"]["arch"] != noted.done[0]
    assert json.loads((folder / "steps.json").read_text())["noted"]["output"] == {"seen": noted.done[1]}


def test_a_file_outside_the_package_is_a_step(tmp_path, monkeypatch):
    (tmp_path / "quantize.py").write_text(
        "from nas.search.steps import Step\n\n\nclass Quantize(Step):\n    name, after = 'quantize', 'train'\n\n"
        "    def inputs(self, run):\n        return {}\n\n    def carry_out(self, run):\n        return {}\n\n\n"
        "STEP = Quantize()\n"
    )
    monkeypatch.setenv("NAS_PLUGINS", str(tmp_path))
    names = [step.name for step in load_steps()]
    assert names[names.index("train") :] == ["train", "quantize", "export", "report"]


def test_steps_stand_in_the_order_that_they_ask_for():
    own = [step.name for step in load_steps()]
    assert own == ["profile", "prepare", "search", "measure", "repeat", "train", "export", "report"]
    names = [
        step.name for step in in_order([*load_steps(), Noted("a", "export"), Noted("z", "train"), Noted("b", "z")])
    ]
    assert names == ["profile", "prepare", "search", "measure", "repeat", "train", "z", "b", "export", "a", "report"]
    with pytest.raises(InputError, match="step a: unknown step to stand after 'trian', did you mean 'train'"):
        in_order([*load_steps(), Noted("a", "trian")])
    with pytest.raises(NasError, match="steps a, b stand after each other"):
        in_order([Noted("a", "b"), Noted("b", "a")])


def test_records_that_are_damaged_cost_no_work(tmp_path, table_path, world):
    folder, result = carry_out(request(tmp_path, table_path), world)
    begun, measured = evaluations(tmp_path), list(world.measured)
    (folder / "steps.json").write_text("{")
    _, again = carry_out(request(tmp_path, table_path), world)
    assert again["winner"]["arch"] == result["winner"]["arch"]
    assert (evaluations(tmp_path), world.measured) == (begun, measured)
