"""Weights from anywhere."""

import dataclasses
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_levit
from timm.models import swin_transformer, vision_transformer

from nas.core.errors import InputError
from nas.core.ops import resized
from nas.evaluation.exporting import export_arch
from nas.evaluation.pretrained import load_pretrained
from nas.evaluation.runs import train_arch
from nas.evaluation.teacher import load_teacher
from nas.networks.building import build, load_arch, with_classes
from search_spaces import efficientformer as ef
from tests.small import assert_close, lively

SMALL = ef.make((16, 24, 32, 48), (1, 1, 2, 2), 1, side=32, classes=10, stem_convs=1)
HEAD = "stages.4.1."


def images(side):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def outputs(network, side):
    with torch.no_grad():
        return network.eval()(images(side))


@pytest.fixture
def trained(tmp_path):
    """A small network and its weights in every kind of file."""
    network = lively(build(SMALL))
    torch.save(network.state_dict(), tmp_path / "ours.pt")
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    for folder, file in (("trained", "weights.pt"), ("searched", "best.pt")):
        (tmp_path / folder).mkdir()
        torch.save(network.state_dict(), tmp_path / folder / file)
    return network, tmp_path


@pytest.mark.parametrize("source", ["ours.pt", "ours.safetensors", "trained", "searched"])
def test_a_file_or_a_folder_of_ours(trained, source):
    network, folder = trained
    other = build(SMALL, seed=1)
    loaded = load_pretrained(other, str(folder / source))
    assert loaded.notes == ()
    assert loaded.source.startswith(str(folder / source))
    assert torch.equal(outputs(other, 32), outputs(network, 32))


@pytest.mark.parametrize("preset", ["efficientformer-l1", "efficientformerv2-s0", "nextvit-s", "mobilevit-xxs"])
def test_a_file_of_timms_model_of_that_name(tmp_path, preset):
    from nas.timm_models import timm_name

    theirs = lively(timm.create_model(timm_name(preset)))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours, side = build(load_arch(preset)), load_arch(preset).input_shape[1]
    load_pretrained(ours, str(tmp_path / "theirs.safetensors"), whole=True)
    assert_close(outputs(ours, side), outputs(theirs, side), 1e-3)


@pytest.fixture
def published(monkeypatch):
    """timm with weights of our own in place of those that it would fetch, and what was asked of it."""
    create, asked = timm.create_model, []

    def without_fetching(name, pretrained=False, **options):
        asked.append(name)
        return lively(create(name.partition(".")[0], **options))

    monkeypatch.setattr(timm, "create_model", without_fetching)
    return asked


@pytest.mark.parametrize(("source", "name"), [("timm", ""), ("timm:snap_dist_in1k", ".snap_dist_in1k")])
def test_what_timm_publishes_of_a_preset(published, source, name):
    network = build(load_arch("efficientformer-l1"))
    loaded = load_pretrained(network, source)
    assert published == [f"efficientformer_l1{name}"]
    assert loaded.source == f"timm's efficientformer_l1{name}"
    assert_close(outputs(network, 224), outputs(lively(timm.create_model("efficientformer_l1")), 224), 1e-3)


def test_what_timm_does_not_have_is_said(published, monkeypatch):
    with pytest.raises(InputError, match=r"unknown tag of efficientformer_l1 in timm 'in22k'.*snap_dist_in1k"):
        load_pretrained(build(load_arch("efficientformer-l1")), "timm:in22k")
    with pytest.raises(InputError, match=r"it publishes those of presets .* efficientformer \w{12} is none"):
        load_pretrained(build(SMALL), "timm")
    with pytest.raises(InputError, match="it publishes none for swin-xt; expected a file"):
        load_pretrained(build(load_arch("swin-xt")), "timm")
    with pytest.raises(InputError, match=r"weights nowhere\.pt: there is no such file; expected a file"):
        load_pretrained(build(SMALL), "nowhere.pt")

    def no_internet(name, **options):
        raise OSError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(timm, "create_model", no_internet)
    with pytest.raises(InputError) as caught:
        load_pretrained(build(load_arch("nextvit-s")), "timm")
    assert "timm's weights of nextvit_small cannot be fetched ([Errno -2] Name or service not known)" in str(
        caught.value
    )
    assert "name the file (--weights nextvit_small.safetensors)" in str(caught.value)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no trained weights in this folder, neither weights\.pt nor best\.pt"):
        load_pretrained(build(SMALL), str(tmp_path))


def test_another_number_of_classes_gets_a_fresh_classifier(trained):
    network, folder = trained
    fresh = build(with_classes(SMALL, 7), seed=3)
    head = {name: value.clone() for name, value in fresh.state_dict().items() if name.startswith(HEAD)}
    loaded = load_pretrained(fresh, str(folder / "ours.pt"))
    assert loaded.notes == (
        "the classifier of these weights is for 10 classes, the network's for 7: that starts fresh",
    )
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, head[name] if name in head else network.state_dict()[name])
    with pytest.raises(InputError, match=r"ours\.pt: the classifier .* is for 10 classes, the network's for 7; take w"):
        load_pretrained(fresh, str(folder / "ours.pt"), whole=True)


def test_weights_without_a_classifier(trained):
    network, folder = trained
    body = {name: value for name, value in network.state_dict().items() if not name.startswith(HEAD)}
    torch.save(body, folder / "body.pt")
    loaded = load_pretrained(build(SMALL), str(folder / "body.pt"))
    assert loaded.notes == (
        "the classifier of these weights is not among them, the network's for 10: that starts fresh",
    )


def test_weights_that_do_not_fit_name_the_first_three(trained):
    _, folder = trained
    wider = ef.make((16, 24, 40, 48), (1, 1, 2, 2), 1, side=32, classes=10, stem_convs=1)
    with pytest.raises(InputError) as caught:
        load_pretrained(build(wider), str(folder / "ours.pt"))
    lines = str(caught.value).splitlines()
    assert lines[1].strip() == ("stages.2.0.body.body.0.weight is (32, 24, 3, 3), the network's is (40, 24, 3, 3)")
    assert len(lines) == 5
    assert "more of that kind" in lines[4]


def test_tables_are_resized_as_timm_resizes_them():
    """The published rules: positions behind a class token, and distances on a grid."""
    generator = torch.Generator().manual_seed(0)
    positions, distances = torch.randn(1, 1 + 14**2, 8, generator=generator), torch.randn(4, 49, generator=generator)
    for side in (10, 14, 20):
        expected = resample_abs_pos_embed(positions, [side, side])
        assert_close(resized(positions, side, front=1), expected, 1e-6)
    for side in (5, 7, 12):
        expected = resize_rel_pos_bias_table_levit(distances.T, (side**2, 4)).T
        assert_close(resized(distances, side), expected, 1e-6)
    with pytest.raises(InputError, match=r"table of \(4, 50\): expected 0 and a square number"):
        resized(torch.zeros(4, 50), 6)


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize(
    ("preset", "name", "module", "side"),
    [
        ("deit-t", "deit_tiny_patch16_224", vision_transformer, 160),
        ("swin-t", "swin_tiny_patch4_window7_224", swin_transformer, 192),
    ],
)
def test_a_network_of_another_image_size_gives_what_timms_gives(tmp_path, preset, name, module, side):
    """timm reads the same weights by its own rule into its own network of that size."""
    state = lively(timm.create_model(name)).state_dict()
    torch.save(state, tmp_path / "theirs.pt")
    theirs = timm.create_model(name, img_size=side)
    theirs.load_state_dict(module.checkpoint_filter_fn(dict(state), theirs))
    arch = load_arch(preset)
    ours = build(dataclasses.replace(arch, input_shape=(3, side, side)))
    loaded = load_pretrained(ours, str(tmp_path / "theirs.pt"))
    assert f"resized for a side of {side}" in loaded.notes[0]
    assert_close(outputs(ours, side), outputs(theirs, side), 1e-4)


def test_a_training_starts_from_weights_and_goes_on_from_no_other_ones(trained, tmp_path):
    network, folder = trained
    said = []
    recipe = {"epochs": 1, "lr": 1e-12, "warmup_fraction": 0.0, "batch_size": 16, "weight_decay": 0.0}
    options = {"limit": 60, "note": said.append, "device": "cpu"}
    weights = str(folder / "ours.pt")
    found = train_arch(SMALL, "digits", tmp_path / "run", recipe, weights=weights, **options)
    assert said == []
    state = torch.load(found["weights"])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(state[name], parameter, rtol=1e-6, atol=1e-8)
    noted = json.loads((tmp_path / "run" / "result.json").read_text())["start"]
    assert noted["source"] == weights
    other = {name: value + 1 if name.endswith("gamma") else value for name, value in network.state_dict().items()}
    torch.save(other, folder / "other.pt")
    for weights in (None, str(folder / "other.pt")):
        with pytest.raises(InputError, match=r"checkpoint of another training: training\.start is '\w{12}' there"):
            train_arch(SMALL, "digits", tmp_path / "run", recipe, weights=weights, **options)
    with pytest.raises(InputError, match="the recipe starts from the teacher's"):
        train_arch(SMALL, "digits", tmp_path / "x", recipe | {"start": "teacher"}, weights=weights, **options)


def test_a_teacher_and_an_export_take_them_too_but_no_fresh_classifier(trained):
    network, folder = trained
    (folder / "arch.json").write_text(SMALL.to_json())
    teacher = load_teacher(str(folder / "arch.json"), str(folder / "trained"), (3, 32, 32), 10)
    with torch.no_grad():
        assert torch.equal(teacher(images(32)).logits, outputs(network, 32))
    found = export_arch(SMALL, folder / "a.onnx", weights=str(folder / "ours.safetensors"))
    assert found["weights"] == str(folder / "ours.safetensors")
    with pytest.raises(InputError, match="take weights for these classes"):
        export_arch(with_classes(SMALL, 3), folder / "b.onnx", weights=str(folder / "ours.pt"))


def test_a_broken_safetensors_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match=r"w\.safetensors: cannot be read as a file of weights: it is damaged"):
        load_pretrained(build(SMALL), str(tmp_path / "w.safetensors"))
