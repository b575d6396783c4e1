"""Training runs in folders of their own."""

import pytest

from nas.core.errors import InputError
from nas.evaluation.runs import train_arch
from nas.networks.building import with_classes
from search_spaces.dynamicvit import SMALL_DEIT, make


def test_a_folder_of_another_architecture_is_refused_before_anything_is_written(tmp_path):
    there, asked = (make(SMALL_DEIT, 32, 3, (1,), (keep,), side=32, classes=10) for keep in (50, 70))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "arch.json").write_text(there.to_json())
    with pytest.raises(InputError, match=rf"run: .* {there.id}, .* {asked.id}; choose another folder \(--out\)"):
        train_arch(with_classes(asked, 1000), "digits", folder, {"epochs": 1}, limit=40)
    assert [path.name for path in folder.iterdir()] == ["arch.json"]
    assert (folder / "arch.json").read_text() == there.to_json()
