"""Which tensor of the loaded model a LoRA key means: kohya, LDM, diffusers and PEFT spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdbridge.engine.image.weights import WeightStore

_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
    "in_layers_0": "norm1",
    "out_layers_0": "norm2",
}
_OUTER = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
#: Prefixes of file keys, longest first, and the part of the model they mean.
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder_1",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder_1",
}
_DOTTED = {
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder_1",
    "base_model.model.unet.": "unet",
    "base_model.model.text_encoder_2.": "text_encoder_2",
    "base_model.model.text_encoder.": "text_encoder_1",
    "base_model.model.text_model.": "text_encoder_1",  # PEFT's own folder of a text encoder
    "base_model.model.": "unet",
    "diffusion_model.": "unet",
    "lycoris_": "unet",
}
#: Old diffusers files name the processor's own LoRA layers.
_PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora$")


class TensorNames:
    """Every spelling of the model's modules, built once per model: a key is then a look-up."""

    def __init__(self, store: WeightStore, unet_config: Mapping[str, Any]) -> None:
        self._modules: set[str] = {
            name.removesuffix(".weight") for name in store.names() if name.endswith(".weight")
        }
        self._flat: dict[str, str] = {}
        for module in self._modules:
            part, _, inner = module.partition(".")
            for spelling in _encoder_spellings(inner) if part != "unet" else (inner,):
                self._flat[f"{part}:{spelling.replace('.', '_')}"] = module
        self._flat.update(_ldm_spellings(self._modules, unet_config))

    def find(self, stem: str) -> str | None:
        """The module (``unet.conv_in``) that the key without its ending means; None if there is none."""
        for prefix, part in _KOHYA.items():
            if stem.startswith(prefix):
                return self._flat.get(f"{part}:{stem.removeprefix(prefix)}")
        for prefix, part in _DOTTED.items():
            if stem.startswith(prefix):
                return self._dotted(part, stem.removeprefix(prefix))
        return self._dotted("unet", stem)

    def _dotted(self, part: str, inner: str) -> str | None:
        inner = _PROCESSOR.sub(lambda found: f".{found[1]}", inner)
        if part != "unet":
            inner = re.sub(r"\.to_([qkv])$", r".\1_proj", inner)
            inner = re.sub(r"\.to_out$", ".out_proj", inner)
        inner = re.sub(r"\.to_out$", ".to_out.0", inner)
        return self._flat.get(f"{part}:{inner.replace('.', '_')}")


def _encoder_spellings(inner: str) -> Iterable[str]:
    """transformers 5 dropped the ``text_model.`` that every file still says (not for projected encoders)."""
    short = inner.removeprefix("text_model.")
    return (short, f"text_model.{short}")


def _ldm_spellings(modules: set[str], config: Mapping[str, Any]) -> dict[str, str]:
    """The UNet's modules by their names in the original LDM code, which SDXL files from kohya use."""
    layers = config["layers_per_block"]
    count = len(config["block_out_channels"])
    per_block = layers if isinstance(layers, list | tuple) else [layers] * count
    if len(set(per_block)) != 1:
        return {}
    step = per_block[0] + 1
    ldm: dict[str, str] = {}  # LDM block -> diffusers block
    for block in range(count):
        for layer in range(step - 1):
            at = f"input_blocks_{1 + block * step + layer}"
            ldm[f"{at}_0"] = f"down_blocks.{block}.resnets.{layer}"
            ldm[f"{at}_1"] = f"down_blocks.{block}.attentions.{layer}"
        ldm[f"input_blocks_{(block + 1) * step}_0_op"] = f"down_blocks.{block}.downsamplers.0.conv"
        for layer in range(step):
            at = f"output_blocks_{block * step + layer}"
            ldm[f"{at}_0"] = f"up_blocks.{block}.resnets.{layer}"
            ldm[f"{at}_1"] = f"up_blocks.{block}.attentions.{layer}"
        # The upsampler follows the attention, or stands in its place where there is none.
        last = f"output_blocks_{block * step + step - 1}"
        ldm[f"{last}_2_conv"] = ldm[f"{last}_1_conv"] = f"up_blocks.{block}.upsamplers.0.conv"
    ldm |= {"middle_block_0": "mid_block.resnets.0", "middle_block_1": "mid_block.attentions.0"}
    ldm |= {"middle_block_2": "mid_block.resnets.1"}
    by_diffusers: dict[str, list[str]] = {}
    for old, new in ldm.items():
        by_diffusers.setdefault(new, []).append(old)
    names: dict[str, str] = {f"unet:{old}": f"unet.{new}" for old, new in _OUTER.items()}
    for module in modules:
        inner = module.removeprefix("unet.")
        if inner == module:
            continue
        stem, rest = _split_block(inner)
        for old in by_diffusers.get(stem, ()):
            names[f"unet:{_join(old, rest)}"] = module
    return {spelling: module for spelling, module in names.items() if module in modules}


def _split_block(inner: str) -> tuple[str, str]:
    """``down_blocks.0.resnets.1.conv1`` -> ``down_blocks.0.resnets.1`` and ``conv1``."""
    pieces = inner.split(".")
    if "samplers" in inner:
        return inner, ""
    size = 3 if pieces[0] == "mid_block" else 4
    return ".".join(pieces[:size]), ".".join(pieces[size:])


def _join(old: str, rest: str) -> str:
    for ldm_name, name in _RESNET.items():
        if rest == name:
            return f"{old}_{ldm_name}"
    return f"{old}_{rest.replace('.', '_')}" if rest else old
