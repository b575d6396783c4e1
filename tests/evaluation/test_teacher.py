"""Teachers: our networks with their weights, and models of timm."""

import dataclasses

import pytest
import timm
import torch

import search_spaces
from nas.core.errors import InputError
from nas.evaluation.data import DataRequest, in_memory
from nas.evaluation.datasets._streamed import StreamedSplit
from nas.evaluation.datasets.imagefolder import Files
from nas.evaluation.teacher import load_teacher, start_from
from nas.networks.building import build, load_arch, with_classes
from search_spaces.dynamicvit import SMALL_DEIT, make
from tests.small import lively

CLASSES = 10


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def host(tmp_path):
    """An arch file and the weights of a small DeiT."""
    arch = make(SMALL_DEIT, 32, 2, side=32, classes=CLASSES)
    model = lively(build(arch)).eval()
    (tmp_path / "host.json").write_text(arch.to_json())
    torch.save(model.state_dict(), tmp_path / "host.pt")
    return tmp_path, model


def test_a_found_network_teaches_with_its_weights_at_its_own_resolution(host):
    folder, model = host
    teacher = load_teacher(str(folder / "host.json"), folder / "host.pt", (3, 48, 48), CLASSES)
    large = images(2, 3, 48, 48)
    small = torch.nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(teacher(large).logits, model(small))
    assert not any(weight.requires_grad for weight in teacher.model.parameters())
    assert teacher.id != load_teacher(str(folder / "host.json"), _changed(folder), (3, 32, 32), CLASSES).id


def _changed(folder):
    state = torch.load(folder / "host.pt")
    state[next(iter(state))] += 1
    torch.save(state, folder / "other.pt")
    return folder / "other.pt"


def test_patch_tokens_are_those_behind_the_last_norm(tmp_path):
    """timm's `forward_features` of the same network with the same weights."""
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES)
    torch.save(theirs.state_dict(), tmp_path / "timm.pt")
    by_timm = load_teacher("deit_tiny_patch16_224.fb_in1k", tmp_path / "timm.pt", (3, 224, 224), CLASSES)
    student = build(with_classes(load_arch("dynamicvit-deit-t-0.7"), CLASSES))
    start_from(by_timm, student)
    qkv = student.get_parameter("stages.0.2.body.0.body.1.body.qkv.weight")
    assert torch.equal(qkv.reshape(3 * 192, 192), theirs.blocks[0].attn.qkv.weight)

    ours = build(with_classes(load_arch("deit-t"), CLASSES))
    from nas.timm_models import from_timm

    ours.load_state_dict(from_timm("deit-t", theirs.state_dict()))
    torch.save(ours.state_dict(), tmp_path / "ours.pt")
    by_us = load_teacher("deit-t", tmp_path / "ours.pt", (3, 224, 224), CLASSES)
    x = images(2, 3, 224, 224)
    first, second = by_timm(x, tokens=True), by_us(x, tokens=True)
    assert first.tokens.shape == (2, 196, 192)
    torch.testing.assert_close(first.tokens, second.tokens, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.logits, second.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("channels", "own"), [(3, 3), (3, 1), (1, 1), (1, 3)])
def test_a_teacher_of_timm_sees_bytes_as_timm_shows_them_to_it(tmp_path, channels, own):
    """For a model of mean and deviation 0.5: (byte / 255 - 0.5) / 0.5, however the data are normalised."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    theirs = timm.create_model(name, num_classes=CLASSES, in_chans=channels).eval()
    assert theirs.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([255, 120, 60])[:own, None, None]
    shown = (torch.rand(6, own, 224, 224, generator=generator) * scale).byte()
    labels = torch.arange(6) % 2
    data = in_memory(
        DataRequest("x", None, (channels, 224, 224), 0, 0.5, None), CLASSES, *[(shown, labels)] * 2, mirrors=True
    )
    student_sees, _ = next(data.test.batches(6))
    teacher = load_teacher(name, tmp_path / "weights.pt", (channels, 224, 224), CLASSES, data.test.normalisation)
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    teacher(student_sees)
    if channels == own:
        expected = (shown.float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-4)
    elif own == 1:
        torch.testing.assert_close(
            seen[0], ((shown.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1), rtol=0, atol=1e-4
        )
    else:  # every colour was divided by its own deviation before they became grey
        grey = (shown.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        assert seen[0].mean() == pytest.approx(float((grey / 255 - 0.5).mean() / 0.5), abs=0.02)


def test_published_normalisation_of_a_folder_stays_as_it_is_and_an_unknown_one_is_refused(tmp_path):
    usual = timm.create_model("test_efficientnet", num_classes=CLASSES)
    other = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=CLASSES)
    for name, model in (("usual", usual), ("other", other)):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    request = DataRequest("imagefolder", tmp_path, (3, 64, 64), 0, 0.5, None)
    folder = StreamedSplit(Files(tmp_path, []), (), CLASSES, (3, 64, 64), False, request)
    assert folder.normalisation.mean == pytest.approx((123.675, 116.28, 103.53))
    assert folder.normalisation.std == pytest.approx((58.395, 57.12, 57.375))
    given = (3, 224, 224), CLASSES
    teacher = load_teacher("test_efficientnet", tmp_path / "usual.pt", *given, folder.normalisation)
    assert teacher.change is None
    with pytest.raises(InputError, match=r"mean \(0.5, 0.5, 0.5\) .* does not say how it normalises"):
        load_teacher("vit_tiny_patch16_224.augreg_in21k", tmp_path / "other.pt", *given)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deit-x", {}, r"unknown teacher 'deit-x', did you mean .*'deit-t'"),
        ("deit-t", {}, "deit-t: without weights it knows nothing"),
        (
            "host.json",
            {"classes": 7},
            r"host\.pt: the classifier of these weights is for 10 classes, the network's for 7",
        ),
        ("host.json", {"input_shape": (1, 32, 32)}, "takes no images 1x32x32"),
        (
            "resnet18",
            {"classes": 7},
            r"host\.pt does not fit .*; name one of .* for 7 classes:\n  lacks conv1\.weight\n(  lacks .*\n){2}"
            r"  and \d+ more of that kind\n(  has .*, which the network does not\n){3}  and \d+ more of that kind$",
        ),
    ],
)
def test_what_cannot_teach_is_refused(host, name, options, message):
    folder, _ = host
    weights = None if name.startswith("deit") else folder / "host.pt"
    given = {"input_shape": (3, 32, 32), "classes": CLASSES} | options
    with pytest.raises(InputError, match=message):
        load_teacher(str(folder / name) if name.endswith("json") else name, weights, **given)


def test_a_network_without_a_last_norm_teaches_no_tokens(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=CLASSES)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    teacher = load_teacher("test_efficientnet", tmp_path / "weights.pt", (3, 32, 32), CLASSES)
    with pytest.raises(InputError, match="has no patch tokens"):
        teacher(images(2, 3, 32, 32), tokens=True)


@pytest.mark.parametrize("space", ["efficientformer-32", "dynamicvit-32"])
def test_a_student_of_a_further_space_of_its_family_starts_from_a_teacher(tmp_path, rng, space):
    arch = search_spaces.load(space).sample(rng)
    host = make(SMALL_DEIT, 32, 2, side=32, classes=CLASSES) if space == "dynamicvit-32" else arch
    if host is not arch:
        arch = dataclasses.replace(make(SMALL_DEIT, 32, 2, (1,), (50,), side=32, classes=CLASSES), family=space)
    network = lively(build(host))
    (tmp_path / "host.json").write_text(host.to_json())
    torch.save(network.state_dict(), tmp_path / "host.pt")
    student = build(arch, seed=5)
    start_from(load_teacher(str(tmp_path / "host.json"), tmp_path / "host.pt", (3, 32, 32), CLASSES), student)
    first = next(iter(network.state_dict().values()))
    assert torch.equal(next(iter(student.state_dict().values())), first)
