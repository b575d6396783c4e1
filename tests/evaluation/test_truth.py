"""Files of networks whose accuracy is known."""

import json
import random

import numpy as np
import pytest

import search_spaces
from nas.core.errors import InputError
from nas.evaluation import truth
from nas.networks.building import cost_of


def archs(n):
    rng = random.Random(0)
    return [search_spaces.load("hybrid-32").sample(rng) for _ in range(n)]


def line(network, **changes):
    figures = {"val_loss": 0.5, "val_accuracy": 0.8, "test_loss": 0.6, "test_accuracy": 0.75, "seconds": 40.0}
    about = {"arch": json.loads(network.to_json()), "set": "band", "seed": 0, "recipe": "small", "images": 12000}
    return json.dumps(about | figures | changes) + "\n"


def test_trainings_of_a_network_stand_together(tmp_path):
    first, second = archs(2)
    file = tmp_path / "t.jsonl"
    file.write_text(
        line(first) + line(second, set="broad") + line(first, seed=1, test_accuracy=0.77) + line(second)[:-1]
    )
    found = truth.read(file)  # the last line is still being written
    assert [(each.arch, each.set, each.accuracies) for each in found.networks] == [
        (first, "band", (0.75, 0.77)),
        (second, "broad", (0.75,)),
    ]
    assert (found.recipe, found.images) == ("small", 12000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_accuracy": 75.0}, r"t.jsonl:2: test_accuracy: expected 0 to 1, got 75.0"),
        ({"test_accuracy": float("nan")}, r"t.jsonl:2: test_accuracy: expected 0 to 1, got nan"),
        ({"set": "bend"}, r"t.jsonl:2: set: expected broad or band"),
        ({"set": "broad"}, r"t.jsonl:2: set: expected broad or band, one for each network"),
        ({"images": 6000}, r"t.jsonl:2: trained as \('small', 6000\), the first as \('small', 12000\)"),
        ({"seed": 0}, r"t.jsonl:2: network [0-9a-f]{12} with seed 0 stands there twice"),
        ({"arch": {"family": "hybrid-32"}}, r"t.jsonl:2: arch.input: is missing"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, changes, message):
    (arch,) = archs(1)
    file = tmp_path / "t.jsonl"
    file.write_text(line(arch) + line(arch, **{"seed": 1} | changes))
    with pytest.raises(InputError, match=message):
        truth.read(file)


@pytest.mark.parametrize(("text", "message"), [("{\n", "not JSON"), ("{}\n", "arch is missing"), ("", "no network")])
def test_a_file_that_is_none_is_named(tmp_path, text, message):
    file = tmp_path / "t.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        truth.read(file)


def test_a_truth_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="unknown truth 'cifar'"):
        truth.find("cifar")


@pytest.mark.parametrize("name", truth.names())
def test_the_band_of_a_shipped_truth_holds_networks_of_like_macs(name):
    found = truth.load(name)
    macs = {each.arch: cost_of(each.arch).macs for each in found.networks}
    band = [macs[each.arch] for each in found.networks if each.set == "band"]
    everything = sorted(macs.values())
    if name == "fashion-mnist" and not band:
        assert {each.set for each in found.networks} == {"broad"}  # made first
    else:
        assert max(band) / min(band) < 3 < everything[-1] / everything[0]


def test_published_accuracies_are_those_of_presets_in_the_middle_fifth():
    found = truth.load("published")
    known = {name: each.top1 for name, each in search_spaces.published().items() if each.top1 is not None}
    by_arch = {each.arch: each for each in found.networks}
    assert len(by_arch) == len(found.networks) == len(known)  # no two presets are one network
    for name, accuracy in (("efficientformer-l1", 0.792), ("mobilevitv2-0.5", 0.7018), ("t2t-vit-t-24", 0.826)):
        assert by_arch[search_spaces.presets()[name]].accuracies == (accuracy,)
    macs = np.array([cost_of(each.arch).macs for each in found.networks])
    low, high = np.quantile(macs, [0.4, 0.6])
    assert [each.set == "band" for each in found.networks] == ((low <= macs) & (macs <= high)).tolist()


def test_a_file_named_published_comes_before_the_presets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published").write_text(line(archs(1)[0]))
    assert len(truth.load("published").networks) == 1


def test_a_preset_that_is_none_is_named(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(line(archs(1)[0], arch="efficientformer-l11"))
    with pytest.raises(InputError, match=r"t.jsonl:1: arch: unknown preset 'efficientformer-l11', did you mean"):
        truth.read(file)
