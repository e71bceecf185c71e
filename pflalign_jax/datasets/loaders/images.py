"""From a file of an image to its pixels."""

import os
from typing import Any

import numpy as np

GREY, COLOUR = 1, 3
"""Channels of an image."""

GREY_MODES = ("1", "L", "LA", "La")
"""What Pillow calls grey images of at most 8 bits, with or without transparency."""

MORE_BITS = ("I", "F")
"""How Pillow's names of images with more than 8 bits begin; it would cut them off at 255."""


def read_pixels(
    source: Any, channels: int | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return an image as uint8 ``[H, W, C]``; transparency is dropped.

    Args:
      source: a path or an open file.
      channels: 1 for grey or 3 for RGB, whatever the file has; None: as the file has it.
      size: ``(H, W)`` that it is resized to, smoothly and without keeping its proportions; None: as
        it is.

    Raises:
      ValueError: saying why, if it is damaged, missing, no image, or has more than 8 bits.
    """
    import PIL.Image  # here, as few datasets need it

    try:
        with PIL.Image.open(source) as image:
            if image.mode.startswith(MORE_BITS):
                raise ValueError(f"it has more than 8 bits ({image.mode}); save it with 8")
            found = GREY if image.mode in GREY_MODES else COLOUR
            shown = image.convert("L" if (channels or found) == GREY else "RGB")
            if size is not None:
                shown = shown.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
            return np.asarray(shown).reshape(shown.height, shown.width, channels or found)
    except ValueError:
        raise
    except (OSError, TypeError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        name = os.path.basename(source) if isinstance(source, str | os.PathLike) else ""
        raise ValueError(f"{error}".replace(str(source), name)) from error
