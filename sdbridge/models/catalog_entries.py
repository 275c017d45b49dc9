"""The models that sdbridge knows by a short id: where they are, how large, under which licence, for what.

A table; what is asked of it is in ``catalog.py``. Sizes are rounded and only for the list: ``download.plan``
asks the hub for the exact ones before anything is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["checkpoint", "lora", "vae", "controlnet", "style", "preprocessor", "parts"]

MEGABYTE = 10**6

_CONFIGS = ("model_index.json", "scheduler/*.json", "tokenizer/*")
_SD_FP16 = (
    *_CONFIGS,
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
_SDXL_FP16 = (
    *_SD_FP16,
    "tokenizer_2/*",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
)
_PARTS = (
    "scheduler/*.json",
    "tokenizer/*",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)


@dataclass(frozen=True)
class CatalogEntry:
    """One model. ``files`` are patterns inside ``repo``; ``fits`` families; ``needs`` other ids.

    ``main_file`` is what to name in a config where one file is wanted (a LoRA); empty: the folder.
    """

    id: str
    kind: Kind
    repo: str
    files: tuple[str, ...]
    size_bytes: int
    licence: str
    summary: str
    fits: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    main_file: str = ""


ENTRIES: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        "sd-turbo",
        "checkpoint",
        "stabilityai/sd-turbo",
        _SD_FP16,
        2580 * MEGABYTE,
        "Stability AI Community",
        "one to four steps, 512x512, the fastest",
        ("sd21",),
        ("taesd",),
    ),
    CatalogEntry(
        "sdxl-turbo",
        "checkpoint",
        "stabilityai/sdxl-turbo",
        _SDXL_FP16,
        6940 * MEGABYTE,
        "Stability AI Community",
        "one to four steps, finer than sd-turbo, 512x512",
        ("sdxl",),
        ("taesdxl",),
    ),
    CatalogEntry(
        "sd15",
        "checkpoint",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        _SD_FP16,
        2130 * MEGABYTE,
        "CreativeML OpenRAIL-M",
        "Stable Diffusion 1.5; live with lcm-lora-sd15 and the lcm scheduler",
        ("sd15",),
        ("taesd", "lcm-lora-sd15"),
    ),
    CatalogEntry(
        "dreamshaper-lcm",
        "checkpoint",
        "SimianLuo/LCM_Dreamshaper_v7",
        (
            *_CONFIGS,
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ),
        4270 * MEGABYTE,
        "MIT",
        "Dreamshaper 7 distilled to two to eight steps, no LoRA needed",
        ("sd15",),
        ("taesd",),
    ),
    CatalogEntry(
        "taesd",
        "vae",
        "madebyollin/taesd",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        10 * MEGABYTE,
        "MIT",
        "tiny VAE for Stable Diffusion 1.5 and 2.1",
        ("sd15", "sd21"),
    ),
    CatalogEntry(
        "taesdxl",
        "vae",
        "madebyollin/taesdxl",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        10 * MEGABYTE,
        "MIT",
        "tiny VAE for SDXL",
        ("sdxl",),
    ),
    CatalogEntry(
        "lcm-lora-sd15",
        "lora",
        "latent-consistency/lcm-lora-sdv1-5",
        ("pytorch_lora_weights.safetensors",),
        135 * MEGABYTE,
        "CreativeML OpenRAIL++-M",
        "makes any SD 1.5 checkpoint run in two to eight steps",
        ("sd15",),
        main_file="pytorch_lora_weights.safetensors",
    ),
    CatalogEntry(
        "lcm-lora-sdxl",
        "lora",
        "latent-consistency/lcm-lora-sdxl",
        ("pytorch_lora_weights.safetensors",),
        394 * MEGABYTE,
        "CreativeML OpenRAIL++-M",
        "makes any SDXL checkpoint run in two to eight steps",
        ("sdxl",),
        main_file="pytorch_lora_weights.safetensors",
    ),
    CatalogEntry(
        "hyper-sd15-1step",
        "lora",
        "ByteDance/Hyper-SD",
        ("Hyper-SD15-1step-lora.safetensors",),
        269 * MEGABYTE,
        "see the model's page",
        "one step on SD 1.5 checkpoints, with the tcd scheduler",
        ("sd15",),
        main_file="Hyper-SD15-1step-lora.safetensors",
    ),
    CatalogEntry(
        "sd15-parts",
        "parts",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        _PARTS,
        2 * MEGABYTE,
        "CreativeML OpenRAIL-M",
        "tokenizer and configs that a single-file SD 1.5 checkpoint lacks",
        ("sd15",),
        ("taesd",),
    ),
    CatalogEntry(
        "sd21-parts",
        "parts",
        "stabilityai/sd-turbo",
        _PARTS,
        2 * MEGABYTE,
        "Stability AI Community",
        "tokenizer and configs that a single-file SD 2.1 checkpoint lacks",
        ("sd21",),
        ("taesd",),
    ),
    CatalogEntry(
        "sdxl-parts",
        "parts",
        "stabilityai/sdxl-turbo",
        (*_PARTS, "tokenizer_2/*", "text_encoder_2/config.json"),
        4 * MEGABYTE,
        "Stability AI Community",
        "tokenizers and configs that a single-file SDXL checkpoint lacks",
        ("sdxl",),
        ("taesdxl",),
    ),
    CatalogEntry(
        "controlnet-canny-sd15",
        "controlnet",
        "lllyasviel/control_v11p_sd15_canny",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        723 * MEGABYTE,
        "OpenRAIL",
        "edges bind the picture, SD 1.5",
        ("sd15",),
    ),
    CatalogEntry(
        "controlnet-depth-sd15",
        "controlnet",
        "lllyasviel/control_v11f1p_sd15_depth",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        723 * MEGABYTE,
        "OpenRAIL",
        "depth binds the picture, SD 1.5",
        ("sd15",),
        ("depth-anything-small",),
    ),
    CatalogEntry(
        "controlnet-canny-sd21",
        "controlnet",
        "thibaud/controlnet-sd21-canny-diffusers",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        1457 * MEGABYTE,
        "OpenRAIL",
        "edges bind the picture, SD 2.1 and SD-Turbo",
        ("sd21",),
    ),
    CatalogEntry(
        "controlnet-canny-sdxl",
        "controlnet",
        "diffusers/controlnet-canny-sdxl-1.0-small",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        320 * MEGABYTE,
        "CreativeML OpenRAIL++-M",
        "edges bind the picture, SDXL, the small variant",
        ("sdxl",),
    ),
    CatalogEntry(
        "controlnet-softedge-sd15",
        "controlnet",
        "lllyasviel/control_v11p_sd15_softedge",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        723 * MEGABYTE,
        "OpenRAIL",
        "soft edges bind the picture, SD 1.5; with HED (softedge_model: hed) or without",
        ("sd15",),
    ),
    CatalogEntry(
        "controlnet-depth-sdxl",
        "controlnet",
        "diffusers/controlnet-depth-sdxl-1.0-small",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        320 * MEGABYTE,
        "CreativeML OpenRAIL++-M",
        "near and far bind the picture, SDXL, the small variant",
        ("sdxl",),
        ("depth-anything-small",),
    ),
    CatalogEntry(
        "t2i-adapter-sketch-sdxl",
        "controlnet",
        "TencentARC/t2i-adapter-sketch-sdxl-1.0",
        ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        158 * MEGABYTE,
        "Apache-2.0",
        "strokes (preprocessor scribble) bind the picture, SDXL; a T2I-Adapter, cheaper than a ControlNet",
        ("sdxl",),
    ),
    CatalogEntry(
        "hed",
        "preprocessor",
        "lllyasviel/Annotators",
        ("ControlNetHED.pth",),  # published as a pickle only: rewritten as safetensors when pulled
        29 * MEGABYTE,
        "Apache-2.0",
        "soft edges by the HED network (softedge_model: hed)",
        main_file="ControlNetHED.safetensors",
    ),
    CatalogEntry(
        "depth-anything-small",
        "preprocessor",
        "depth-anything/Depth-Anything-V2-Small-hf",
        ("config.json", "preprocessor_config.json", "model.safetensors"),
        100 * MEGABYTE,
        "Apache-2.0",
        "depth from a picture, for the depth ControlNets",
    ),
    CatalogEntry(
        "ip-adapter-sd15",
        "style",
        "h94/IP-Adapter",
        (
            "models/ip-adapter_sd15.safetensors",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        ),
        2575 * MEGABYTE,
        "Apache-2.0",
        "style from pictures, SD 1.5",
        ("sd15",),
        main_file="models/ip-adapter_sd15.safetensors",
    ),
    CatalogEntry(
        "ip-adapter-plus-sd15",
        "style",
        "h94/IP-Adapter",
        (
            "models/ip-adapter-plus_sd15.safetensors",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        ),
        2630 * MEGABYTE,
        "Apache-2.0",
        "style from pictures, closer to them, SD 1.5",
        ("sd15",),
        main_file="models/ip-adapter-plus_sd15.safetensors",
    ),
    CatalogEntry(
        "ip-adapter-sdxl",
        "style",
        "h94/IP-Adapter",
        (
            "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        ),
        3227 * MEGABYTE,
        "Apache-2.0",
        "style from pictures, SDXL",
        ("sdxl",),
        main_file="sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
    ),
    CatalogEntry(
        "ip-adapter-plus-sdxl",
        "style",
        "h94/IP-Adapter",
        (
            "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        ),
        3376 * MEGABYTE,
        "Apache-2.0",
        "style from pictures, closer to them, SDXL",
        ("sdxl",),
        main_file="sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
    ),
)
