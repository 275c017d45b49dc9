"""Which relatives of ControlNets cannot run here: told from their keys, before anything is built."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sdbridge.errors import SdbridgeError

_INSTEAD = "Take a ControlNet of its own weights (diffusers or original layout) or a T2I-Adapter."
#: Words in a key, what the file then is.
_RELATIVES = (
    (("lllite_",), "a ControlNet-LLLite, which changes attention and gives no residuals"),
    (("lora_controlnet",), "a Control-LoRA, which is only a difference from the UNet"),
    (
        ("task_embedding", "control_add_embedding"),
        "a ControlNet Union, which wants to be told the kind of control",
    ),
    (("motion_modules.",), "a SparseCtrl for AnimateDiff"),
    (("controlnet_x_embedder", "double_blocks."), "a ControlNet for Flux"),
    (("pos_embed_input", "joint_blocks."), "a ControlNet for Stable Diffusion 3"),
    (("lora_down.", "lora_A.", ".dora_scale"), "a LoRA; give it to /sdbridge/lora/1/file"),
    (("to_k_ip.",), "an IP-Adapter; give it to /sdbridge/style_model"),
)
#: A T2I-Adapter as its authors published it first, before diffusers' layout.
_FIRST_ADAPTERS = ("body.0.block1.weight", "body.0.in_conv.weight")


def refuse_relatives(path: Path, keys: Collection[str]) -> None:
    """Raise SDB-CONTROLNET-KIND for a file that is near enough to a ControlNet to be taken for one."""
    kind = next(
        (kind for words, kind in _RELATIVES if any(word in key for key in keys for word in words)), ""
    )
    if not kind and "difference" in keys:
        kind = "a ControlNet saved as the difference from a model"
    if not kind and any(key in keys for key in _FIRST_ADAPTERS):
        kind = "a T2I-Adapter in its first layout; the same adapter is published for diffusers"
    if kind:
        raise SdbridgeError("SDB-CONTROLNET-KIND", f"{path} is {kind}", _INSTEAD)
