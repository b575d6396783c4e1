"""Training images changed at random: mirrored, moved, erased, mixed, and by RandAugment."""

from __future__ import annotations

from typing import cast

import torch
from PIL import ImageOps
from PIL.Image import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional

from nas.evaluation.data import ImageTransform, shifted
from nas.evaluation.recipe import Recipe


class RandAugment:
    """timm's RandAugment for one uint8 image (C, H, W), C is 1 or 3. It draws from python's and numpy's generators."""

    def __init__(self, config: str) -> None:
        self.transform = rand_augment_transform(config)
        for op in self.transform.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize

    def __call__(self, image: Tensor) -> Tensor:
        changed = self.transform(functional.to_pil_image(image.expand(3, -1, -1)))  # it fills gaps with colours
        return cast(Tensor, functional.pil_to_tensor(changed)[: len(image)])


def _posterize(image: Image, bits: int, **_: object) -> Image:
    return ImageOps.posterize(image, max(bits, 1))  # Pillow refuses the 0 that timm asks for at its ends


def rand_augment(recipe: Recipe) -> ImageTransform | None:
    """RandAugment, where the recipe has it."""
    return RandAugment(recipe.rand_augment) if recipe.rand_augment else None


def distorted(images: Tensor, recipe: Recipe, *, mirrors: bool) -> Tensor:
    """Mirror, move and erase normalised images (N, C, H, W) at random, as far as the recipe and the data set allow."""
    n = len(images)
    if recipe.flip and mirrors:
        chosen = (torch.rand(n) < 0.5).to(images.device)
        images = torch.where(chosen[:, None, None, None], images.flip(3), images)
    if recipe.shift:
        images = shifted(images, torch.randint(-recipe.shift, recipe.shift + 1, (2, n)).to(images.device))
    if recipe.random_erasing:
        images = RandomErasing(recipe.random_erasing, mode="pixel", device=str(images.device))(images)
    return images


class Mix:
    """Mixup and CutMix as a recipe has them: each batch is mixed with itself reversed, and so are its labels."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels (N,) -> images and chances (N, classes); as they are where the recipe mixes nothing.

        The last of an odd number, which multi-scale batches may have, is left out.
        """
        if self.mixup is None:
            return images, labels
        even = len(images) // 2 * 2
        return cast(tuple[Tensor, Tensor], self.mixup(images[:even], labels[:even]))
