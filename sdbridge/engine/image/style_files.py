"""What an IP-Adapter file holds, whether it fits the model that runs, and the encoder that goes with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.image.clip_vision import ClipVision, image_config
from sdbridge.engine.image.parts import read_part
from sdbridge.engine.image.seams import ModelParts
from sdbridge.engine.image.share import share_here
from sdbridge.engine.image.skeleton import differing, give_weights, shapes_of, skeleton
from sdbridge.engine.image.stills import fill
from sdbridge.engine.image.stored import Source, split_rows
from sdbridge.engine.image.upload import upload_to
from sdbridge.engine.image.weight_file import (
    few_of,
    find_weights,
    open_weight_file,
    refuse_spoilt,
    told_of_broken,
)
from sdbridge.errors import SdbridgeError

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_FAMILIES = {768: "SD 1.5", 1024: "SD 2.x", 2048: "SDXL"}
#: Where the published repositories keep the encoder, seen from the adapter's file.
_ENCODER_PLACES = ("image_encoder", "../image_encoder", "../models/image_encoder", "models/image_encoder")
#: Keys of the resampler as published -> as diffusers' module has them.
_RESAMPLER = (
    (re.compile(r"^layers\.(\d+)\.0\.norm1\."), r"layers.\1.ln0."),
    (re.compile(r"^layers\.(\d+)\.0\.norm2\."), r"layers.\1.ln1."),
    (re.compile(r"^layers\.(\d+)\.0\.to_out\."), r"layers.\1.attn.to_out.0."),
    (re.compile(r"^layers\.(\d+)\.0\.to_"), r"layers.\1.attn.to_"),
    (re.compile(r"^layers\.(\d+)\.1\.0\."), r"layers.\1.ff.0."),
    (re.compile(r"^layers\.(\d+)\.1\.1\."), r"layers.\1.ff.1.net.0.proj."),
    (re.compile(r"^layers\.(\d+)\.1\.3\."), r"layers.\1.ff.1.net.2."),
)


@dataclass(frozen=True)
class StyleNetwork:
    """An IP-Adapter with its encoder. ``layers`` are key and value projections by the UNet's attn2 order."""

    path: Path
    encoder: Any
    projection: Any
    plus: bool
    layers: tuple[tuple[Tensor, Tensor], ...]
    none: Tensor  # [1, T, D] tokens of no style, for guidance rows

    @torch.no_grad()
    def tokens(self, image: Tensor) -> Tensor:
        """Picture ``[1, 3, H, W]`` 0..1 -> style tokens ``[1, T, D]``."""
        return self.projection(self._look(image))

    def _look(self, image: Tensor) -> Tensor:
        weight = next(self.encoder.parameters())
        side = int(self.encoder.config.image_size)
        mean = torch.tensor(MEAN, device=weight.device, dtype=weight.dtype).view(1, 3, 1, 1)
        deviation = torch.tensor(DEVIATION, device=weight.device, dtype=weight.dtype).view(1, 3, 1, 1)
        pixels = (fill(image.to(weight.device), side, side).to(weight.dtype) - mean) / deviation
        return look(self.encoder, pixels, self.plus)


def look(encoder: Any, pixels: Tensor, plus: bool) -> Tensor:
    """What an adapter takes of an image: the pooled embedding, or all patches before the last layer."""
    if plus:
        return encoder(pixels).hidden_states[-2]
    return encoder(pixels).image_embeds


@torch.no_grad()
def load_style(
    path: Path, encoder_folder: Path | None, model: ModelParts, *, allow_pickle: bool = False
) -> StyleNetwork:
    """Read adapter and encoder. Slow: call it beside the frame loop.

    Raises SDB-FILE-..., SDB-STYLE-KIND for a file that holds no IP-Adapter, SDB-STYLE-FAMILY for one
    made for another family, SDB-STYLE-ENCODER where the encoder is missing or another one.
    """
    place = find_weights(path, "ip-adapter_sd15.safetensors", "ip-adapter_sdxl.safetensors")
    opened = open_weight_file(place, allow_pickle=allow_pickle)
    image_part = _part(opened.tensors, "image_proj.")
    layer_part = _part(opened.tensors, "ip_adapter.")
    if not image_part or not layer_part:
        first = ", ".join(list(opened.tensors)[:3])
        raise SdbridgeError(
            "SDB-STYLE-KIND", f"{place} holds no IP-Adapter but {len(opened.tensors)} tensors such as {first}"
        )
    plus = "latents" in image_part
    if not plus and "proj.weight" not in image_part:
        raise SdbridgeError(
            "SDB-STYLE-KIND", f"{place} is an IP-Adapter for faces, which needs a face detector"
        )
    refuse_spoilt(place, few_of(opened.tensors))
    upload = upload_to(model.device)
    pairs = _pairs(place, layer_part, model)
    with skeleton(upload.gentle):
        projection, wanted = _resampler(image_part) if plus else _plain(image_part)
    renamed = _complete(projection, _renamed(image_part, plus), place)
    encoder_at = _find_encoder(place, encoder_folder, wanted, plus)
    share_here().expect(sum(source.nbytes for source in opened.tensors.values()) + _largest(encoder_at))
    with told_of_broken(place):
        give_weights(projection, renamed, upload, model.dtype)
        brought = upload.bring(pairs, model.dtype)
    layers = tuple(
        (brought[f"{number}.to_k"], brought[f"{number}.to_v"]) for number in range(len(pairs) // 2)
    )
    encoder = _read_encoder(encoder_at, model)
    none = projection(_nothing(encoder, plus))
    upload.lend(none)
    if model.device.type == "cuda":
        torch.cuda.current_stream().synchronize()  # not the device: a graph may be under capture
    return StyleNetwork(place, encoder, projection, plus, layers, none)


def cross_attention_layers(unet: Any) -> list[tuple[str, Any]]:
    """Name and module of every attn2, in the order in which adapter files number them."""
    return [(name, module) for name, module in unet.named_modules() if name.endswith("attn2")]


def _part(tensors: Mapping[str, Source], prefix: str) -> dict[str, Source]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _pairs(place: Path, tensors: Mapping[str, Source], model: ModelParts) -> dict[str, Source]:
    """Key and value projections, ``0.to_k`` and on, by the UNet's attn2 order."""
    targets = cross_attention_layers(model.unet)
    numbers = sorted({int(key.partition(".")[0]) for key in tensors if key.endswith(".to_k_ip.weight")})
    ours = int(model.unet.config["cross_attention_dim"])
    theirs = int(tensors[f"{numbers[0]}.to_k_ip.weight"].shape[1]) if numbers else 0
    found: dict[str, Source] = {}
    for number, (_, module) in zip(numbers, targets, strict=False):
        key, value = tensors[f"{number}.to_k_ip.weight"], tensors.get(f"{number}.to_v_ip.weight")
        shape = tuple(module.to_k.weight.shape)
        if value is None or tuple(key.shape) != shape or tuple(value.shape) != shape:
            break
        at = len(found) // 2
        found[f"{at}.to_k"], found[f"{at}.to_v"] = key, value
    if len(numbers) != len(targets) or len(found) != 2 * len(targets):
        raise SdbridgeError(
            "SDB-STYLE-FAMILY",
            f"{place} is an IP-Adapter for {_FAMILIES.get(theirs, 'another model')} ({len(numbers)} layers, "
            f"text width {theirs}), the model that runs has {len(targets)} layers and text width {ours}",
        )
    return found


def _plain(tensors: Mapping[str, Source]) -> tuple[Any, int]:
    """The standard adapter's projection: one linear layer to four tokens. With the encoder's width."""
    from diffusers.models.embeddings import ImageProjection

    width = int(tensors["norm.weight"].shape[0])
    seen = int(tensors["proj.weight"].shape[1])
    return ImageProjection(seen, width, int(tensors["proj.weight"].shape[0]) // width), seen


def _resampler(tensors: Mapping[str, Source]) -> tuple[Any, int]:
    """The plus adapter's projection: a small transformer over the encoder's patches. With their width."""
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    renamed = _renamed(tensors, True)
    depth = 1 + max((int(key.split(".")[1]) for key in renamed if key.startswith("layers.")), default=0)
    inner = int(renamed["layers.0.attn.to_q.weight"].shape[0])
    seen = int(renamed["proj_in.weight"].shape[1])
    module = IPAdapterPlusImageProjection(
        embed_dims=seen,
        output_dims=int(renamed["proj_out.weight"].shape[0]),
        hidden_dims=int(renamed["latents"].shape[2]),
        depth=depth,
        dim_head=64,
        heads=inner // 64,
        num_queries=int(renamed["latents"].shape[1]),
        ffn_ratio=renamed["layers.0.ff.1.net.2.weight"].shape[1] / renamed["latents"].shape[2],
    )
    return module, seen


def _renamed(tensors: Mapping[str, Source], plus: bool) -> dict[str, Source]:
    """The projection's tensors by the keys of diffusers' module."""
    renamed: dict[str, Source] = {}
    if not plus:
        return {re.sub(r"^proj\.", "image_embeds.", key): tensor for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        for pattern, new in _RESAMPLER:
            key = pattern.sub(new, key)
        if ".attn.to_kv." in key:
            first, second = split_rows(tensor, 2)
            renamed[key.replace("to_kv", "to_k")], renamed[key.replace("to_kv", "to_v")] = first, second
        else:
            renamed[key] = tensor
    return renamed


def _complete(module: Any, tensors: dict[str, Source], place: Path) -> dict[str, Source]:
    """``tensors``, which are what the module needs: each of them, no other, in its shape."""
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differ = differing(shapes_of(module), given)
    if differ:
        raise SdbridgeError(
            "SDB-STYLE-KIND",
            f"{place} has an image projection of another kind: {len(differ)} tensors differ, such as "
            f"{differ[0]}",
        )
    return tensors


def _find_encoder(place: Path, folder: Path | None, wanted: int, plus: bool) -> Path:
    places: Sequence[Path] = [folder] if folder is not None else [place.parent / p for p in _ENCODER_PLACES]
    key, what = ("hidden_size", "patches") if plus else ("projection_dim", "embedding")
    seen: list[str] = []
    for candidate in places:
        width = _encoder_width(candidate, key)
        if width == wanted:
            return candidate
        if width is not None:
            seen.append(f"{candidate} has {width}")
    looked = "; ".join(seen) or f"none is in {places[0]}"
    raise SdbridgeError(
        "SDB-STYLE-ENCODER", f"{place} needs a CLIP image encoder whose {what} are {wanted} wide: {looked}"
    )


def _largest(folder: Path) -> int:
    """Bytes of the largest file of weights there."""
    return max((file.stat().st_size for file in folder.glob("*.safetensors")), default=0)


def _encoder_width(folder: Path, key: str) -> int | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(image_config(config)[key])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_encoder(folder: Path, model: ModelParts) -> Any:
    try:
        return read_part(ClipVision, folder, model.dtype, False, upload=upload_to(model.device))
    except SdbridgeError as error:
        raise SdbridgeError("SDB-STYLE-ENCODER", f"{folder} cannot be loaded: {error.what}") from None


def _nothing(encoder: Any, plus: bool) -> Tensor:
    """What stands for no style where guidance compares with it, as in training."""
    weight = next(encoder.parameters())
    side = int(encoder.config.image_size)
    black = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
    return look(encoder, black, plus) if plus else torch.zeros_like(look(encoder, black, plus))


def shrink(image: Tensor, largest: int = 512) -> Tensor:
    """A style picture is looked at in a few hundred pixels: keep no more of it."""
    height, width = image.shape[-2:]
    if max(height, width) <= largest:
        return image
    factor = largest / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return nn.interpolate(image, size, mode="bilinear", antialias=True)
