"""`nas slim`, on digits and a table of made-up times."""

import json

import pytest

from nas.evaluation.checkpoint import write_weights
from nas.evaluation.data import load_data
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import train
from nas.networks.building import build
from search_spaces import efficientformer as ef
from tests.commands.test_commands import nas  # noqa: F401 - a fixture
from tests.search.test_slimming import LARGE, LIMIT
from tests.small import fake_table


@pytest.fixture
def asked(tmp_path):
    """The arguments that every call has."""
    network = build(LARGE)
    train(network, load_data("digits", LARGE.input_shape, limit=LIMIT), Recipe(epochs=2, batch_size=32))
    write_weights(tmp_path / "large.pt", network)
    (tmp_path / "large.json").write_text(LARGE.to_json())
    table = fake_table(ef.SMALL, networks=40, error=0.01).write(tmp_path / "fake.csv")
    named = ("slim", tmp_path / "large.json", "--weights", tmp_path / "large.pt", "--table", table, "--data", "digits")
    return (*named, "--limit", LIMIT, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")


def test_from_a_trained_network_to_a_budget_with_two_workers(nas, asked, tmp_path):  # noqa: F811
    call = (*asked, "--budget", "latency_ms<=p30", "--budget", "params<=p30", "--workers", 2)
    code, out, err = nas(*call)
    assert code == 0, err
    first, second = (err.index(text) for text in (" predicted by ", "step 1: "))
    assert first < second
    for text in ("saves", "costs", "budget latency_ms<=p30: latency_ms<="):
        assert text in err
    assert "slimmed" in out
    assert "test accuracy" in out
    code, out, _ = nas(*call, "--json")
    found = json.loads(out)
    assert code == 0
    last = found["result"]
    assert all(used <= limit["limit"] for used, limit in zip(last["used"], found["limits"], strict=True))
    assert last["latency_ms"] < found["original"]["latency_ms"]
    assert {"arch.json", "weights.pt", "best.onnx", "slimming.csv", "slimming.jsonl"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_a_budget_that_the_original_keeps_ends_at_once_and_well(nas, asked, tmp_path):  # noqa: F811
    code, out, err = nas(*asked, "--budget", "latency_ms<=1000")
    assert code == 0
    assert "large keeps latency_ms<=1000 already: nothing to slim" in err
    assert "nothing to slim" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "latency_ms<=0.0001"), "is below the smallest architecture"),
        (("--budget", "latency_ms<=p60", "--until", "smalest"), "did you mean 'smallest'"),
        (("--budget", "latency_ms<=p60", "--exponent", "params"), "--exponent: expected METRIC=VALUE"),
    ],
)
def test_bad_input_is_refused(nas, asked, arguments, message):  # noqa: F811
    code, _, err = nas(*asked, *arguments)
    assert code == 2
    assert message in err
