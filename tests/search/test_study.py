"""Storage: the parameters of a study, journals that a kill left torn, other storages, the lock."""

import os
import subprocess
import sys

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from nas.core.errors import InputError, RunError
from nas.core.files import lock
from nas.core.ops import Choice
from nas.search.storage import mend_journal
from nas.search.study import distributions_of, open_study, remembered
from tests.search.fakes import ToySpace, make_study


def test_evenly_spaced_numbers_become_numbers_and_the_rest_categories():
    choices = {"a": (16, 32, 48), "b": (1, 2), "c": (16, 32, 96), "d": ("x", "y"), "e": (3, 2, 1), "f": (False, True)}
    found = distributions_of({name: Choice(values) for name, values in choices.items()})
    assert found == {
        "a": IntDistribution(16, 48, step=16),
        "b": IntDistribution(1, 2),
        "c": CategoricalDistribution((16, 32, 96)),
        "d": CategoricalDistribution(("x", "y")),
        "e": CategoricalDistribution((3, 2, 1)),
        "f": CategoricalDistribution((False, True)),
    }


def journal_of(path, trials=3):
    study = make_study(path, ToySpace())
    for _ in range(trials):
        study.tell(study.ask(), 1.0)
    return path.read_bytes()


def test_a_journal_torn_anywhere_in_its_last_line_is_read_up_to_the_line_before(tmp_path):
    path = tmp_path / "study.journal"
    content = journal_of(path)
    begin = content.rindex(b"\n", 0, -1) + 1
    for length in (begin, begin + 1, len(content) - 5, len(content) - 1):
        path.write_bytes(content[:length])
        assert mend_journal(path) == length - begin
        assert path.read_bytes() == content[:begin]
        assert len(make_study(path, ToySpace()).trials) == 2


def test_a_last_line_of_garbage_is_cut_off(tmp_path):
    path = tmp_path / "study.journal"
    content = journal_of(path)
    path.write_bytes(content + b"\0\0\0\n")
    assert mend_journal(path) == 4
    assert path.read_bytes() == content


def test_a_whole_journal_is_left_alone(tmp_path):
    path = tmp_path / "study.journal"
    content = journal_of(path)
    assert mend_journal(path) == 0
    assert path.read_bytes() == content
    assert mend_journal(tmp_path / "none") == 0


def test_a_journal_damaged_in_the_middle_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "study.journal"
    content = journal_of(path)
    path.write_bytes(content[:100] + b"!" + content[101:])
    damaged = path.read_bytes()
    with pytest.raises(RunError, match=r"study\.journal is damaged"):
        make_study(path, ToySpace())
    assert path.read_bytes() == damaged


def test_the_lock_of_a_dead_writer_is_removed(tmp_path):
    path = tmp_path / "study.journal"
    journal_of(path)
    os.symlink(path, f"{path}.lock")
    study = make_study(path, ToySpace())
    study.tell(study.ask(), 1.0)  # would wait for half a minute
    assert len(study.trials) == 4


def test_a_study_is_kept_in_any_storage_that_optuna_knows(tmp_path):
    storage = f"sqlite:///{tmp_path}/x.db"
    study = make_study(storage, ToySpace())
    study.tell(study.ask(), 1.0)
    assert len(make_study(storage, ToySpace()).trials) == 1


@pytest.mark.parametrize("storage", ["nonsense://x", "redis://localhost"])
def test_a_storage_that_optuna_cannot_use_is_named(storage):
    with pytest.raises(InputError, match=storage.split(":")[0]):
        make_study(storage, ToySpace())


def test_a_study_keeps_its_number_of_objectives(tmp_path):
    make_study(tmp_path / "j", ToySpace(), objectives=2)
    with pytest.raises(RunError, match="2 objectives"):
        make_study(tmp_path / "j", ToySpace())


def test_what_is_remembered_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return [1.5, 2]

    for _ in range(2):
        study = open_study("test", tmp_path / "j", make_study(tmp_path / "k", ToySpace()).sampler, 1)
        assert remembered(study, "key", make) == [1.5, 2]
    assert made == [1]


def test_the_second_process_on_a_run_is_refused_naming_the_first(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from nas.core.errors import RunError; from nas.core.files import lock\n"
        "try:\n    lock(Path(sys.argv[1]) / 'lock', sys.argv[1]).__enter__()\n"
        "except RunError as error:\n    print(error)\n"
        "else:\n    print('free')"
    )

    def other():
        return subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True)

    with lock(tmp_path / "lock", tmp_path):
        assert f"{tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}." in other()
    assert other().strip() == "free"


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://user:s3cret@host/db",  # no such driver
        "postgresql://user:s3cret@[host/db",  # no URL
        "mysql+pymysql://user:s3cret@127.0.0.1:1/db?password=s3cret",
        "sqlite:////nowhere/at/all/s3cret?password=s3cret",  # the driver echoes it
    ],
)
def test_an_error_of_a_storage_does_not_tell_its_password(url, tmp_path):
    sampler = make_study(tmp_path / "k", ToySpace()).sampler
    with pytest.raises(InputError, match="storage: Optuna cannot use") as caught:
        open_study("test", url, sampler, 1)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__  # a driver's error says the URL


def test_a_storage_whose_password_was_hidden_is_asked_for_again(tmp_path):
    sampler = make_study(tmp_path / "k", ToySpace()).sampler
    with pytest.raises(InputError, match=r"the password of postgresql://u:\*\*\*@h/db is not kept; give the whole URL"):
        open_study("test", "postgresql://u:***@h/db", sampler, 1)
