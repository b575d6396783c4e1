"""Files of weights and checkpoints: what they say of other files, and full disks."""

from __future__ import annotations

import pickle
import resource
import signal

import pytest
import torch

from nas.core.errors import InputError, RunError
from nas.evaluation.checkpoint import read_checkpoint, read_weights, write_checkpoint, write_weights


def test_weights_come_back_as_they_were(tmp_path):
    model = torch.nn.Linear(3, 2)
    write_weights(tmp_path / "w.pt", model)
    state = read_weights(tmp_path / "w.pt")
    assert state.keys() == {"weight", "bias"}
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def whole_model(path):
    torch.save(torch.nn.Linear(2, 2), path)


def cut_off(path):
    torch.save({"a": torch.zeros(300)}, path)
    path.write_bytes(path.read_bytes()[:-200])


KINDS = {
    "it holds objects of Python, not only tensors": whole_model,
    "it is damaged": cut_off,
    "Is a directory": lambda path: path.mkdir(),
    "No such file": lambda path: None,
}
OTHERS = [
    lambda path: path.write_text("hello"),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(pickle.dumps({"a": print})),
    lambda path: path.write_bytes(bytes(range(256))),
]


@pytest.mark.parametrize(
    ("make", "said"),
    [(make, said) for said, make in KINDS.items()] + [(make, "was not written by torch.save") for make in OTHERS],
)
@pytest.mark.parametrize("read", [read_weights, lambda path: read_checkpoint(path, {})])
def test_a_file_of_another_kind_is_named_without_advice_to_execute_it(tmp_path, make, said, read):
    path = tmp_path / "w.pt"
    make(path)
    with pytest.raises(InputError, match=rf"w\.pt: .*{said}") as caught:
        read(path)
    assert not any(word in str(caught.value) for word in ("weights_only", "safe_globals", "allowlist", "\n"))


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"data": {}}, {"epoch": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"checkpoint\.pt: cannot be written \(File too large\); make room"):
            write_checkpoint(path, {"data": {}}, {"epoch": 2, "model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert read_checkpoint(path, {"data": {}})["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
