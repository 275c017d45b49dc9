"""The networks of the embedded model, built untrained: the classes of the big pipelines, only narrow."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from scripts.demo_model.captions import corpus
from scripts.demo_model.settings import Settings

HEAD_WIDTH = 32
TOKENS = 77
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "timestep_spacing": "leading",
    "original_inference_steps": 50,
}


def build_vae(s: Settings) -> AutoencoderTiny:
    width = (s.vae_channels,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 0, 2, 3),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=s.latent_channels,
        scaling_factor=1.0,
    )


def build_unet(s: Settings) -> UNet2DConditionModel:
    """Plain convolutions at full latent size, cross-attention at the sizes below."""
    deep = len(s.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=s.size // 8,
        in_channels=s.latent_channels,
        out_channels=s.latent_channels,
        block_out_channels=s.unet_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deep,
        up_block_types=("CrossAttnUpBlock2D",) * deep + ("UpBlock2D",),
        cross_attention_dim=s.text_width,
        attention_head_dim=tuple(c // HEAD_WIDTH for c in s.unet_channels),
        norm_num_groups=16,
    )


def train_with_plain_attention(unet: UNet2DConditionModel, device: str) -> None:
    """On a CPU the fused attention's backward pass takes a third of a step; the plain one far less."""
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 64))


def build_text_encoder(s: Settings, tokenizer: WordTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=s.text_width,
            intermediate_size=s.text_width * 2,
            projection_dim=s.text_width,
            num_hidden_layers=s.text_layers,
            num_attention_heads=s.text_width // HEAD_WIDTH,
            max_position_embeddings=TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            attn_implementation="eager",
        )
    )


@dataclass(frozen=True)
class TokenizerOutput:
    """What a tokenizer answers, as far as training needs it."""

    input_ids: list[int]


class WordTokenizer:
    """The tokenizer of training: the same ids as the exported one for the grammar's words, and nothing else.

    It needs no class of transformers, so that training runs with any version of it.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary
        self.bos_token_id = vocabulary["<|startoftext|>"]
        self.eos_token_id = self.pad_token_id = vocabulary["<|endoftext|>"]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, text: str, **options: object) -> TokenizerOutput:
        words = re.findall(r"[a-z]+|,", text.lower())
        ids = [self.vocabulary[word + "</w>"] for word in words][: TOKENS - 2]
        ids = [self.bos_token_id, *ids, self.eos_token_id]
        return TokenizerOutput(ids + [self.pad_token_id] * (TOKENS - len(ids)))


def write_vocabulary(folder: Path) -> WordTokenizer:
    """CLIP's byte-pair files with merges made from our grammar: a known word is one token.

    Unknown words fall apart into letters, as with any CLIP tokenizer.
    """
    from tokenizers import pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = learn_merges({word for line in corpus() for word in line.replace(",", " ").split()})
    tokens += sorted({left + right for left, right in merges} - set(tokens))
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return WordTokenizer(vocabulary)


def learn_merges(words: set[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, commonest pair first, until each word is one token."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for parts in spelled.values() for pair in pairwise(parts))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for parts in spelled.values():
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == best:
                    parts[place : place + 2] = [best[0] + best[1]]
                place += 1


class Critic(nn.Module):
    """Tells drawn latents from generated ones, and names material and palette (for distillation only)."""

    def __init__(self, channels: int, materials: int, palettes: int, width: int = 64) -> None:
        super().__init__()
        w = width
        self.body = nn.ModuleList(
            [
                nn.Conv2d(channels, w, 3, padding=1),
                nn.Conv2d(w, 2 * w, 4, stride=2, padding=1),
                nn.Conv2d(2 * w, 3 * w, 4, stride=2, padding=1),
                nn.Conv2d(3 * w, 3 * w, 3, padding=1),
            ]
        )
        self.norms = nn.ModuleList(
            [nn.Identity(), nn.GroupNorm(8, 2 * w), nn.GroupNorm(8, 3 * w), nn.Identity()]
        )
        self.judge_fine = nn.Conv2d(2 * w, 1, 1)
        self.judge = nn.Conv2d(3 * w, 1, 1)
        self.palettes = palettes + 1
        self.of_material = nn.Embedding(materials, 5 * w)
        self.of_palette = nn.Embedding(palettes + 1, 5 * w)
        self.material = nn.Linear(3 * w, materials)
        self.palette = nn.Linear(3 * w, palettes + 1)

    def features(self, latent: torch.Tensor) -> list[torch.Tensor]:
        h, kept = latent, []
        for conv, norm in zip(self.body, self.norms, strict=True):
            h = nn.functional.leaky_relu(norm(conv(h)), 0.2)
            kept.append(h)
        return kept

    def forward(self, latent: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.verdict(self.features(latent), label)

    def verdict(self, kept: list[torch.Tensor], label: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """How real it looks (finely, as a whole) and its scores for each material and palette."""
        fine, deep = kept[1], kept[3]
        wanted = self.of_material(label // self.palettes) + self.of_palette(label % self.palettes)
        wanted_fine, wanted_deep = wanted[:, :, None, None].split((fine.shape[1], deep.shape[1]), 1)
        real_fine = self.judge_fine(fine)[:, 0] + (fine * wanted_fine).mean(1)
        real = self.judge(deep)[:, 0] + (deep * wanted_deep).mean(1)
        pooled = deep.mean((2, 3))
        return real_fine, real, self.material(pooled), self.palette(pooled)
