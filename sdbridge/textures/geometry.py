"""How a picture is turned, mirrored, scaled and given its alpha, for every texture in the same way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from sdbridge.frame import check_pixels

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

FitMode = Literal["fill", "fit", "stretch", "native"]

# Above this many pixels one core is too slow for 60 fps; two are worth waking.
_MANY_PIXELS = 1_000_000

# libswscale's tables belong to one thread.
_scalers = threading.local()


class Geometry(Protocol):
    """The part of a texture's configuration that is about shape (config.TextureConfig has it)."""

    @property
    def fit(self) -> FitMode: ...
    @property
    def flip_horizontal(self) -> bool: ...
    @property
    def flip_vertical(self) -> bool: ...
    @property
    def rotate(self) -> int: ...
    @property
    def swap_red_blue(self) -> bool: ...
    @property
    def alpha(self) -> Literal["keep", "opaque", "input"]: ...


def fit_frame(
    pixels: np.ndarray,
    width: int,
    height: int,
    texture_config: Geometry,
    alpha_from: np.ndarray | None = None,
) -> np.ndarray:
    """``pixels`` as uint8 RGBA of ``width`` x ``height``, C-contiguous.

    The order is: mirror, turn clockwise, scale, swap red and blue, alpha. ``fill`` covers all and crops
    what hangs over, ``fit`` shows all between opaque black bars, ``stretch`` ignores the shape,
    ``native`` never scales: it centres, crops and adds bars. A width or height of 0 means the
    turned picture's own. ``alpha_from`` is the picture whose alpha is taken for ``alpha: input``.
    When nothing is to be done the same array comes back, uncopied. Raises SDB-FRAME-FORMAT.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or 0 in pixels.shape:
        check_pixels(pixels)
    quarter_turns = texture_config.rotate // 90 % 4
    source_height, source_width = pixels.shape[:2]
    if quarter_turns % 2:
        source_height, source_width = source_width, source_height
    if width <= 0 or height <= 0:
        width, height = source_width, source_height

    # Scaling first and turning the small picture is the same as the other way round, and cheaper
    # when the source is large. So the wanted shape is turned back into the source's directions.
    turned = (height, width) if quarter_turns % 2 else (width, height)
    fitted = _scale(pixels, turned[0], turned[1], texture_config.fit)
    rows = slice(None, None, -1) if texture_config.flip_vertical else slice(None)
    columns = slice(None, None, -1) if texture_config.flip_horizontal else slice(None)
    if texture_config.flip_vertical or texture_config.flip_horizontal or quarter_turns:
        # Whole pixels as one number each: moving them is then four times cheaper.
        whole = _as_words(fitted)[rows, columns]
        whole = np.ascontiguousarray(np.rot90(whole, -quarter_turns))
        fitted = whole.view(np.uint8).reshape(height, width, 4)
    if texture_config.swap_red_blue:
        fitted = swap_red_and_blue(fitted)
    if not fitted.flags.c_contiguous:
        fitted = np.ascontiguousarray(fitted)
    return _with_alpha(fitted, pixels, texture_config.alpha, alpha_from)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """``pixels`` (its rows may be a cut-out of wider ones) scaled to exactly ``width`` x ``height``.

    A source of more than twice the wanted size is thinned out first, so that 8K costs about as
    much as 1080p; what is left is averaged by area.
    """
    if pixels.shape[1] == width and pixels.shape[0] == height:
        return pixels
    from av import VideoFrame  # here and below: 60 ms that nobody waits for who has nothing to scale
    from av.video.reformatter import Interpolation

    thin = min(pixels.shape[1] // (2 * width), pixels.shape[0] // (2 * height))
    if thin >= 2:
        words = _as_words(pixels)[thin // 2 :: thin, thin // 2 :: thin]
        pixels = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    shrinks = pixels.shape[1] >= width and pixels.shape[0] >= height
    many = max(pixels.shape[0] * pixels.shape[1], width * height) > _MANY_PIXELS
    scaled = scaler().reformat(
        VideoFrame.from_numpy_buffer(_with_dense_rows(pixels), "rgba"),
        width=width,
        height=height,
        format="rgba",
        interpolation=Interpolation.AREA if shrinks else Interpolation.BILINEAR,
        threads=2 if many else 1,
    )
    return np.asarray(scaled.to_ndarray())


def swap_red_and_blue(pixels: np.ndarray) -> np.ndarray:
    """BGRA as RGBA or the other way round: a new array, in a twelfth of the time that numpy takes."""
    from av import VideoFrame

    frame = VideoFrame.from_numpy_buffer(_with_dense_rows(pixels), "bgra")
    return np.asarray(scaler().reformat(frame, format="rgba", threads=1).to_ndarray())


def with_even_sides(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` with the last row or column doubled where a side is odd, for 4:2:0 and 4:2:2 transports."""
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def scaler() -> VideoReformatter:
    """This thread's own scaler and converter of formats; a new one for each frame would cost too much."""
    kept: VideoReformatter | None = getattr(_scalers, "kept", None)
    if kept is None:
        from av.video.reformatter import VideoReformatter

        kept = _scalers.kept = VideoReformatter()
    return kept


def _scale(pixels: np.ndarray, width: int, height: int, fit: FitMode) -> np.ndarray:
    """The picture at the wanted size, in the source's own orientation; may be a view of it."""
    source_height, source_width = pixels.shape[:2]
    if (source_width, source_height) == (width, height):
        return pixels
    if fit == "stretch":
        return resize(pixels, width, height)
    if fit == "fill":
        # The largest cut-out of the wanted shape, from the middle.
        cut_width = min(source_width, max(1, round(source_height * width / height)))
        cut_height = min(source_height, max(1, round(source_width * height / width)))
        return resize(_middle(pixels, cut_width, cut_height), width, height)
    if fit == "fit":
        scale = min(width / source_width, height / source_height)
        shown_width = min(width, max(1, round(source_width * scale)))
        shown_height = min(height, max(1, round(source_height * scale)))
        shown = resize(pixels, shown_width, shown_height)
    else:
        shown = _middle(pixels, min(width, source_width), min(height, source_height))
    return _on_black(shown, width, height)


def _middle(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    top = (pixels.shape[0] - height) // 2
    left = (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _on_black(shown: np.ndarray, width: int, height: int) -> np.ndarray:
    """``shown`` in the middle of opaque black; itself if it covers all."""
    shown_height, shown_width = shown.shape[:2]
    if (shown_width, shown_height) == (width, height):
        return shown
    canvas = np.zeros((height, width, 4), np.uint8)
    canvas[..., 3] = 255
    _middle(canvas, shown_width, shown_height)[...] = shown
    return canvas


def _with_alpha(
    fitted: np.ndarray,
    source: np.ndarray,
    alpha: Literal["keep", "opaque", "input"],
    alpha_from: np.ndarray | None,
) -> np.ndarray:
    if alpha == "keep" or (alpha == "input" and alpha_from is None):
        return fitted
    if np.shares_memory(fitted, source):
        fitted = fitted.copy()  # the caller's picture is not ours to change
    if alpha == "opaque" or alpha_from is None:
        fitted[..., 3] = 255
    else:
        height, width = fitted.shape[:2]
        fitted[..., 3] = resize(alpha_from, width, height)[..., 3]
    return fitted


def _as_words(pixels: np.ndarray) -> np.ndarray:
    """uint32 ``[H, W]`` on the same memory: one number a pixel."""
    return _with_dense_rows(pixels).view(np.uint32)[..., 0]


def _with_dense_rows(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` with neighbouring pixels side by side and rows downwards, copied only if they are not."""
    row_step, pixel_step, byte_step = pixels.strides
    if byte_step == 1 and pixel_step == 4 and row_step >= 4 * pixels.shape[1]:
        return pixels
    return np.ascontiguousarray(pixels)
