"""Our networks in timm: `import nas.timm_models`, then `timm.create_model("nas_efficientformer_l1")`.

Every preset is registered as `nas_<preset>`, dashes and dots written as underscores; `register` adds found
architectures. They take timm's `num_classes`, `in_chans`, `img_size`, `drop_path_rate`, `features_only`, `out_indices`,
`checkpoint_path`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, cast

import torch
from timm.models import (
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    load_pretrained,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

import search_spaces
from nas.core.arch import Arch, steps_of
from nas.core.errors import InputError, suggest
from nas.core.ops import BlockModule
from nas.networks.building import Network, build, load_arch, with_classes
from nas.networks.features import FeatureNetwork, stage_maps

#: where timm's `register_model` looks for the size of the images and other facts of the models of this module
default_cfgs: dict[str, Any] = {}
_archs: dict[str, Arch] = {}


class TimmNetwork(Network):
    """A network with what timm's scripts ask of a model.

    Shape: (N, C, H, W) -> (N, num_classes), or the features before the classifier, (N, head_hidden_size), for
    `num_classes` 0. In training the average of the logits where the head has several, unless
    `set_distilled_training(True)`: then a tuple of them.

    Attributes:
        num_classes: number of logits.
        num_features: channels of `forward_features`.
        head_hidden_size: channels that reach the classifier.
    """

    def __init__(self, arch: Arch, num_classes: int, drop_path: float = 0.0) -> None:
        nn.Module.__init__(self)
        network = build(_with_head(arch, num_classes), seed=_drawn_seed(), drop_path=drop_path)
        self.arch, self.stages = network.arch, network.stages
        self.num_classes = num_classes
        self.distilled_training = False
        self._whole = arch
        self.num_features = stage_maps(arch)[-1].channels
        self.head_hidden_size = next(
            call.row.inputs[0].channels for call in steps_of(arch) if _is_classifier(call.row.unit)
        )

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if isinstance(logits, tuple) and not self.distilled_training:
            return torch.stack(logits).mean(0)
        return logits

    def forward_features(self, x: Tensor) -> Any:
        """What reaches the head: a map (N, C, H, W) or tokens (N, T, C)."""
        streams: dict[str, Any] = {"x": x}
        for stage in list(self.stages)[:-1]:
            for block in cast(nn.ModuleList, stage):
                cast(BlockModule, block).advance(streams)
        return streams["x"]

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the logits of several heads come apart in training, for a loss with a teacher."""
        self.distilled_training = enable

    def get_classifier(self) -> nn.Module:
        """The module that makes the logits; an identity for `num_classes` 0."""
        last = cast(nn.ModuleList, self.stages[-1])[-1] if len(cast(nn.ModuleList, self.stages[-1])) else None
        return last if isinstance(last, BlockModule) and _is_classifier(last.block) else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; the rest of the head keeps its weights.

        Raises:
            InputError: another pooling is asked for; it is a part of the architecture.
        """
        _refuse(global_pool=global_pool)
        fresh = build(_with_head(self._whole, num_classes), seed=_drawn_seed())
        like = next(self.parameters())
        old = cast(nn.ModuleList, self.stages[-1])
        new = cast(nn.ModuleList, fresh.stages[-1]).to(like.device, like.dtype)
        for number, block in enumerate(new):
            if not _is_classifier(cast(BlockModule, block).block):
                new[number] = old[number]
        self.stages[-1] = new
        self.arch, self.num_classes = fresh.arch, num_classes


def _is_classifier(unit: Any) -> bool:
    return hasattr(unit, "classes")


def _with_head(arch: Arch, classes: int) -> Arch:
    """The architecture for so many classes; for 0 without its classifier."""
    if classes:
        return with_classes(arch, classes)
    head = tuple(block for block in arch.stages[-1] if not _is_classifier(block))
    return dataclasses.replace(arch, classes=0, stages=(*arch.stages[:-1], head))


def _drawn_seed() -> int:
    return int(torch.randint(2**31, (), device="cpu"))  # timm's users seed torch


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value:
            raise InputError(f"{name}: millinas networks have nothing that takes {name}={value!r}; leave it out")


def register(name: str, arch: Arch | str | os.PathLike[str]) -> str:
    """Let `timm.create_model` know an architecture as `nas_<name>`.

    Args:
        name: letters, digits and underscores; dashes become underscores.
        arch: the architecture, or the file or preset that `load_arch` reads; the weights of a search are loaded with
            `timm.create_model("nas_<name>", checkpoint_path="runs/NAME/best.pt")`.

    Returns:
        The name in timm.

    Raises:
        InputError: the name has other characters, or timm has another model of this name.
    """
    full = _full_name(name)
    if not re.fullmatch(r"[A-Za-z0-9_]+", full):
        raise InputError(f"name: expected letters, digits and underscores, got {name!r}")
    found = arch if isinstance(arch, Arch) else load_arch(arch)
    if is_model(full):
        if _archs.get(full) == found:
            return full
        raise InputError(f"timm has another model {full!r} already; choose another name")
    _archs[full] = found
    facts = {"input_size": found.input_shape, "fixed_input_size": True, "num_classes": found.classes}
    default_cfgs.update(generate_default_cfgs({full: facts}))
    entry = _entry(full, found)
    setattr(sys.modules[__name__], full, entry)  # timm puts the name into __all__
    register_model(entry)
    return full


GENERIC = "nas_network"
"""timm's name of a network whose architecture is given: `timm.create_model("nas_network", arch=...)`. It is that of
what `nas publish` writes, which `timm.create_model("local-dir:DIR", pretrained=True)` loads.
"""


def nas_network(pretrained: bool = False, *, arch: str | Mapping[str, Any] | None = None, **options: Any) -> nn.Module:
    """The network of an architecture, the JSON that `Arch.to_json` gives.

    Args:
        pretrained: whether weights are loaded from where timm's configuration says; a classifier for another number of
            classes stays fresh.
        arch: the architecture.
        options: timm's.

    Raises:
        InputError: no architecture, or one that cannot be read.
    """
    if arch is None:
        raise InputError(
            f"{GENERIC}: arch is missing, the JSON of an architecture: nas publish writes it beside weights"
        )
    options.pop("pretrained_model_args", None)  # arch, once more
    found = Arch.from_json(arch if isinstance(arch, str) else json.dumps(arch), f"{GENERIC}: arch")
    model = _create(GENERIC, found, **options)
    if pretrained:
        config = cast(Any, model).pretrained_cfg
        fit = functools.partial(_fitted, classifier=_classifier_of(found))
        load_pretrained(model, config, filter_fn=fit, num_classes=options.get("num_classes") or found.classes)
    return model


def _classifier_of(arch: Arch) -> tuple[str, ...]:
    """The beginnings of the names of what knows the classes."""
    last = len(arch.stages) - 1
    return tuple(f"stages.{last}.{place}." for place, block in enumerate(arch.stages[-1]) if _is_classifier(block))


def _fitted(state: Mapping[str, Tensor], model: nn.Module, classifier: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of the whole network as this one takes them: what does not fit of its classifier stays as it is."""
    if isinstance(model, FeatureNetwork):
        return dict(model.own(state))
    own = model.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith(classifier)}
    for name, value in own.items():
        if name.startswith(classifier):
            kept[name] = state[name] if name in state and state[name].shape == value.shape else value
    return kept


default_cfgs.update(generate_default_cfgs({GENERIC: {"fixed_input_size": True}}))
register_model(nas_network)


def _full_name(name: str) -> str:
    return "nas_" + re.sub("[-.]", "_", name)


def _entry(name: str, arch: Arch) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise InputError(_no_weights(name))
        return _create(name, arch, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{arch.family}, {arch.id}, for images {'x'.join(map(str, arch.input_shape))}."
    return entry


def _create(
    name: str,
    arch: Arch,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: int | Iterable[int] | None = None,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
) -> nn.Module:
    """The model that timm's options describe; `cache_dir` is timm's, for weights that we do not download."""
    _refuse(drop_rate=drop_rate, global_pool=global_pool)
    channels, *sides = arch.input_shape
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or sides
    arch = dataclasses.replace(arch, input_shape=(in_chans or channels, height, width))
    model: nn.Module
    if features_only:
        whole = build(arch, seed=_drawn_seed(), drop_path=drop_path_rate)
        model = FeatureNetwork(arch, list(whole.stages), out_indices)
    else:
        model = TimmNetwork(arch, arch.classes if num_classes is None else num_classes, drop_path_rate)
    config = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    facts = cast(Any, model)
    facts.pretrained_cfg = facts.default_cfg = config | {"input_size": arch.input_shape}
    return model


def _no_weights(name: str) -> str:
    text = f"{name}: millinas ships no weights, so pretrained=True has nothing to load. "
    preset = next((each for each in search_spaces.presets() if _full_name(each) == name), None)
    theirs = timm_name(preset) if preset else None
    if theirs is None:
        return text + "Load your own: timm.create_model(..., checkpoint_path='best.pt')"
    return text + (
        "Take those of timm's implementation: model.load_state_dict(nas.timm_models.from_timm("
        f"{preset!r}, timm.create_model({theirs!r}, pretrained=True).state_dict()))"
    )


def timm_name(preset: str) -> str | None:
    """What timm calls its own implementation of a preset; None where the family has no `from_timm`.

    A family whose names differ by more than dashes declares them: `TIMM = {"nextvit-s": "nextvit_small"}`.
    """
    family = _family_of(preset)
    names: Mapping[str, str] = getattr(family, "TIMM", {})
    return names.get(preset, re.sub("[-.]", "_", preset)) if hasattr(family, "from_timm") else None


def weights_in_timm(preset: str) -> str | None:
    """The name under which `timm.create_model(name, pretrained=True)` has weights for a preset, which `from_timm`
    translates: `mobilevit_s.cvnets_in1k`; None where it has none.
    """
    name = timm_name(preset)
    config = get_pretrained_cfg(name) if name else None
    if name is None or config is None or not config.has_weights:
        return None
    return name if "." in name or not config.tag else f"{name}.{config.tag}"


def from_timm(preset: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm's implementation of a preset, under the names of ours.

    Raises:
        InputError: an unknown preset, or its family has no conversion.
    """
    family = _family_of(preset)
    if not hasattr(family, "from_timm"):
        note = getattr(family, "ON_WEIGHTS", "")
        raise InputError(f"{preset}: its family has no conversion of timm's weights{note and '; ' + note}")
    return cast(dict[str, Tensor], family.from_timm(state, load_arch(preset)))


def _family_of(preset: str) -> ModuleType:
    for name in search_spaces.families():
        if preset in getattr(search_spaces.family(name), "PRESETS", {}):
            return search_spaces.family(name)
    raise InputError(suggest("preset", preset, search_spaces.presets()))


for _preset, _arch in search_spaces.presets().items():
    register(_preset, _arch)
