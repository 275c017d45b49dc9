"""Stage: write the trained parts in the diffusers layout, fp16 safetensors, with their model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import LCMScheduler
from torch import nn

from scripts.demo_model.lora import LoraLayers, save_kohya, save_peft
from scripts.demo_model.networks import (
    SCHEDULE,
    build_controlnet,
    build_text_encoder,
    build_unet,
    build_vae,
    write_vocabulary,
)
from scripts.demo_model.painted import load_frozen
from scripts.demo_model.progress import load_averaged
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_controlnet import KINDS
from scripts.demo_model.stage_ip_adapter import export as export_ip_adapter
from sdbridge.models.embedded_model import EMBEDDED_DIR

LARGEST_MB = 24.0


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    """`variant` is the folder to write into; the package's own one if empty."""
    target = Path(variant) if variant else EMBEDDED_DIR
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = write_vocabulary(s.work / "tokenizer")
    write_tokenizer(s.work / "tokenizer", target / "tokenizer")
    vae, unet = build_vae(s), build_unet(s)
    text = build_text_encoder(s, tokenizer)
    stage = "distill" if (s.checkpoints / "distill.averaged.pt").exists() else "unet"
    for name, module, source in (("vae", vae, "vae"), ("unet", unet, stage), ("text", text, stage)):
        if not load_averaged(s, source, name, module):
            raise SystemExit(f"no trained {name} in the work folder")
    write_module(vae, target / "vae")
    write_module(unet, target / "unet")
    write_module(text, target / "text_encoder")
    LCMScheduler(**SCHEDULE).save_pretrained(target / "scheduler")
    write_index(target)
    write_side_parts(s, target)
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes them private
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 2**20
    print(f"{target}: {size:.1f} MB, diffusion weights of stage {stage}")
    if size > LARGEST_MB:
        raise SystemExit(f"{size:.1f} MB is more than the {LARGEST_MB} MB that the package may hold")
    return True


def write_side_parts(s: Settings, target: Path) -> None:
    """The ControlNets, LoRAs and IP-Adapter that have been trained so far."""
    for kind in KINDS:
        net = build_controlnet(build_unet(s))
        if load_averaged(s, f"controlnet_{kind}", "controlnet", net):
            write_module(net, target / f"controlnet_{kind}")
    for style, save in (("ink", save_kohya), ("glow", save_peft)):
        unet = build_unet(s)
        lora = LoraLayers(unet)
        if load_averaged(s, f"lora_{style}", "lora", lora):
            save(lora, unet, target / "loras" / f"{style}.safetensors")
    if (s.checkpoints / "ip_adapter.averaged.pt").exists():
        export_ip_adapter(s, load_frozen(replace(s, device="cpu")), target / "ip_adapter")


def write_module(module: nn.Module, folder: Path) -> None:
    """Half-precision weights beside the config."""
    halved = module.cpu().to(torch.float16).to(memory_format=torch.contiguous_format)
    halved.save_pretrained(folder, safe_serialization=True)


def write_tokenizer(source: Path, folder: Path) -> None:
    """The two files that define it and its config; the fast tokenizer is made from them when loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(source / name, folder / name)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def write_index(target: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "LCMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
