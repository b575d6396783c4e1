"""Studies in a real PostgreSQL: one owner, few commits, and a server that is restarted in the middle of a search."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from nas.core.errors import RunError
from nas.search import owner
from nas.search.study import close_study
from nas.search.trials import trials_frame
from tests.search.fakes import FakeScorer, HereWorkers, ToyEstimator, ToySpace, make_engine, make_study, without_times

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))
pytestmark = [
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL server here; Debian's package is postgresql"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that a restart has broken
]
pytest.importorskip("psycopg")

SPACE = ToySpace()


class Server:
    """A server of its own, on a socket in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql+psycopg://postgres@/postgres?host={folder}"

    def run(self, program: str, *words: str) -> None:
        user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
        subprocess.run([BIN / program, *words], check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **user)

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """As at once as a server can be stopped: connections are cut."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server():
    folder = Path(tempfile.mkdtemp(prefix="nas-pg-"))  # a socket's path is short, and root's folders are closed
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made = Server(folder)
    made.run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.fixture
def url(server):
    """An empty database."""
    from sqlalchemy import create_engine, text

    name = f"t{time.monotonic_ns()}"
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.url.replace("/postgres?", f"/{name}?")


def frame_of(storage, scorer, trials=12, sampler="tpe"):
    study = make_study(storage, SPACE, sampler)
    try:
        make_engine(study, SPACE, ToyEstimator(), HereWorkers(scorer), trials).run()
        return without_times(trials_frame(study, "t"))
    finally:
        close_study(study)


def test_a_search_in_postgresql_is_that_in_memory_and_goes_on(url):
    expected = frame_of(InMemoryStorage(), FakeScorer())
    part = frame_of(url, FakeScorer(), trials=5)
    assert part == expected[: len(part)]
    assert frame_of(url, FakeScorer()) == expected


def test_a_server_that_is_restarted_in_the_middle_changes_nothing(server, url, monkeypatch):
    monkeypatch.setattr(owner, "PAUSE_S", 0.01)
    scored = []

    def scorer(arch, seed, on_epoch):
        scored.append(arch)
        if len(scored) in (3, 7):
            server.stop()
            server.start()
        return FakeScorer()(arch, seed)

    assert frame_of(url, scorer) == frame_of(InMemoryStorage(), FakeScorer())
    assert len(scored) == len(set(scored))


def test_a_server_that_stays_away_ends_the_search_and_the_same_command_continues(server, url, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE_S", 0.0)

    def scorer(arch, seed, on_epoch):
        server.stop()
        return FakeScorer()(arch, seed)

    try:
        with pytest.raises(RunError, match=r"has been away for 0 minutes .* continues when it is back"):
            frame_of(url, scorer)
    finally:
        server.start()
    assert frame_of(url, FakeScorer()) == frame_of(InMemoryStorage(), FakeScorer())


def test_a_second_owner_is_refused_and_told_of_the_first(url):
    first = make_study(url, SPACE)
    with pytest.raises(
        RunError, match=f"'test' in .* is in use by nas process {os.getpid()} on {os.uname().nodename[:30]}"
    ):
        make_study(url, SPACE)
    close_study(first)
    close_study(make_study(url, SPACE))


def test_a_connection_of_our_own_that_the_server_takes_for_alive_is_waited_for(server, url, monkeypatch):
    monkeypatch.setattr(owner, "PAUSE_S", 0.01)
    study = make_study(url, SPACE)
    mine = study._storage._store.owner
    old, waits = mine._connection, []
    mine._connection = None  # as if it were lost, while the server still holds its lock

    def pause(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            old.close()

    monkeypatch.setattr(owner.time, "sleep", pause)
    study.set_user_attr("mine", 1)
    assert len(waits) == 2
    assert study.user_attrs == {"mine": 1}
    close_study(study)


def test_who_lost_the_study_while_the_server_was_away_writes_no_more(server, url, monkeypatch):
    monkeypatch.setattr(owner, "PAUSE_S", 0.01)
    first = make_study(url, SPACE)
    server.stop()
    server.start()
    second = make_study(url, SPACE)
    with pytest.raises(RunError, match="is in use by nas process"):
        first.set_user_attr("mine", 1)
    assert "mine" not in second.user_attrs
    close_study(second)
    close_study(first)


def test_a_killed_coordinator_is_replaced_by_one_with_another_folder(url, tmp_path):
    calls = tmp_path / "calls"
    settings = {"storage": url, "trials": 8, "scorer": {"seconds": 0.2, "calls": str(calls)}}
    for number in range(2):
        command = [
            sys.executable,
            "-m",
            "tests.search.fakes",
            json.dumps({"run_dir": str(tmp_path / str(number)), **settings}),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if number == 0:
            while not calls.is_file() or len(calls.read_text().splitlines()) < 3:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert "done" in process.communicate()[0]
    study = make_study(url, SPACE)
    evaluated = [row for row in trials_frame(study, "t").itertuples() if row.state == "evaluated"]
    close_study(study)
    assert len(evaluated) == 8
    assert len(calls.read_text().splitlines()) <= 9  # the one that was being evaluated, again


def test_a_candidate_takes_three_commits_and_one_that_is_never_evaluated_takes_one(url):
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    wrote, commits = [], []

    def execute(connection, cursor, statement, *rest):
        wrote.extend(statement.split()[:1] if statement.startswith(("INSERT", "UPDATE")) else [])

    def commit(connection):
        commits.extend(wrote[:1])
        wrote.clear()

    study = make_study(url, SPACE)
    engine = make_engine(study, SPACE, ToyEstimator(), HereWorkers(FakeScorer()), 10)
    event.listen(Engine, "before_cursor_execute", execute)
    event.listen(Engine, "commit", commit)
    try:
        engine.run()
    finally:
        event.remove(Engine, "before_cursor_execute", execute)
        event.remove(Engine, "commit", commit)
    states = trials_frame(study, "t")["state"].tolist()
    close_study(study)
    assert states.count("evaluated") == 10 < len(states)
    assert len(commits) == 3 * 10 + len(states) - 10
