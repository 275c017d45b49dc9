"""What a LoRA file changes: its keys grouped by layer, and the product that each layer adds to a tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sdbridge.engine.image.lora_names import TensorNames
from sdbridge.engine.image.lora_products import make_products, renormalised
from sdbridge.engine.image.share import share_here
from sdbridge.engine.image.upload import Arena, Upload, upload_to
from sdbridge.engine.image.weight_file import WeightFile, find_weights, read_weight_file, refuse_spoilt
from sdbridge.engine.image.weights import WeightStore
from sdbridge.errors import SdbridgeError

#: Endings of keys, by what they hold; longer ones first. What is left of a key names the layer.
_ENDINGS: tuple[tuple[str, str], ...] = (
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora_mid.weight", "mid"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".down.weight", "down"),
    (".up.weight", "up"),
    (".lora_magnitude_vector.default.weight", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".lora_magnitude_vector.default", "magnitude"),
    (".lora_magnitude_vector", "magnitude"),
    (".dora_scale", "dora_scale"),
    (".alpha", "alpha"),
    (".diff_b", "diff_b"),
    (".diff", "diff"),
    (".b_norm", "diff_b"),  # LyCORIS' names for the differences of a norm
    (".w_norm", "diff"),
    *(
        (f".{word}", word)
        for word in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    ),
    *(
        (f".{word}", word)
        for word in (
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2_a",
            "lokr_w2_b",
            "lokr_t1",
            "lokr_t2",
            "lokr_w1",
            "lokr_w2",
        )
    ),
)
_MAGNITUDES = ("magnitude", "dora_scale")  # DoRA's
_FAMILIES = {768: "SD 1.5", 1024: "SD 2.x", 2048: "SDXL"}
#: What distilled LoRAs are called, and the sampler they are made for.
_DISTILLED = (
    ("lcm", "lcm"),
    ("hyper", "tcd"),
    ("tcd", "tcd"),
    ("lightning", "turbo"),
    ("turbo", "turbo"),
    ("dmd", "lcm"),
)
_CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv]\b|attn2[._](?:processor[._])?to_[kv]_lora|attn2_to_[kv]$")
_OTHER_KINDS = {
    "double_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "transformer.": "a transformer model (Flux, SD 3, ...)",
    "joint_blocks": "SD 3",
    "lllite_": "a ControlNet-LLLite",
    "image_proj.": "an IP-Adapter",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding": "a ControlNet",
    "model.diffusion_model.": "a whole checkpoint",
}


@dataclass(frozen=True)
class LoraProducts:
    """A LoRA ready to be mixed in: what it adds at weight 1 to each tensor, on the device.

    ``unapplied`` lists every key of the file that found no place. ``scheduler_hint`` names the sampler
    a distilled LoRA wants, or is empty. ``rooms`` is memory for the tensors' bases, see ``weights.Layer``.
    """

    path: Path
    products: Mapping[str, Tensor]
    applied: int
    unapplied: tuple[str, ...]
    scheduler_hint: str = ""
    rooms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def in_text_encoders(self) -> bool:
        return any(name.startswith("text_encoder") for name in self.products)


@torch.no_grad()
def load_lora(
    path: Path, store: WeightStore, names: TensorNames, *, allow_pickle: bool = False
) -> LoraProducts:
    """Read the file and make its products. Slow: call it beside the frame loop.

    Raises SDB-FILE-... for a file that cannot be read, SDB-LORA-FAMILY for one that fits another
    family of models, SDB-LORA-KEYS for one without any key of a LoRA.
    """
    place = find_weights(path, "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    opened = read_weight_file(place, allow_pickle=allow_pickle)
    layers, strangers = group(opened.tensors)
    if not layers:
        raise _no_lora(opened)
    refuse_spoilt(place, opened.tensors)
    _refuse_without_effect(place, layers)
    alpha_of = _alpha_source(opened)
    products: dict[str, Tensor] = {}
    unapplied: list[str] = list(strangers)
    misfits: list[str] = []
    applied = 0
    upload = upload_to(store.device)
    room = Arena(upload)
    brought, share = _on_device(layers, upload), share_here()
    share.expect(len(brought))
    for stem, pieces in brought.items():
        upload.pause()
        share.did(1)
        module = names.find(stem)
        made = _products(place, stem, pieces, alpha_of(stem)) if module else None
        if module is None or not made:
            unapplied += [f"{stem}{ending}" for ending in _endings(opened.tensors, stem)]
            continue
        for kind, product in made.items():
            name = f"{module}.{kind}"
            fits = name in store and store.tensor(name).numel() == product.numel()
            if fits and kind == "weight" and not pieces.keys().isdisjoint(_MAGNITUDES):
                added = renormalised(store.base(name), product, pieces)
            else:
                added = product if fits else None
            if added is None:
                misfits.append(stem)
                continue
            ready = room.like(store.tensor(name))
            ready.copy_(added.reshape(ready.shape))
            products[name] = products[name].add_(ready) if name in products else ready
            applied += 1
    if misfits or not products:
        raise _wrong_family(opened, layers, misfits, store)
    rooms: dict[str, Tensor] = {}
    if upload.device.type == "cuda":
        rooms = {name: room.like(store.tensor(name)) for name in products if not store.keeps(name)}
    if next(iter(products.values())).is_cuda:
        torch.cuda.current_stream().synchronize()  # not the device: a graph may be under capture
    hint = _scheduler_hint(opened, layers)
    return LoraProducts(place, products, applied, tuple(sorted(unapplied)), hint, rooms)


def _refuse_without_effect(place: Path, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """What could be multiplied and would say nothing, or nonsense. Raises SDB-LORA-KEYS naming a layer."""
    for stem, pieces in layers.items():
        factors = {kind: piece for kind, piece in pieces.items() if kind != "alpha"}
        if any(piece.numel() == 0 for piece in factors.values()):
            sizes = ", ".join(f"{kind} {'x'.join(map(str, p.shape))}" for kind, p in factors.items())
            raise SdbridgeError("SDB-LORA-KEYS", f"{place} has layers of rank 0, such as {stem}: {sizes}")
        whole = {str(p.dtype) for p in factors.values() if not p.dtype.is_floating_point}
        if whole:
            raise SdbridgeError(
                "SDB-LORA-KEYS",
                f"{place} holds whole numbers ({', '.join(sorted(whole)).replace('torch.', '')}) in {stem}: "
                "it was quantised in a way that sdbridge does not read",
                "Take the file in half or full precision.",
            )


def _products(place: Path, stem: str, pieces: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """What the layer adds. Raises SDB-FILE-BROKEN for pieces that do not fit each other."""
    try:
        return make_products(pieces, alpha)
    except (RuntimeError, ValueError, IndexError):
        # Such errors may also be the device's: zeros on the host say whether it was the shapes.
        bare = {key: torch.zeros(piece.shape) for key, piece in pieces.items() if key != "alpha"}
        try:
            make_products(bare, alpha)
            fits = pieces["alpha"].numel() == 1 if "alpha" in pieces else True
        except (RuntimeError, ValueError, IndexError):
            fits = False
        if fits:
            raise
    sizes = ", ".join(f"{key} {'x'.join(map(str, piece.shape)) or 1}" for key, piece in pieces.items())
    raise SdbridgeError(
        "SDB-FILE-BROKEN", f"{place} has pieces that do not fit each other: {stem} has {sizes}"
    )


def _on_device(
    layers: Mapping[str, Mapping[str, Tensor]], upload: Upload
) -> Mapping[str, Mapping[str, Tensor]]:
    """The layers' factors where their products are made: small to carry, and multiplied at once there.

    An alpha is a number and stays.
    """
    if upload.device.type == "cpu":
        return layers
    named = {
        f"{stem} {piece}": tensor
        for stem, pieces in layers.items()
        for piece, tensor in pieces.items()
        if piece != "alpha"
    }
    brought = upload.bring(named, torch.float32)
    return {
        stem: {piece: brought.get(f"{stem} {piece}", tensor) for piece, tensor in pieces.items()}
        for stem, pieces in layers.items()
    }


def group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """Keys by layer: ``{layer: {down, up, alpha, ...}}``, and the keys that are of no known kind."""
    layers: dict[str, dict[str, Tensor]] = {}
    strangers: list[str] = []
    for key, tensor in tensors.items():
        for ending, piece in _ENDINGS:
            if key.endswith(ending):
                layers.setdefault(key.removesuffix(ending), {})[piece] = tensor
                break
        else:
            strangers.append(key)
    # An alpha or a magnitude alone is no layer: it belongs to a kind of layer that is not known here.
    lonely = {"alpha", *_MAGNITUDES}
    for stem in [stem for stem, pieces in layers.items() if pieces.keys() <= lonely]:
        del layers[stem]
        strangers += [f"{stem}{ending}" for ending in _endings(tensors, stem)]
    return layers, tuple(strangers)


def _alpha_source(opened: WeightFile) -> Callable[[str], float | None]:
    """A layer's alpha where it is kept elsewhere: PEFT's config file, or diffusers' metadata in the file."""
    settings: dict[str, object] = {}
    beside = opened.path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in opened.metadata:
        settings = _json(opened.metadata["lora_adapter_metadata"])
    elif beside.is_file() and opened.path.name.startswith("adapter_model"):
        settings = _json(beside.read_text(encoding="utf-8"))

    def alpha_of(stem: str) -> float | None:
        for prefix in ("unet.", "text_encoder_2.", "text_encoder.", ""):
            if not stem.startswith(prefix):
                continue
            alpha = settings.get(f"{prefix}lora_alpha")
            pattern = settings.get(f"{prefix}alpha_pattern")
            for ending, value in pattern.items() if isinstance(pattern, dict) else ():
                if stem.endswith(ending):
                    alpha = value
            if isinstance(alpha, int | float):
                return float(alpha)
        return None

    return alpha_of


def _json(text: str) -> dict[str, object]:
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _endings(tensors: Mapping[str, Tensor], stem: str) -> list[str]:
    return [ending for ending, _ in _ENDINGS if f"{stem}{ending}" in tensors]


def _scheduler_hint(opened: WeightFile, layers: Mapping[str, object]) -> str:
    """A LoRA over convolutions and time projections without text parts distils a whole model.

    Which sampler it was distilled for is written nowhere but in names, so the name decides between
    the kinds, never whether it is one.
    """
    whole = any("time_emb_proj" in stem or "emb_layers" in stem for stem in layers)
    texts = any(stem.startswith(("lora_te", "text_encoder")) for stem in layers)
    if not whole or texts:
        return ""
    # The nearest folders count too: published files are called pytorch_lora_weights, in hashed folders.
    words = f"{' '.join(opened.path.parts[-4:])} {' '.join(opened.metadata.values())}".lower()
    return next((sampler for word, sampler in _DISTILLED if word in words), "")


def _no_lora(opened: WeightFile) -> SdbridgeError:
    keys = list(opened.tensors)
    kind = next((kind for word, kind in _OTHER_KINDS.items() if any(word in key for key in keys)), "")
    holds = kind or f"keys such as {', '.join(keys[:3])}"
    return SdbridgeError("SDB-LORA-KEYS", f"{opened.path} holds no LoRA but {holds} ({len(keys)} tensors)")


def _wrong_family(
    opened: WeightFile, layers: Mapping[str, Mapping[str, Tensor]], misfits: list[str], store: WeightStore
) -> SdbridgeError:
    """Say what the file was made for, what runs, and how many layers disagree."""
    theirs = next(
        (
            int(piece["down"].shape[1])
            for stem, piece in layers.items()
            if _CROSS_ATTENTION.search(stem) and "down" in piece
        ),
        0,
    )
    ours = next((int(store.tensor(n).shape[1]) for n in store.names() if n.endswith("attn2.to_k.weight")), 0)
    kind = next((kind for word, kind in _OTHER_KINDS.items() if any(word in stem for stem in layers)), "")
    made_for = kind or (
        f"{_FAMILIES.get(theirs, 'a model')} (text width {theirs})" if theirs else "another model"
    )
    runs = f"{_FAMILIES.get(ours, 'the one that runs')} (text width {ours})"
    reason = (
        f"{len(misfits)} of {len(layers)} layers have other sizes"
        if misfits
        else f"none of {len(layers)} layers is found"
    )
    first = misfits[0] if misfits else next(iter(layers))
    return SdbridgeError(
        "SDB-LORA-FAMILY", f"{opened.path} is made for {made_for}, not for {runs}: {reason}, such as {first}"
    )
