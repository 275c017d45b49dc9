"""Which attention runs: PyTorch's own (flash, cuDNN, or plain), or xFormers' where it is asked for and here?

``auto`` is PyTorch's own, which is what we measured: it has the same flash kernels, and cuDNN's beside them.
xFormers is taken where the configuration says ``engine: {attention: xformers}``; a shape that it refuses
runs by PyTorch's, which is said once. Used by the packed passes (``unet_ops.py``, ``kernels/unet.py``), by
the feature bank, and as a processor on the UNet's own modules where those run.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.errors import first_line

log = logging.getLogger(__name__)

#: Query ``[B, M, heads, width]``, key and value ``[B, N, heads, width]`` -> ``[B, M, heads, width]``.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def pytorch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's choice among its kernels for this card, dtype and shape."""
    seen = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return seen.transpose(1, 2)


class XformersAttention:
    """xFormers' ``memory_efficient_attention``; PyTorch's for the shapes that it refuses."""

    def __init__(self, ops: Any) -> None:
        self._attend = ops.memory_efficient_attention
        self._refused: set[tuple[object, ...]] = set()

    def attempt(self, tokens: Tensor) -> None:
        """Raises what xFormers raises at them."""
        self._attend(tokens, tokens, tokens)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = (*query.shape, key.shape[1], query.dtype)
        if shape not in self._refused:
            try:
                found: Tensor = self._attend(query, key, value)
                return found
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
                if not self._refused:
                    log.warning(
                        "xFormers refuses %s: %s; PyTorch's attention runs there", shape, first_line(error)
                    )
                self._refused.add(shape)
        return pytorch_attention(query, key, value)


def _blank(device: torch.device) -> Tensor:
    """Tokens as every UNet has them: 64 wide, in half."""
    return torch.zeros(1, 16, 1, 64, dtype=torch.float16, device=device)


def choose_attention(choice: str, device: torch.device) -> tuple[Attend, str]:
    """The attention for ``auto``, ``pytorch`` or ``xformers``, and a line that says which and why."""
    if choice != "xformers":
        return pytorch_attention, ""
    why = ""
    if device.type != "cuda":
        why = f"it needs CUDA, and the model runs on {device.type}"
    else:
        try:
            ops = importlib.import_module("xformers.ops")
            attention = XformersAttention(ops)
            attention.attempt(_blank(device))  # it imports without its kernels too, made for another torch
            version = getattr(importlib.import_module("xformers"), "__version__", "of unknown version")
            return attention, f"attention by xFormers {version}"
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            why = f"{type(error).__name__}: {first_line(error)[:200]}"
    log.warning("xFormers cannot be used: %s; PyTorch's attention runs instead", why)
    return pytorch_attention, f"xFormers cannot be used ({why}); PyTorch's attention runs instead"


class ChosenAttention:
    """A processor for diffusers' attention modules in their plain form, with an attention of our choice."""

    graph_safe = True

    def __init__(self, attend: Attend, former: Any) -> None:
        self._attend = attend
        self.former = former  # for what plain attention is not

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *arguments: Any,
        **keywords: Any,
    ) -> Tensor:
        """``hidden_states`` ``[rows, N, width]`` -> the same shape."""
        if attention_mask is not None or hidden_states.ndim != 3 or _unusual(attn):
            found: Tensor = self.former(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *arguments, **keywords
            )
            return found
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(given).unflatten(-1, (attn.heads, -1))
            for layer, given in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        return attn.to_out[1](attn.to_out[0](self._attend(query, key, value).flatten(2)))


def _unusual(attn: Any) -> bool:
    parts = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    return any(part is not None and part is not False for part in parts) or (
        bool(attn.residual_connection) or attn.rescale_output_factor != 1.0
    )


def put_on(network: Any, attend: Attend) -> None:
    """Have the network's own attention modules run by ``attend``; nothing changes for PyTorch's."""
    if attend is pytorch_attention:
        return
    for module in network.modules():
        processor = getattr(module, "processor", None)
        if type(processor).__name__ in ("AttnProcessor", "AttnProcessor2_0"):
            module.processor = ChosenAttention(attend, processor)
