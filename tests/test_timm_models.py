"""Presets and found architectures as models of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2

import search_spaces
from nas import timm_models
from nas.core.errors import InputError
from nas.networks.building import Network, build, cost_of, load_weights, with_classes
from search_spaces import efficientformer as ef
from tests.small import randomize

PRESETS = search_spaces.presets()
SMALL = ef.make((16, 32, 48, 64), (1, 1, 2, 2), 1, side=32, classes=10, stem_convs=1)


@pytest.fixture(scope="module")
def small():
    """The name in timm of a found architecture."""
    return timm_models.register("found-small", SMALL)


@pytest.fixture
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_model_of_timm(preset):
    name = "nas_" + preset.replace("-", "_").replace(".", "_")
    assert name in timm.list_models("nas_*")
    assert name in timm.list_models(module="timm_models")
    assert name not in timm.list_models(pretrained=True)
    with torch.device("meta"):
        model = timm.create_model(name)
        image = torch.empty(2, *PRESETS[preset].input_shape)
        assert model(image).shape == (2, PRESETS[preset].classes)
        assert model.num_features in model.forward_features(image).shape
    assert sum(parameter.numel() for parameter in model.parameters()) == cost_of(PRESETS[preset]).params
    assert resolve_data_config({}, model=model)["input_size"] == PRESETS[preset].input_shape
    with torch.device("meta"):
        model.reset_classifier(0)
        assert model(image).shape == (2, model.head_hidden_size)
    with pytest.raises(InputError, match=f"{name}: millinas ships no weights"):
        timm.create_model(name, pretrained=True)


def test_weights_are_named_as_timm_names_those_for_the_presets_images():
    known = set(timm.list_pretrained())
    names = {preset: timm_models.weights_in_timm(preset) for preset in PRESETS}
    assert set(filter(None, names.values())) <= known
    assert names["swin-s"] == "swin_small_patch4_window7_224.ms_in1k"  # learned from ImageNet-1K, as its accuracy says
    assert names["efficientformer-l1"] == "efficientformer_l1.snap_dist_in1k"
    assert names["mobileformer-26m"] is names["deit-256"] is names["swin-xt"] is None
    for preset, name in names.items():
        if name is not None:
            assert timm.get_pretrained_cfg(name).input_size == PRESETS[preset].input_shape


@pytest.mark.parametrize("preset", [name for name in PRESETS if timm_models.timm_name(name) is not None])
def test_the_weights_of_timms_implementation_have_the_places_of_ours(preset):
    theirs = timm.create_model(timm_models.timm_name(preset)).state_dict()
    with torch.device("meta"):
        ours = Network(PRESETS[preset]).state_dict()
    converted = timm_models.from_timm(preset, theirs)
    assert {name: value.shape for name, value in converted.items()} == {n: value.shape for n, value in ours.items()}


def test_the_way_to_weights_that_the_error_shows_works():
    with pytest.raises(InputError) as caught:
        timm.create_model("nas_efficientformer_l1", pretrained=True)
    way = str(caught.value).partition("implementation: ")[2].replace("pretrained=True", "pretrained=False")
    model = timm.create_model("nas_efficientformer_l1")
    eval(way, {"nas": __import__("nas"), "timm": timm, "model": model})


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 10)),
        ({"num_classes": 7}, (2, 7)),
        ({"num_classes": 0}, (2, 64)),
        ({"in_chans": 1}, (2, 10)),
        ({"img_size": 64}, (2, 10)),
        ({"img_size": (64, 64), "in_chans": 5, "num_classes": 3}, (2, 3)),
        ({"drop_rate": 0.0, "drop_path_rate": 0.3}, (2, 10)),
    ],
)
def test_options_of_timm(small, options, shape):
    model = timm.create_model(small, **options)
    assert model(torch.randn(2, *model.default_cfg["input_size"])).shape == shape
    assert model.num_classes == shape[1] or options["num_classes"] == 0
    assert (model.num_features, model.head_hidden_size) == (64, 64)


def test_drop_path_reaches_the_residuals(small):
    rates = [getattr(part, "drop_path", 0) for part in timm.create_model(small, drop_path_rate=0.3).modules()]
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.parametrize("option", [{"drop_rate": 0.1}, {"global_pool": "max"}])
def test_what_a_network_cannot_have_is_refused(small, option):
    with pytest.raises(InputError, match=next(iter(option))):
        timm.create_model(small, **option)


def test_features_in_timms_manner(small, image):
    model = timm.create_model(small, features_only=True, out_indices=(1, -1), img_size=64)
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([32, 64], [4, 16])
    assert [tuple(found.shape) for found in model(torch.randn(1, 3, 64, 64))] == [(1, 32, 16, 16), (1, 64, 4, 4)]
    assert model.default_cfg["input_size"] == (3, 64, 64)


def test_weights_of_a_training_load_as_a_checkpoint(small, image, tmp_path):
    trained = randomize(build(SMALL)).eval()
    torch.save(trained.state_dict(), tmp_path / "best.pt")
    model = timm.create_model(small, checkpoint_path=str(tmp_path / "best.pt")).eval()
    backbone = timm.create_model(small, features_only=True, checkpoint_path=str(tmp_path / "best.pt")).eval()
    same = build(SMALL, features_only=True)
    load_weights(same, trained.state_dict(), "best.pt")
    with torch.no_grad():
        assert torch.equal(model(image), trained(image))
        for got, expected in zip(backbone(image), same.eval()(image), strict=True):
            assert torch.equal(got, expected)


def test_weights_follow_torchs_seed(small):
    torch.manual_seed(1)
    first, second = timm.create_model(small), timm.create_model(small)
    torch.manual_seed(1)
    again = timm.create_model(small)
    weights = [next(model.parameters()) for model in (first, second, again)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_logits_of_two_heads_are_averaged_in_training_unless_a_teacher_is_there(small, image):
    model = randomize(timm.create_model(small)).train()
    model.set_distilled_training()
    labels, teacher = model(image)
    model.set_distilled_training(False)
    torch.testing.assert_close(model(image), (labels + teacher) / 2)


def test_the_classifier_is_replaced_and_the_rest_kept(small, image):
    model = randomize(timm.create_model(small)).eval()
    kept = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("stages.4.1")}
    pooled = model.stages[4][0](model.forward_features(image))
    for classes in (0, 5):
        model.reset_classifier(classes)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
        assert model.num_classes == classes
        got = model.eval()(image)
        assert torch.equal(got, pooled) if not classes else got.shape == (2, classes)
        assert isinstance(model.get_classifier(), torch.nn.Identity) == (classes == 0)
    assert list(model.state_dict()) == list(build(with_classes(SMALL, 5)).state_dict())


def test_timms_optimizer_takes_a_network(small, image):
    model = timm.create_model(small)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    model(image).square().sum().backward()
    before = next(model.parameters()).clone()
    optimizer.step()
    assert not torch.equal(before, next(model.parameters()))


def test_an_arch_file_is_registered_once_under_a_name(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(SMALL.to_json())
    assert timm_models.register("from_file", path) == timm_models.register("from-file", SMALL) == "nas_from_file"
    assert timm.is_model("nas_from_file")
    with pytest.raises(InputError, match="another model 'nas_from_file'"):
        timm_models.register("from_file", with_classes(SMALL, 3))
    with pytest.raises(InputError, match=r"letters, digits and underscores, got 'a b'"):
        timm_models.register("a b", SMALL)


def test_names_of_timm_are_dashes_made_underscores_unless_a_family_says_otherwise(monkeypatch):
    assert timm_models.timm_name("efficientformer-l1") == "efficientformer_l1"
    monkeypatch.setattr(ef, "TIMM", {"efficientformer-l1": "efficientformer_one"}, raising=False)
    assert timm_models.timm_name("efficientformer-l1") == "efficientformer_one"
    monkeypatch.delattr(ef, "from_timm")
    assert timm_models.timm_name("efficientformer-l1") is None
    with pytest.raises(InputError, match="no conversion of timm's weights"):
        timm_models.from_timm("efficientformer-l1", {})
    with pytest.raises(InputError, match=r"t2t-vit-7: .*no conversion.*qk_scale = dim \*\* -0\.5.*by heads \*\* -0\.5"):
        timm_models.from_timm("t2t-vit-7", {})
    with pytest.raises(InputError, match="unknown preset 'efficientformer-l2'"):
        timm_models.timm_name("efficientformer-l2")
