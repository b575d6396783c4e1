"""Files of weights and checkpoints: what they say of other files, and full disks."""

from __future__ import annotations

import pickle
import resource
import signal

import pytest
import torch

from nas.core.errors import InputError, RunError
from nas.evaluation.checkpoint import read_checkpoint, read_weights, write_checkpoint, write_weights
from nas.networks.building import load_weights


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "it holds a Tensor"),
        ({}, "it holds nothing"),
        ({"epoch": 3, "lr": 0.1}, "it holds 'epoch', 'lr'"),
        (
            {"epoch": 3, "state_dict": {"w": torch.zeros(2)}},
            r"it holds one under 'state_dict' beside .*\['state_dict'\], OTHER\)",
        ),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds_instead(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w\.pt: expected a state dict .*; {said}"):
        read_weights(tmp_path / "w.pt")


def test_a_checkpoint_is_told_from_weights(tmp_path):
    write_checkpoint(tmp_path / "checkpoint.pt", {}, {"model": {"w": torch.zeros(2)}})
    with pytest.raises(InputError, match=r"the checkpoint of a training .* weights\.pt lies beside it"):
        read_weights(tmp_path / "checkpoint.pt")


def test_of_weights_that_do_not_fit_the_first_three_of_each_kind_are_named():
    network = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(5)))
    state = dict(network.state_dict())
    for name in ("0.weight", "1.weight", "2.weight", "3.weight"):
        del state[name]
    state |= {"head": torch.zeros(1), "4.weight": torch.zeros(3, 2)}
    with pytest.raises(InputError) as caught:
        load_weights(network, state, "w.pt")
    assert str(caught.value).splitlines()[1:] == [
        "  lacks 0.weight",
        "  lacks 1.weight",
        "  lacks 2.weight",
        "  and 1 more of that kind",
        "  has head, which the network does not",
        "  4.weight is (3, 2), the network's is (2, 2)",
    ]


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
