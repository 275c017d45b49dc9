"""The tensors of published checkpoints by name and shape, from the original code's structure alone.

Widths are small, names and depths true: SD 1.5 (v1-inference.yaml), SD 2.1 (v2-inference.yaml) and SDXL
(sd_xl_base.yaml). Nothing here asks diffusers, so that a mistake in its tables or ours shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]
Key = tuple[str, Shape]


@dataclass(frozen=True)
class Layout:
    """What the original config file says of a UNet, with small widths."""

    width: int  # of the first level
    multipliers: tuple[int, ...]
    depths: tuple[int, ...]  # transformer blocks per level, 0 for none
    context: int
    linear: bool  # proj_in and proj_out are matrices
    sizes: int = 0  # width of SDXL's embedding of sizes and pooled text
    middle: int = 1
    channels: int = 4
    text: int = 32


SD15 = Layout(32, (1, 2, 4, 4), (1, 1, 1, 0), 32, linear=False)
SD21 = Layout(32, (1, 2, 4, 4), (1, 1, 1, 0), 32, linear=True)
SDXL = Layout(32, (1, 2, 4), (0, 2, 10), 64, linear=True, sizes=6 * 8 + 32, middle=10)


def norm(stem: str, width: int) -> Iterator[Key]:
    yield f"{stem}.weight", (width,)
    yield f"{stem}.bias", (width,)


def conv(stem: str, out: int, given: int, side: int = 3) -> Iterator[Key]:
    yield f"{stem}.weight", (out, given, side, side)
    yield f"{stem}.bias", (out,)


def linear(stem: str, out: int, given: int, *, bias: bool = True) -> Iterator[Key]:
    yield f"{stem}.weight", (out, given)
    if bias:
        yield f"{stem}.bias", (out,)


def resnet(stem: str, given: int, out: int, time: int) -> Iterator[Key]:
    yield from norm(f"{stem}.in_layers.0", given)
    yield from conv(f"{stem}.in_layers.2", out, given)
    yield from linear(f"{stem}.emb_layers.1", out, time)
    yield from norm(f"{stem}.out_layers.0", out)
    yield from conv(f"{stem}.out_layers.3", out, out)
    if given != out:
        yield from conv(f"{stem}.skip_connection", out, given, 1)


def transformer(stem: str, width: int, depth: int, layout: Layout) -> Iterator[Key]:
    yield from norm(f"{stem}.norm", width)
    for end in ("proj_in", "proj_out"):
        if layout.linear:
            yield from linear(f"{stem}.{end}", width, width)
        else:
            yield from conv(f"{stem}.{end}", width, width, 1)
    for block in range(depth):
        inner = f"{stem}.transformer_blocks.{block}"
        for attention, given in (("attn1", width), ("attn2", layout.context)):
            yield from linear(f"{inner}.{attention}.to_q", width, width, bias=False)
            yield from linear(f"{inner}.{attention}.to_k", width, given, bias=False)
            yield from linear(f"{inner}.{attention}.to_v", width, given, bias=False)
            yield from linear(f"{inner}.{attention}.to_out.0", width, width)
        yield from linear(f"{inner}.ff.net.0.proj", 8 * width, width)
        yield from linear(f"{inner}.ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            yield from norm(f"{inner}.norm{number}", width)


def unet(layout: Layout) -> Iterator[Key]:
    """``model.diffusion_model.`` of openaimodel.py: two resnets a level down, three up."""
    first, time = layout.width, 4 * layout.width
    yield from linear("time_embed.0", time, first)
    yield from linear("time_embed.2", time, time)
    if layout.sizes:
        yield from linear("label_emb.0.0", time, layout.sizes)
        yield from linear("label_emb.0.2", time, time)
    yield from conv("input_blocks.0.0", first, layout.channels)
    widths, now, number = [first], first, 1
    for level, multiplier in enumerate(layout.multipliers):
        for _ in range(2):
            out = first * multiplier
            yield from resnet(f"input_blocks.{number}.0", now, out, time)
            now = out
            if layout.depths[level]:
                yield from transformer(f"input_blocks.{number}.1", now, layout.depths[level], layout)
            widths.append(now)
            number += 1
        if level < len(layout.multipliers) - 1:
            yield from conv(f"input_blocks.{number}.0.op", now, now)
            widths.append(now)
            number += 1
    yield from resnet("middle_block.0", now, now, time)
    yield from transformer("middle_block.1", now, layout.middle, layout)
    yield from resnet("middle_block.2", now, now, time)
    number = 0
    for level in reversed(range(len(layout.multipliers))):
        for place in range(3):
            out = first * layout.multipliers[level]
            yield from resnet(f"output_blocks.{number}.0", now + widths.pop(), out, time)
            now, behind = out, 1
            if layout.depths[level]:
                yield from transformer(f"output_blocks.{number}.1", now, layout.depths[level], layout)
                behind = 2
            if place == 2 and level:
                yield from conv(f"output_blocks.{number}.{behind}.conv", now, now)
            number += 1
    yield from norm("out.0", first)
    yield from conv("out.2", 4, first)


HINT = (16, 16, 32, 32, 96, 96, 256)


def controlnet(layout: Layout) -> Iterator[Key]:
    """``control_model.`` of cldm.py: the UNet's first half, with a convolution of zeros behind each block."""
    widths = [layout.width]
    for name, shape in unet(layout):
        block = name.split(".")[0]
        if block in ("time_embed", "input_blocks", "middle_block"):
            yield name, shape
        if name.endswith(("0.out_layers.3.bias", "0.op.bias")) and block == "input_blocks":
            widths.append(shape[0])
    for number, width in enumerate(widths):
        yield from conv(f"zero_convs.{number}.0", width, width, 1)
    yield from conv("middle_block_out.0", widths[-1], widths[-1], 1)
    for place, (given, out) in enumerate(zip((3, *HINT), (*HINT, layout.width), strict=True)):
        yield from conv(f"input_hint_block.{2 * place}", out, given)


def vae_resnet(stem: str, given: int, out: int) -> Iterator[Key]:
    yield from norm(f"{stem}.norm1", given)
    yield from conv(f"{stem}.conv1", out, given)
    yield from norm(f"{stem}.norm2", out)
    yield from conv(f"{stem}.conv2", out, out)
    if given != out:
        yield from conv(f"{stem}.nin_shortcut", out, given, 1)


def vae_middle(stem: str, width: int) -> Iterator[Key]:
    yield from vae_resnet(f"{stem}.block_1", width, width)
    yield from norm(f"{stem}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{stem}.attn_1.{part}", width, width, 1)
    yield from vae_resnet(f"{stem}.block_2", width, width)


def vae(width: int = 32, multipliers: tuple[int, ...] = (1, 2, 4, 4)) -> Iterator[Key]:
    """``first_stage_model.`` of the KL-f8 autoencoder."""
    last = width * multipliers[-1]
    yield from conv("encoder.conv_in", width, 3)
    now = width
    for level, multiplier in enumerate(multipliers):
        for block in range(2):
            yield from vae_resnet(f"encoder.down.{level}.block.{block}", now, width * multiplier)
            now = width * multiplier
        if level < len(multipliers) - 1:
            yield from conv(f"encoder.down.{level}.downsample.conv", now, now)
    yield from vae_middle("encoder.mid", last)
    yield from norm("encoder.norm_out", last)
    yield from conv("encoder.conv_out", 8, last)
    yield from conv("decoder.conv_in", last, 4)
    yield from vae_middle("decoder.mid", last)
    now = last
    for level in reversed(range(len(multipliers))):
        for block in range(3):
            yield from vae_resnet(f"decoder.up.{level}.block.{block}", now, width * multipliers[level])
            now = width * multipliers[level]
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", now, now)
    yield from norm("decoder.norm_out", width)
    yield from conv("decoder.conv_out", 3, width)
    yield from conv("quant_conv", 8, 8, 1)
    yield from conv("post_quant_conv", 4, 4, 1)


def clip(width: int, words: int, depth: int = 12) -> Iterator[Key]:
    """CLIP ViT-L's text half as transformers named it when the checkpoints were made."""
    yield "text_model.embeddings.position_ids", (1, 77)
    yield "text_model.embeddings.token_embedding.weight", (words, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for layer in range(depth):
        stem = f"text_model.encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{stem}.self_attn.{part}", width, width)
        yield from norm(f"{stem}.layer_norm1", width)
        yield from linear(f"{stem}.mlp.fc1", 4 * width, width)
        yield from linear(f"{stem}.mlp.fc2", width, 4 * width)
        yield from norm(f"{stem}.layer_norm2", width)
    yield from norm("text_model.final_layer_norm", width)


def open_clip(width: int, words: int, depth: int) -> Iterator[Key]:
    """OpenCLIP's text half: ViT-H has 24 layers (SD 2.1), ViT-bigG 32 (SDXL)."""
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (words, width)
    yield from norm("ln_final", width)
    for layer in range(depth):
        stem = f"transformer.resblocks.{layer}"
        yield f"{stem}.attn.in_proj_weight", (3 * width, width)
        yield f"{stem}.attn.in_proj_bias", (3 * width,)
        yield from linear(f"{stem}.attn.out_proj", width, width)
        yield from norm(f"{stem}.ln_1", width)
        yield from norm(f"{stem}.ln_2", width)
        yield from linear(f"{stem}.mlp.c_fc", 4 * width, width)
        yield from linear(f"{stem}.mlp.c_proj", width, 4 * width)


def under(prefix: str, keys: Iterator[Key]) -> dict[str, Shape]:
    return {f"{prefix}{name}": shape for name, shape in keys}


def checkpoint(family: str, words: int) -> dict[str, Shape]:
    """Every tensor of the published file, without the schedule's constants."""
    layout = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}[family]
    text = {
        "sd15": under("cond_stage_model.transformer.", clip(layout.text, words)),
        "sd21": under("cond_stage_model.model.", open_clip(layout.text, words, 24)),
        "sdxl": under("conditioner.embedders.0.transformer.", clip(layout.text, words))
        | under("conditioner.embedders.1.model.", open_clip(layout.text, words, 32)),
    }[family]
    return under("model.diffusion_model.", unet(layout)) | under("first_stage_model.", vae()) | text
