"""What a checkpoint is, told from its weights and configs and never from its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbridge.engine.image.schedule import Sampler
from sdbridge.errors import SdbridgeError

FAMILIES = ("sd15", "sd21", "sdxl")
_WHAT_WE_READ = "Stable Diffusion 1.5, 2.1 or SDXL"
_INSTEAD = f"what runs is {_WHAT_WE_READ} itself"


@dataclass(frozen=True)
class Detected:
    """Family by structure, the sampler that fits, and the scheduler's config (empty keys: unknown)."""

    family: str
    sampler: Sampler
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    unet: Mapping[str, Any] = field(default_factory=dict)


def detect_folder(root: Path) -> Detected:
    """Read the configs of a diffusers-layout folder. Raises SDB-MODEL-FAMILY for anything else."""
    unet = read_config(root / "unet" / "config.json")
    if unet is None:
        raise SdbridgeError("SDB-MODEL-FAMILY", f"{root.name} is no {_WHAT_WE_READ}: {_what_is(root)}")
    scheduler = read_config(root / "scheduler" / "scheduler_config.json") or {}
    return Detected(family_of(unet, root.name), sampler_of(scheduler, unet), scheduler, unet)


def read_config(path: Path) -> dict[str, Any] | None:
    """A JSON config, or None where there is no file. Raises SDB-MODEL-CORRUPT for no JSON."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SdbridgeError("SDB-MODEL-CORRUPT", f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise SdbridgeError("SDB-MODEL-CORRUPT", f"{path} holds no config")
    return config


def family_of(unet: Mapping[str, Any], name: str) -> str:
    """sdxl has an embedding of sizes, sd21 linear projections around its attention, sd15 neither."""
    kind = unet.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise SdbridgeError("SDB-MODEL-FAMILY", f"{name} holds a {kind}, not the UNet of {_WHAT_WE_READ}")
    check_channels(unet, name)
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    if unet.get("addition_embed_type") or unet.get("encoder_hid_dim_type"):
        raise SdbridgeError(
            "SDB-MODEL-FAMILY",
            f"{name} has a UNet with {unet.get('addition_embed_type') or unet.get('encoder_hid_dim_type')} "
            f"embeddings, not that of {_WHAT_WE_READ}",
        )
    return "sd21" if unet.get("use_linear_projection") else "sd15"


def check_channels(unet: Mapping[str, Any], name: str) -> None:
    """Raise SDB-MODEL-FAMILY for a UNet that wants more than a latent, or a masked one, to work on."""
    out, given = int(unet.get("out_channels", 4)), int(unet.get("in_channels", 4))
    if given not in (out, 2 * out + 1):
        uses = {2 * out: " (InstructPix2Pix edits by order)", out + 1: " (it wants a depth map)"}.get(
            given, ""
        )
        raise SdbridgeError(
            "SDB-MODEL-FAMILY",
            f"{name} has a UNet that takes {given} channels{uses}; "
            f"a picture has {out}, one with a mask {2 * out + 1}",
        )


def sampler_of(scheduler: Mapping[str, Any], unet: Mapping[str, Any]) -> Sampler:
    """The sampler a checkpoint was made for, from its scheduler's config.

    Distilled models of one to four steps ship an Euler scheduler with "trailing" timesteps; models that
    were never distilled do not.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind == "LCMScheduler" or unet.get("time_cond_proj_dim") is not None:
        return "lcm"
    if kind == "TCDScheduler":
        return "tcd"
    if kind.startswith("Euler") and scheduler.get("timestep_spacing") == "trailing":
        return "turbo"
    return "ddim"


def family_of_keys(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    """The family of one file in the LDM layout, from the names and shapes of its tensors.

    Raises SDB-MODEL-FAMILY saying what the file holds instead.
    """
    names = set(keys)
    if "model.diffusion_model.input_blocks.0.0.weight" not in names:
        raise SdbridgeError(
            "SDB-MODEL-FAMILY", f"{name} is no {_WHAT_WE_READ} checkpoint: {what_keys_say(names)}"
        )
    sizes = "model.diffusion_model.label_emb.0.0.weight" in names
    if sizes or any(key.startswith("conditioner.embedders.1.") for key in names):
        return _sdxl(names, name)
    projection = next(
        (k for k in names if k.startswith("model.diffusion_model") and k.endswith("1.proj_in.weight")), ""
    )
    return "sd21" if len(shapes.get(projection, ())) == 2 else "sd15"


def _sdxl(names: set[str], name: str) -> str:
    """SDXL, told from the two relatives that also know sizes or embeddings of pictures.

    SDXL has no attention at its first level; its refiner has only the second of its text encoders.
    """
    if any(key.startswith("model.diffusion_model.input_blocks.1.1.") for key in names):
        raise SdbridgeError(
            "SDB-MODEL-FAMILY", f"{name} is an SD 2.1 unCLIP, which varies pictures: {_INSTEAD}"
        )
    second = any(key.startswith("conditioner.embedders.1.") for key in names)
    if not second and any(key.startswith("conditioner.embedders.0.model.") for key in names):
        raise SdbridgeError("SDB-MODEL-FAMILY", f"{name} is SDXL's refiner: {_INSTEAD}")
    return "sdxl"


def what_keys_say(keys: set[str]) -> str:
    """A guess at what a file is that we cannot run, for the error's reader."""
    signs = (
        (
            ("lora_", ".lora_A", ".lora_down", ".lora.down"),
            "it looks like a LoRA; give it to /sdbridge/lora/1/file",
        ),
        (
            ("control_model.", "controlnet_", "zero_convs."),
            "it looks like a ControlNet; give it to /sdbridge/controlnet/1/model",
        ),
        (("image_proj.", "ip_adapter."), "it looks like an IP-Adapter; give it to /sdbridge/style_model"),
        (("double_blocks.", "model.diffusion_model.double_blocks."), "it looks like Flux"),
        (("joint_blocks.", "model.diffusion_model.joint_blocks."), "it looks like Stable Diffusion 3"),
        (("down_blocks.", "up_blocks."), "it holds only a UNet; give the whole checkpoint"),
        (("first_stage_model.", "encoder.down", "decoder.up"), "it holds only a VAE"),
    )
    for prefixes, sentence in signs:
        if any(
            part in key if part.startswith(".") else key.startswith(part) for key in keys for part in prefixes
        ):
            return sentence
    some = ", ".join(sorted(keys)[:2])
    return f"its {len(keys)} tensors are unknown, first {some}" if keys else "it holds no tensors"


def _what_is(root: Path) -> str:
    index = read_config(root / "model_index.json")
    if index is not None:
        return f"its model_index.json says {index.get('_class_name', 'nothing')}"
    files = sorted(path.name for path in root.iterdir())[:4] if root.is_dir() else []
    return f"it has no unet/config.json (found {', '.join(files) or 'nothing'})"
