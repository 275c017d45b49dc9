"""How much GPU memory a model will take, counted from its files' headers before anything is loaded.

What a configuration asks for (rows, files, VAE) is read out of it in ``demand.py``; here is the counting.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

from sdbridge.errors import SdbridgeError

LARGEST_HEADER = 100 * 1024 * 1024
#: CUDA context, cuBLAS and cuDNN workspaces: what a process takes before its first tensor.
CONTEXT_BYTES = 920 * 2**20
#: What CUDA graphs keep for themselves, by pixel of the picture: each frame's ways through the VAE, and each
#: row's through the UNet. From one H200 with SD-Turbo and SD 1.5 at 512x512 (docs/performance.md), fp16.
GRAPH_BYTES_A_FRAME, GRAPH_BYTES_A_ROW = 10_000, 1_500
#: Folders of a diffusers layout that are loaded onto the device, besides the VAE.
PARTS = ("unet", "text_encoder", "text_encoder_2")
#: Numbers alive at the worst moment of one pass of diffusers' modules with flash attention: of the UNet by
#: channel of its first level and pixel of a row's latent, of a VAE by pixel of a frame's picture. Counted
#: pass by pass on shapes alone for SD 1.5, SD-Turbo, SDXL, TAESD and the full VAE; a test counts them again.
UNET_VALUES, TINY_VAE_VALUES, FULL_VAE_VALUES = 26.2, 196, 770
#: Where a single file keeps its VAE.
_OWN_VAE = "first_stage_model."

#: The end of a LoRA's key, as ``engine/image/lora_files.py`` knows them; what stands before names the layer.
_PIECE = re.compile(
    r"(?:\.lora_linear_layer|\.lora)?\.(?P<piece>lora_[AB]|lora_down|lora_up|lora_mid|down|up)"
    r"(?:\.default)?\.weight$|\.(?P<word>diff|hada_[wt][12](?:_[ab])?|lokr_w[12](?:_[ab])?|lokr_t[12]|w_norm)$"
)
_LORA_PREFIX = re.compile(
    r"^(?:base_model\.model\.)?(?:lora_unet_|unet\.|diffusion_model\.|lycoris_)?|^lora_te1?_|^text_encoder\."
)
#: Blocks as diffusers names them and as single files do.
_BLOCK = re.compile(
    r"(?P<middle>mid_block|middle_block)\.|(?P<way>down_blocks|up_blocks|input_blocks|output_blocks)\.(?P<number>\d+)\."
)
_HALVES = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight$")
_DOUBLES = re.compile(r"output_blocks\.(\d+)\.\d\.conv\.weight$")
_DOWN, _UP = ("lora_a", "lora_down", "down"), ("lora_b", "lora_up", "up")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Footprint:
    """Bytes by cause, at the engine's dtype. ``total`` is what must be free on the card.

    ``loras`` is what the faders keep: each file's products, and once the base of every tensor they touch.
    ``bank`` is what the feature bank remembers.
    """

    weights: Mapping[str, int]
    activations: int
    context: int
    loras: int = 0
    graphs: int = 0  # of acceleration compile; eager does without
    bank: int = 0

    @property
    def total(self) -> int:
        return self.without_graphs + self.graphs

    @property
    def without_graphs(self) -> int:
        return sum(self.weights.values()) + self.activations + self.context + self.loras + self.bank

    def describe(self) -> str:
        """``unet 1.61 GB + pictures in flight 0.42 GB + context 0.68 GB = 2.71 GB``."""
        parts = [
            *self.weights.items(),
            ("LoRA products", self.loras),
            ("feature bank", self.bank),
            ("pictures in flight", self.activations),
            ("captured graphs", self.graphs),
            ("context", self.context),
        ]
        return " + ".join(f"{name} {_gb(size)}" for name, size in parts if size) + f" = {_gb(self.total)}"


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a ``.safetensors`` file, read from its header alone.

    The header is a little-endian u64 length and that much JSON (safetensors format, README of
    huggingface/safetensors). Raises SDB-MODEL-CORRUPT with what is wrong.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= LARGEST_HEADER or length + 8 > file.stat().st_size:
                raise ValueError(f"its header claims {length} bytes of {file.stat().st_size}")
            header = json.loads(stream.read(length))
            return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SdbridgeError("SDB-MODEL-CORRUPT", f"{file} cannot be read as safetensors: {error}") from None


@dataclass(frozen=True)
class Vae:
    """The VAE that runs: its folder (None: the one inside a single file), its kind, and bytes a number."""

    folder: Path | None
    tiny: bool
    bytes_per_value: int = 2


def footprint(
    model: Path,
    width: int,
    height: int,
    rows: int = 1,
    bytes_per_value: int = 2,
    *,
    frames: int = 1,
    vae: Vae | None = None,
    loras: Iterable[Path] = (),
    networks: Mapping[str, Path] = MappingProxyType({}),
    bank_frames: int = 0,
    captured: bool = False,
) -> Footprint:
    """What ``model`` (a diffusers folder or a single file) takes at this size and stream batch.

    ``rows`` is steps times ``frames`` (the frame batch), plus guidance rows. ``bytes_per_value`` is 2 for
    fp16. ``vae`` None: a tiny one in its folder. ``networks`` are files or folders of what else is loaded
    (ControlNets, image encoders) by name, ``bank_frames`` what the feature bank holds, 0 for none.
    ``captured``: the acceleration keeps CUDA graphs (compile).
    """
    vae = vae or Vae(model / "vae", True, bytes_per_value)
    weights: dict[str, int] = {}
    if model.is_dir():
        found = {part: _shapes_of_folder(model / part) for part in PARTS}
        weights = {part: _values(shapes) * bytes_per_value for part, shapes in found.items() if shapes}
        unet: Shapes = found["unet"]
    else:
        unet = tensor_shapes(model)
        inside = {name: shape for name, shape in unet.items() if name.startswith(_OWN_VAE)}
        weights["checkpoint"] = (_values(unet) - _values(inside)) * bytes_per_value
        if vae.folder is None:
            weights["vae"] = _values(inside) * vae.bytes_per_value
    if vae.folder is not None and (shapes := _shapes_of_folder(vae.folder)):
        weights["vae"] = _values(shapes) * vae.bytes_per_value
    counted: set[Path] = set()
    for name, network in networks.items():
        if network not in counted:  # one used twice is loaded once
            counted.add(network)
            weights[name] = _values(_shapes_of(network)) * bytes_per_value
    channels = max((shape[0] for name, shape in unet.items() if _is_first_convolution(name)), default=320)
    latent = (width // 8) * (height // 8)
    pictures = width * height * frames * (TINY_VAE_VALUES if vae.tiny else FULL_VAE_VALUES)
    activations = int(rows * channels * latent * UNET_VALUES) * bytes_per_value
    graphs = 0
    if captured:
        graphs = width * height * (frames * GRAPH_BYTES_A_FRAME + rows * GRAPH_BYTES_A_ROW)
    bank = bank_values(unet, width // 8, height // 8, bank_frames) * rows if bank_frames else 0
    return Footprint(
        weights,
        activations + pictures * vae.bytes_per_value,
        CONTEXT_BYTES,
        _lora_values(loras) * bytes_per_value,
        graphs,
        bank * bytes_per_value,
    )


def bank_values(unet: Shapes, width: int, height: int, frames: int) -> int:
    """Numbers that the feature bank keeps for one row of latents ``[height, width]``.

    For every self-attention layer keys and values of the running frame and the bank's, and outputs where it
    fuses: in the middle and the first two blocks of the way up (``engine/image/feature_bank.py``).
    """
    sizes = [(height, width)]
    place = _place_of(unet)
    kept = 0
    for name, shape in unet.items():
        found = place(name) if name.endswith("attn1.to_k.weight") else None
        if found is None:
            continue
        level, fuses = found
        while len(sizes) <= level:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        tokens = sizes[level][0] * sizes[level][1]
        kept += (1 + frames) * tokens * shape[0] * (3 if fuses else 2)
    return kept


def _place_of(unet: Shapes) -> Callable[[str], tuple[int, bool] | None]:
    """From a layer's name, as diffusers or as a single file has it, to how often its picture was halved,
    and whether the feature bank fuses its output."""
    down = {int(found[1]) for name in unet if (found := re.match(r"down_blocks\.(\d+)\.", name))}
    halving = [int(found[1]) for name in unet if (found := _HALVES.search(name))]
    doubling = [int(found[1]) for name in unet if (found := _DOUBLES.search(name))]
    last = max(down, default=len(halving))

    def place(name: str) -> tuple[int, bool] | None:
        found = _BLOCK.search(name)
        if found is None:
            return None
        if found["middle"]:
            return last, True
        number = int(found["number"])
        match found["way"]:
            case "down_blocks":
                return number, False
            case "up_blocks":
                return last - number, number < 2
            case "input_blocks":
                return sum(at <= number for at in halving), False
            case _:
                passed = sum(at < number for at in doubling)
                return last - passed, passed < 2

    return place


def product_values(shapes: Shapes) -> dict[str, int]:
    """Layer of a LoRA file -> how many numbers its product has, told from the shapes of its pieces.

    Layers are named so that the spellings of kohya, diffusers and PEFT meet.
    """
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        found = _PIECE.search(key)
        if found:
            stem = _LORA_PREFIX.sub("", key[: found.start()]).replace(".", "_")
            layers.setdefault(stem, {})[(found["piece"] or found["word"]).lower()] = shape
    return {stem: values for stem, pieces in layers.items() if (values := _product(pieces))}


def _product(pieces: Mapping[str, tuple[int, ...]]) -> int:
    down = next((shape for name, shape in pieces.items() if name in _DOWN), None)
    up = next((shape for name, shape in pieces.items() if name in _UP), None)
    if down is not None and up is not None:
        kernel = pieces.get("lora_mid", ())[2:]  # the kernel of a convolution in three parts
        return up[0] * prod(down[1:]) * prod(kernel)
    if "hada_w1_a" in pieces and "hada_w1_b" in pieces:
        kernel = pieces.get("hada_t1", ())[2:]
        rows = pieces["hada_w1_a"][1 if kernel else 0]
        return rows * prod(pieces["hada_w1_b"][1:]) * prod(kernel)
    factors = [_kronecker(pieces, number) for number in (1, 2)]
    if all(factors):
        return factors[0] * factors[1]
    whole = pieces.get("diff", pieces.get("w_norm"))
    return 0 if whole is None else prod(whole)


def _kronecker(pieces: Mapping[str, tuple[int, ...]], number: int) -> int:
    whole = pieces.get(f"lokr_w{number}")
    if whole is not None:
        return prod(whole)
    low, high = pieces.get(f"lokr_w{number}_a"), pieces.get(f"lokr_w{number}_b")
    if low is None or high is None:
        return 0
    kernel = pieces.get(f"lokr_t{number}", ())[2:]
    return low[1 if kernel else 0] * prod(high[1:]) * prod(kernel)


def _lora_values(files: Iterable[Path]) -> int:
    """Products of every file, and the base of each layer that any of them touches."""
    products, bases = 0, dict[str, int]()
    for file in files:
        found = product_values(_shapes_of(file))
        products += sum(found.values())
        bases |= found
    return products + sum(bases.values())


def _shapes_of(place: Path) -> Shapes:
    return _shapes_of_folder(place) if place.is_dir() else tensor_shapes(place)


def _shapes_of_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    """All tensors of one part. Half-precision twins (``*.fp16.safetensors``) are counted once."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16." not in file.name]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in plain or files:
        shapes |= tensor_shapes(file)
    return shapes


def _values(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _is_first_convolution(name: str) -> bool:
    return name in ("conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight")


def _gb(size: int) -> str:
    return f"{size / 2**30:.2f} GB"
