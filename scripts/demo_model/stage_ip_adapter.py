"""Stage: train an IP-Adapter and its small image encoder on the frozen pipeline.

The reference is a crop of a picture in the wanted colours, the caption leaves the colours out: what
the adapter can learn is to take the palette from the reference.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from scripts.demo_model.painted import Frozen, clean_loss, load_frozen, load_painted, side_times
from scripts.demo_model.progress import Progress, load_averaged
from scripts.demo_model.settings import Settings

TOKENS = 4
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


class Adapter(nn.Module):
    """The image encoder, the projection to tokens, and a key and a value matrix for each cross-attention."""

    def __init__(self, s: Settings, frozen: Frozen) -> None:
        super().__init__()
        self.encoder = build_image_encoder(s)
        self.project = ImageProjection(s.text_width, s.text_width, TOKENS)
        self.processors = nn.ModuleList()
        chosen = {}
        for name, processor in frozen.unet.attn_processors.items():
            if "attn2" not in name:
                chosen[name] = processor
                continue
            layer = frozen.unet.get_submodule(name.removesuffix(".processor"))
            mine = IPAdapterAttnProcessor(layer.inner_dim, s.text_width, num_tokens=(TOKENS,), scale=1.0)
            mine.to_k_ip[0].weight.data.copy_(layer.to_k.weight.data)
            mine.to_v_ip[0].weight.data.copy_(layer.to_v.weight.data * 0.1)
            self.processors.append(mine)
            chosen[name] = mine
        frozen.unet.set_attn_processor(chosen)
        # as diffusers' load_ip_adapter leaves a UNet that takes image embeddings
        frozen.unet.encoder_hid_proj = MultiIPAdapterImageProjection([self.project])
        frozen.unet.config.encoder_hid_dim_type = "ip_image_proj"

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures 0..1 of any size to image embeddings [n, 1, width]."""
        small = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        mean = torch.tensor(MEAN, device=pictures.device).view(1, 3, 1, 1)
        deviation = torch.tensor(DEVIATION, device=pictures.device).view(1, 3, 1, 1)
        return self.encoder((small - mean) / deviation).image_embeds[:, None]


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)
    scenes = load_painted(s, frozen.vae)
    adapter = Adapter(s, frozen).to(s.device)
    progress = Progress(s, "ip_adapter", {"adapter": adapter}, s.side_steps, 1e-3, average=0.99)
    rng = random.Random(s.seed * 41 + progress.step)
    torch.manual_seed(s.seed * 41 + progress.step)
    side = scenes.pictures.shape[-1]
    while progress.go_on(deadline):
        rows, which = scenes.choose(s.batch_large, rng)
        wanted = scenes.targets(rows, which, s.device)
        crop = rng.randrange(side // 2, side)
        top, left = rng.randrange(side - crop + 1), rng.randrange(side - crop + 1)
        reference = scenes.pictures[rows, which][..., top : top + crop, left : left + crop]
        embeds = adapter.embed(reference.to(s.device).float() / 255)
        lines = scenes.captions(rows, which, rng, palettes=False)
        start = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, 1.0, 0.0).to(s.device)
        start = start * scenes.targets(rows, torch.zeros_like(which), s.device)
        conditions = {"image_embeds": [embeds[:, None]]}
        loss = clean_loss(
            frozen, start, wanted, lines, side_times(len(rows), s), s, added_cond_kwargs=conditions
        )
        progress.update(loss)
        progress.note(every=25, loss=loss.detach())
    return progress.finished


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
