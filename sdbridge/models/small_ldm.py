"""From diffusers' names to the original LDM names, which community ``.safetensors`` files use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def to_ldm_layout(parts: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint (UNet, VAE, text encoders) under their LDM names."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in _unet(parts["unet"]):
        tensors["model.diffusion_model." + name] = tensor
    for name, tensor in _vae(parts["vae"]):
        tensors["first_stage_model." + name] = tensor
    text = {_bare(key): value for key, value in parts["text_encoder"].state_dict().items()}
    if family == "sd21":
        for name, tensor in _open_clip(text):
            tensors["cond_stage_model.model." + name] = tensor
    else:
        prefix = "conditioner.embedders.0" if family == "sdxl" else "cond_stage_model"
        for name, tensor in text.items():
            tensors[f"{prefix}.transformer.text_model.{name}"] = tensor
    if "text_encoder_2" in parts:
        second = {_bare(key): value for key, value in parts["text_encoder_2"].state_dict().items()}
        for name, tensor in _open_clip(second):
            tensors["conditioner.embedders.1.model." + name] = tensor
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _bare(key: str) -> str:
    return key.removeprefix("text_model.")


def _unet(unet: Any) -> Iterator[tuple[str, Tensor]]:
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    names: Any = DIFFUSERS_TO_LDM_MAPPING["unet"]
    top = names["layers"] | names["addition_embed_type"]
    per_block = unet.config.layers_per_block + 1
    for key, tensor in unet.state_dict().items():
        if key in top:
            yield top[key], tensor
            continue
        side, number, kind, layer, rest = _split_block(key)
        yield f"{_unet_place(unet, side, number, kind, layer, per_block)}.{_unet_leaf(kind, rest)}", tensor


def _split_block(key: str) -> tuple[str, int, str, int, str]:
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)
    if found:
        return found[1], int(found[2]), found[3], int(found[4]), found[5]
    found = re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", key)
    assert found is not None, key
    return "mid", 0, found[1], int(found[2]), found[3]


def _unet_place(unet: Any, side: str, number: int, kind: str, layer: int, per_block: int) -> str:
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}"
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(number + 1) * per_block}.0"
        return f"input_blocks.{number * per_block + layer + 1}.{1 if kind == 'attentions' else 0}"
    if kind == "upsamplers":
        attends = hasattr(unet.up_blocks[number], "attentions")
        return f"output_blocks.{number * per_block + per_block - 1}.{2 if attends else 1}"
    return f"output_blocks.{number * per_block + layer}.{1 if kind == 'attentions' else 0}"


def _unet_leaf(kind: str, rest: str) -> str:
    if kind == "downsamplers":
        return rest.replace("conv.", "op.")
    if kind == "resnets":
        first, _, last = rest.partition(".")
        return f"{_RESNET[first]}.{last}"
    return rest


def _vae(vae: Any) -> Iterator[tuple[str, Tensor]]:
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    top: Any = DIFFUSERS_TO_LDM_MAPPING["vae"]
    last = len(vae.config.up_block_types) - 1
    for key, tensor in vae.state_dict().items():
        if key in top:
            yield top[key], tensor
            continue
        name = key.replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{last - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            name,
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in _VAE_ATTENTION.items():
                name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        yield name, tensor


def _open_clip(text: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    from torch import cat

    for key, tensor in text.items():
        if key in _OPEN_CLIP_TOP:
            yield _OPEN_CLIP_TOP[key], tensor
        elif key == "text_projection.weight":
            yield "text_projection", tensor.T
        elif ".q_proj." in key:
            joined = cat([tensor, *(text[key.replace("q_proj", part)] for part in ("k_proj", "v_proj"))])
            place = key.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn")
            yield (
                place.replace("q_proj.weight", "in_proj_weight").replace("q_proj.bias", "in_proj_bias"),
                joined,
            )
        elif ".k_proj." not in key and ".v_proj." not in key:
            name = key.replace("encoder.layers.", "transformer.resblocks.")
            for ours, theirs in _OPEN_CLIP_LAYER.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            if "position_ids" not in name:
                yield name, tensor
