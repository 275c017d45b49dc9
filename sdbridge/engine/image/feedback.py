"""Latent feedback: the last picture taken into the next input, in clean space, without drift."""

from __future__ import annotations

from torch import Tensor


def feed_back(source: Tensor, previous: Tensor | None, share: float) -> Tensor:
    """z' = (1 - f) z + f x0_previous, brought back to z's mean and contrast per channel (section 2.9).

    All ``[F, 4, h, w]``, clean. Blending before noising leaves the noise level what the model expects,
    and blending two pictures lowers contrast, so mean and standard deviation are matched to the input's.
    With ``share`` 0, or nothing to feed back, ``source`` itself is returned.
    """
    if share <= 0.0 or previous is None or previous.shape[1:] != source.shape[1:]:
        return source
    # Half precision may overflow for a frame; fed back, its NaN would stay for ever.
    last = previous[-1:].nan_to_num(0.0, 0.0, 0.0)
    mixed = source + share * (last - source)
    wanted_mean, wanted_std = source.mean((2, 3), keepdim=True), source.std((2, 3), keepdim=True)
    mean, std = mixed.mean((2, 3), keepdim=True), mixed.std((2, 3), keepdim=True)
    return (mixed - mean) * (wanted_std / std.clamp_min(1e-6)) + wanted_mean
