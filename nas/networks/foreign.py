"""Models of timm and torchvision as they are: not of blocks that a table knows, so measured and never predicted."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.core.errors import InputError, suggest
from nas.core.ops import LARGEST, Shape
from nas.networks.building import Cost

LIBRARIES = ("timm", "torchvision")
SIDE = 224  # of images for models that do not say theirs


@dataclass(frozen=True)
class Foreign:
    """A classifier of a library.

    Attributes:
        name: `timm:NAME` or `torchvision:NAME`.
        input_shape: (C, H, W) of one image.
    """

    name: str
    input_shape: tuple[int, int, int]

    @property
    def id(self) -> str:
        """What names it beside the archs, with the version of its library, which may change it."""
        library = self.name.partition(":")[0]
        version = importlib.import_module(library).__version__
        return f"{self.name} @ {Shape(1, *self.input_shape)} ({library} {version})"

    def module(self) -> nn.Module:
        """The model with fresh weights, as it is deployed: what of it folds is left to the runtime.

        Raises:
            InputError: the library does not make it for images of this size, or has no model of this name.
        """
        library, _, name = self.name.partition(":")
        try:
            model = _of_timm(name, self.input_shape) if library == "timm" else _of_torchvision(name, self.input_shape)
        except InputError:
            raise
        except Exception as error:  # of any model
            raise InputError(f"{self.name}: {library} does not make it: {_line(error)}") from error
        return model.eval().requires_grad_(False)

    def cost(self) -> Cost:
        """Parameters and multiply-adds of convolutions, linears and matrix products, at batch 1; the peak of its
        activations is not known, 0.

        Raises:
            InputError: it does not run on an image of this size, or gives something else than logits.
        """
        with torch.device("meta"):
            model, image = self.module(), torch.empty(1, *self.input_shape)
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.no_grad():
                logits = model(image)
        except Exception as error:  # of any model
            size = "x".join(map(str, self.input_shape))
            raise InputError(f"{self.name}: does not take images of {size}: {_line(error)}") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(f"{self.name}: gives {got}, and a classifier gives logits (1, classes)")
        return Cost(sum(each.numel() for each in model.parameters()), counter.get_total_flops() // 2, 0)

    def to_data(self) -> dict[str, Any]:
        """Plain data; `from_data` gives an equal model."""
        return {"name": self.name, "input": list(self.input_shape)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Foreign:
        """Read `to_data`."""
        return cls(data["name"], cast(tuple[int, int, int], tuple(data["input"])))


def find(name: str, input_size: str | None = None) -> Foreign:
    """A model by its name.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.
        input_size: `224` or `3x224x224`; None for what the library says of it.

    Raises:
        InputError: an unknown library or name, naming the closest ones; or a size that is none.
    """
    library, colon, model = name.partition(":")
    if not colon or library not in LIBRARIES:
        raise InputError(f"model {name!r}: expected timm:NAME or torchvision:NAME")
    known = _names(library)
    if model.partition(".")[0] not in known:
        raise InputError(f"{suggest(f'model of {library}', model, known)}")
    return Foreign(name, _usual(library, model) if input_size is None else _size(input_size))


def _size(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"(?:([0-9]{1,5})x([0-9]{1,5})x)?([0-9]{1,5})", text)
    if found is None:
        raise InputError(f"input size {text!r}: expected a side such as 224, or CxHxW such as 3x224x224")
    width = int(found[3])
    size = (int(found[1] or 3), int(found[2] or width), width)
    if min(size) < 1 or max(size) > LARGEST:
        raise InputError(f"input size {text!r}: each number is 1 to {LARGEST}")
    return size


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return list(timm.list_models())
    from torchvision import models

    return list(models.list_models(module=models))


def _usual(library: str, name: str) -> tuple[int, int, int]:
    """The size of the images of a model."""
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        return tuple(config.input_size) if config is not None and config.input_size else (3, SIDE, SIDE)
    from torchvision import models

    weights = next(iter(models.get_model_weights(name)), None)
    crop = getattr(weights.transforms(), "crop_size", None) if weights is not None else None
    side = crop[0] if crop else SIDE
    return (3, side, side)


def _of_timm(name: str, input_shape: tuple[int, int, int]) -> nn.Module:
    import timm

    channels, *sides = input_shape
    options: dict[str, Any] = {"pretrained": False, "in_chans": channels, "exportable": True}
    if tuple(sides) != _usual("timm", name)[1:]:
        try:
            return cast(nn.Module, timm.create_model(name, img_size=tuple(sides), **options))
        except TypeError:  # convolutions take images of any size
            pass
    return cast(nn.Module, timm.create_model(name, **options))


def _of_torchvision(name: str, input_shape: tuple[int, int, int]) -> nn.Module:
    from torchvision import models

    if input_shape[0] != 3:
        raise InputError(f"torchvision:{name}: takes images of 3 channels, not {input_shape[0]}")
    options: dict[str, Any] = {"image_size": input_shape[1]} if name.startswith("vit_") else {}
    options |= {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    return cast(nn.Module, models.get_model(name, weights=None, **options))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
