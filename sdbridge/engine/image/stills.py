"""A still image from disk as a tensor: control images, masks, style images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.errors import SdbridgeError

LARGEST_PIXELS = 64_000_000
#: What is white in Pillow's modes of more than 8 bits, all of them grey. "I" has 16 bits of a PNG in 32.
_WHITE = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}


def load_still(path: Path, device: torch.device) -> Tensor:
    """``[1, 4, H, W]`` RGBA float 0..1 on ``device``. Slow: call it beside the frame loop.

    Raises SDB-FILE-MISSING, or SDB-IMAGE-FORMAT for a file that is no picture or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.is_dir():
        raise SdbridgeError("SDB-IMAGE-FORMAT", f"{path} is a folder, not a picture")
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > LARGEST_PIXELS:
                raise SdbridgeError(
                    "SDB-IMAGE-FORMAT",
                    f"{path} has {opened.width}x{opened.height} pixels, more than {LARGEST_PIXELS:,}",
                )
            upright = ImageOps.exif_transpose(opened)
            pixels = _deep(upright) if upright.mode in _WHITE else np.array(upright.convert("RGBA"))
    except FileNotFoundError:
        raise SdbridgeError("SDB-FILE-MISSING", f"there is no file {path}") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise SdbridgeError(
            "SDB-IMAGE-FORMAT", f"{path} is no picture: {size} bytes beginning {_start(path)!r}"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SdbridgeError("SDB-IMAGE-FORMAT", f"{path} cannot be read as a picture: {error}") from None
    image = torch.from_numpy(pixels).to(device).permute(2, 0, 1).unsqueeze(0)
    return image if image.is_floating_point() else image.float() / 255


def _deep(picture: Any) -> np.ndarray:
    """Depth maps and masks of 16 bits and more, ``[H, W, 4]`` 0..1: Pillow makes all but black white."""
    grey = np.asarray(picture).astype(np.float32) / _WHITE[picture.mode]
    grey = np.nan_to_num(grey).clip(0.0, 1.0)
    return np.stack((grey, grey, grey, np.ones_like(grey)), axis=-1)


def _start(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(12).decode("latin-1")


def fill(image: Tensor, height: int, width: int) -> Tensor:
    """Scale ``[F, C, h, w]`` until it covers height x width, and cut what is over, from the middle."""
    have_height, have_width = image.shape[-2:]
    if (have_height, have_width) == (height, width):
        return image
    factor = max(height / have_height, width / have_width)
    size = (max(height, round(have_height * factor)), max(width, round(have_width * factor)))
    scaled = nn.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[..., top : top + height, left : left + width]
