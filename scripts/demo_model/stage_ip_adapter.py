"""Stage: train an IP-Adapter and its small image encoder on the frozen pipeline.

The reference is a crop of a picture in the wanted colours, the caption leaves the colours out: what
the adapter can learn is to take the palette from the reference.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from scripts.demo_model.critique import coarse_error, descend_judged, judge_of, trained_critic
from scripts.demo_model.painted import (
    Frozen,
    PaintedScenes,
    any_start,
    load_frozen,
    load_painted,
    one_step,
    side_times,
    train_side,
)
from scripts.demo_model.progress import Progress, autocast, load_averaged
from scripts.demo_model.sampling import sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.stepping import Losses

TOKENS = 4
HALVES = 16  # latents: colours are held over each quarter of the picture, not where they lie
SIDE = 64  # of the image encoder's input
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build_image_encoder(s: Settings) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            projection_dim=s.text_width,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=16,
            attn_implementation="eager",
        )
    )


def cross_attentions(frozen: Frozen) -> list[tuple[str, nn.Module]]:
    """The UNet's cross-attention layers and their processors' names, in diffusers' order."""
    names = [name for name in frozen.unet.attn_processors if "attn2" in name]
    return [(name, frozen.unet.get_submodule(name.removesuffix(".processor"))) for name in names]


class Adapter(nn.Module):
    """The image encoder, the projection to tokens, and a key and a value matrix for each cross-attention."""

    def __init__(self, s: Settings, frozen: Frozen) -> None:
        super().__init__()
        self.encoder = build_image_encoder(s)
        self.project = ImageProjection(s.text_width, s.text_width, TOKENS)
        self.processors = nn.ModuleList()
        for _, layer in cross_attentions(frozen):
            mine = IPAdapterAttnProcessor(layer.inner_dim, s.text_width, num_tokens=(TOKENS,), scale=1.0)
            mine.to_k_ip[0].weight.data.copy_(layer.to_k.weight.data)
            mine.to_v_ip[0].weight.data.copy_(layer.to_v.weight.data * 0.1)
            self.processors.append(mine)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.take_over(frozen)

    def take_over(self, frozen: Frozen) -> None:
        """From now on the frozen UNet works with this adapter, as after diffusers' load_ip_adapter."""
        chosen = dict(frozen.unet.attn_processors)
        for (name, _), mine in zip(cross_attentions(frozen), self.processors, strict=True):
            chosen[name] = mine
        frozen.unet.set_attn_processor(chosen)
        frozen.unet.encoder_hid_proj = MultiIPAdapterImageProjection([self.project])
        frozen.unet.config.encoder_hid_dim_type = "ip_image_proj"

    def embed(self, small: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, 64, 64] in 0..1 to image embeddings [n, 1, width]."""
        return self.encoder((small - self.mean) / self.deviation).image_embeds[:, None]


def references(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures 0..1 as the image encoder takes them, as bytes: whole, and a quarter of each."""
    side = pictures.shape[-1] // 2
    top, left = (int(torch.randint(side + 1, (1,))) for _ in range(2))
    quarter = pictures[..., top : top + side, left : left + side]
    small = [
        F.interpolate(p, size=(SIDE, SIDE), mode="bilinear", antialias=True) for p in (pictures, quarter)
    ]
    return (torch.stack(small, 1).clamp(0, 1) * 255).round().to(torch.uint8)


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)
    scenes = load_painted(s, frozen.vae, references)
    adapter = Adapter(s, frozen).to(s.device)
    progress = Progress(s, "ip_adapter", {"adapter": adapter}, s.side_steps, 8e-4)
    torch.manual_seed(s.seed * 41 + progress.step)
    judge = judge_of(s, "critic_ip_adapter", trained_critic(s), s.side_steps)
    train_side(progress, judge, partial(train_once, frozen, scenes, progress, judge, s), deadline, s)
    sheet(progress.averaged["adapter"], frozen, scenes, s)
    return progress.finished


def train_once(
    frozen: Frozen, scenes: PaintedScenes, progress: Progress, judge: Progress, s: Settings
) -> Losses:
    """The reference is the wanted picture, or a part of it; its colours are not in the caption."""
    rows, which = scenes.choose(s.side_batch)
    part = torch.randint(2, (len(rows),), device=s.device)
    reference = scenes.made[rows, which, part].float() / 255
    with autocast(s):
        embeds = progress.modules["adapter"].embed(reference)
    ids = scenes.ids(frozen.bank, rows, which, palettes=False)
    start, t = any_start(scenes, rows, which), side_times(len(rows), s)
    conditions = {"image_embeds": [embeds[:, None]]}
    wanted = scenes.targets(rows, which)
    clean = one_step(frozen, start, ids, t, s, added_cond_kwargs=conditions)
    held = coarse_error(clean, wanted, HALVES)
    return descend_judged(progress, judge, clean, held, scenes.drawn(rows, which, wanted), s)


@torch.no_grad()
def sheet(averaged: Adapter, frozen: Frozen, scenes: PaintedScenes, s: Settings) -> None:
    """References over the one-step pictures that they colour."""
    adapter = averaged.to(s.device).float()
    adapter.take_over(frozen)
    pictures = scenes.pictures[:, 1].float() / 255
    prompts = ["fire", "marble", "honeycomb", "ocean", "brick", "zebra", "ice", "grass"][: len(pictures)]
    text = frozen.captions.embed(frozen.text, prompts)
    embeds = adapter.embed(references(pictures)[:, 0].float() / 255)
    conditions = {"image_embeds": [embeds[:, None]]}
    rows = [pictures]
    for steps in ((999,), (999, 499)):
        made = sample(
            frozen.unet, text, steps, torch.Generator().manual_seed(1), added_cond_kwargs=conditions
        )
        rows.append(frozen.vae.decode(made).sample / 2 + 0.5)
    save_sheet(rows, s.sheets / "ip_adapter.png", scale=0.5)


def export(s: Settings, frozen: Frozen, target: Path) -> bool:
    """`ip_adapter/` in the layout of h94/IP-Adapter: the weights and `image_encoder/` beside them."""
    adapter = Adapter(s, frozen)
    if not load_averaged(s, "ip_adapter", "adapter", adapter):
        return False
    tensors = {f"image_proj.{k}": v for k, v in _original_names(adapter.project).items()}
    for index, processor in enumerate(adapter.processors):
        # the original numbers all attention layers, self and cross; the cross ones are odd
        tensors[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        tensors[f"ip_adapter.{2 * index + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    target.mkdir(parents=True, exist_ok=True)
    halved = {k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}
    save_file(halved, target / "ip_adapter.safetensors")
    adapter.encoder.half().cpu().save_pretrained(target / "image_encoder", safe_serialization=True)
    return True


def _original_names(project: ImageProjection) -> dict[str, torch.Tensor]:
    names = {"image_embeds.": "proj.", "norm.": "norm."}
    return {names[k.split(".")[0] + "."] + k.split(".", 1)[1]: v for k, v in project.state_dict().items()}
