"""Images of every kind in red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in red, green and blue: what is transparent shows white behind it, as on a page; grey of 16 bits keeps
    its upper 8 (Pillow would cut all above 255 off).
    """
    if image.mode.startswith("I"):  # 16 bits, which some versions of Pillow hold in 32
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 2**8).astype(np.uint8))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return image.convert("RGB")
