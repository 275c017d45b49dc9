"""What a ControlNet or T2I-Adapter file is, whether it fits the model that runs, and the network from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdbridge.engine.image.control_kinds import refuse_relatives
from sdbridge.engine.image.control_networks import AdapterNetwork, ControlNetwork, Network
from sdbridge.engine.image.seams import ModelParts
from sdbridge.engine.image.share import share_here
from sdbridge.engine.image.skeleton import give_weights, shapes_of, skeleton
from sdbridge.engine.image.stored import Source
from sdbridge.engine.image.upload import upload_to
from sdbridge.engine.image.weight_file import (
    OpenedFile,
    few_of,
    find_weights,
    open_weight_file,
    refuse_spoilt,
    told_of_broken,
)
from sdbridge.errors import SdbridgeError, first_line

_NAMES = (
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
)
_FAMILIES = {768: "SD 1.5", 1024: "SD 2.x", 2048: "SDXL"}


def load_network(
    path: Path,
    model: ModelParts,
    *,
    accelerate: Callable[[Callable[..., Any], str], Callable[..., Any]] | None = None,
    allow_pickle: bool = False,
) -> Network:
    """Read a ControlNet (diffusers or original layout) or a T2I-Adapter. Slow: call it beside the loop.

    Raises SDB-FILE-..., SDB-CONTROLNET-KIND for a file that holds neither, or
    SDB-CONTROLNET-FAMILY for one made for another family than the model that runs.
    """
    place = find_weights(path, *_NAMES)
    opened = open_weight_file(place, allow_pickle=allow_pickle)
    config = _config_beside(place)
    keys = opened.tensors.keys()
    refuse_relatives(place, keys)
    refuse_spoilt(place, few_of(opened.tensors))
    share_here().expect(sum(source.nbytes for source in opened.tensors.values()))
    if any("controlnet_cond_embedding." in key for key in keys):
        network: Network = _controlnet(opened, config, opened.tensors, model)
    elif any("input_hint_block." in key for key in keys):
        network = _controlnet(opened, {}, _from_original(opened, model), model)
    elif any(key.startswith(("adapter.conv_in.", "adapter.body.")) for key in keys):
        network = _adapter(opened, config, model)
    else:
        first = ", ".join(list(keys)[:3])
        raise SdbridgeError(
            "SDB-CONTROLNET-KIND",
            f"{place} holds neither a ControlNet nor a T2I-Adapter but {len(keys)} tensors such as {first}",
        )
    if accelerate is not None and isinstance(network, ControlNetwork):
        network.run = accelerate(network.run, f"ControlNet {path.name}")
        network.embed = accelerate(network.embed, f"the hint of ControlNet {path.name}")
    if model.device.type == "cuda":
        torch.cuda.current_stream().synchronize()  # not the device: a graph may be under capture
    return network


def _config_beside(place: Path) -> dict[str, Any]:
    file = place.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{file} is no valid JSON: {error}") from None
    known = isinstance(read, dict) and read.get("_class_name") in ("ControlNetModel", "T2IAdapter")
    return read if known else {}


def _of_config(kind: Any, config: Mapping[str, Any], place: Path) -> Any:
    """The empty network. Raises SDB-FILE-BROKEN where the config beside the file says nothing that can be."""
    try:
        return kind.from_config(dict(config))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise SdbridgeError(
            "SDB-FILE-BROKEN",
            f"{place.with_name('config.json')} describes no {kind.__name__}: {first_line(error, kind=True)}",
        ) from None


def _from_original(opened: OpenedFile, model: ModelParts) -> Mapping[str, Source]:
    """Keys of the original ControlNet code (``control_model.input_blocks...``) as diffusers names them."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    try:
        converted: Mapping[str, Source] = convert_controlnet_checkpoint(
            dict(opened.tensors), dict(model.unet.config)
        )
    except (KeyError, ValueError, IndexError) as error:
        raise SdbridgeError(
            "SDB-CONTROLNET-FAMILY", f"{opened.path} has other blocks than the model that runs: {error!r}"
        ) from None
    return {key: tensor for key, tensor in converted.items() if tensor is not None}


def _controlnet(
    opened: OpenedFile, config: Mapping[str, Any], tensors: Mapping[str, Source], model: ModelParts
) -> ControlNetwork:
    from diffusers import ControlNetModel

    theirs = _text_width(tensors)
    ours = int(model.unet.config["cross_attention_dim"])
    if theirs and theirs != ours:
        raise _other_family(opened.path, "ControlNet", theirs, ours)
    with skeleton(upload_to(model.device).gentle):
        if config:
            network = _of_config(ControlNetModel, config, opened.path)
        else:
            network = ControlNetModel.from_unet(
                model.unet,
                conditioning_embedding_out_channels=_hint_channels(tensors),
                load_weights_from_unet=False,
                conditioning_channels=int(tensors["controlnet_cond_embedding.conv_in.weight"].shape[1]),
            )
    _fill(network, tensors, opened.path, model)
    wanted, found = _skip_channels(model.unet.config), _zero_channels(network)
    if wanted != found:
        raise SdbridgeError(
            "SDB-CONTROLNET-FAMILY",
            f"{opened.path} gives {len(found)} residuals of {found[:4]}... channels, "
            f"the model that runs takes {len(wanted)} of {wanted[:4]}...",
        )
    return ControlNetwork(network)


def _text_width(tensors: Mapping[str, Source]) -> int:
    return next((int(t.shape[1]) for key, t in tensors.items() if key.endswith("attn2.to_k.weight")), 0)


def _hint_channels(tensors: Mapping[str, Source]) -> tuple[int, ...]:
    """Channels of the hint's convolutions, which no config says for a single file."""
    stem = "controlnet_cond_embedding."
    channels = [int(tensors[f"{stem}conv_in.weight"].shape[0])]
    block = 1
    while f"{stem}blocks.{block}.weight" in tensors:
        channels.append(int(tensors[f"{stem}blocks.{block}.weight"].shape[0]))
        block += 2
    return tuple(channels)


def _skip_channels(config: Mapping[str, Any]) -> list[int]:
    """Channels of the UNet's skip connections, in order: what a ControlNet's residuals are added to."""
    channels = list(config["block_out_channels"])
    layers = config["layers_per_block"]
    per_block = list(layers) if isinstance(layers, list | tuple) else [layers] * len(channels)
    found = [channels[0]]
    for index, width in enumerate(channels):
        last = index == len(channels) - 1
        found += [width] * (per_block[index] + (0 if last else 1))
    return found


def _zero_channels(network: Any) -> list[int]:
    return [int(conv.out_channels) for conv in network.controlnet_down_blocks]


def _adapter(opened: OpenedFile, config: Mapping[str, Any], model: ModelParts) -> AdapterNetwork:
    from diffusers import T2IAdapter

    with skeleton(upload_to(model.device).gentle):
        network = _of_config(T2IAdapter, config or _adapter_config(opened.tensors), opened.path)
    _fill(network, opened.tensors, opened.path, model)
    widths = list(model.unet.config["block_out_channels"])
    channels = list(network.config["channels"])
    if channels[: len(widths)] != widths:
        raise SdbridgeError(
            "SDB-CONTROLNET-FAMILY",
            f"{opened.path} is a T2I-Adapter for blocks of {channels} channels, the model has {widths}",
        )
    theirs, ours = _adapter_factors(network), _block_factors(model)
    if any(mine != given for mine, given in zip(ours, theirs, strict=False)):
        raise SdbridgeError(
            "SDB-CONTROLNET-FAMILY",
            f"{opened.path} is a T2I-Adapter whose features are {theirs} times smaller than the picture, "
            f"the blocks of the model {ours} times",
        )
    return AdapterNetwork(network)


def _adapter_factors(network: Any) -> list[int]:
    """How much smaller than the picture each of its features is. Nothing is computed for it."""
    from diffusers import T2IAdapter

    side = 512
    with torch.device("meta"):
        same = T2IAdapter.from_config(network.config)
        features = same(torch.empty(1, int(network.config["in_channels"]), side, side))
    return [side // int(level.shape[-1]) for level in features]


def _block_factors(model: ModelParts) -> list[int]:
    """The same of the places where the UNet takes features: at a block's attention, else at its end."""
    factor, found = model.pixels_per_latent, []
    for block in model.unet.down_blocks:
        after = factor * (2 if block.downsamplers else 1)
        found.append(factor if getattr(block, "has_cross_attention", False) else after)
        factor = after
    return found


def _adapter_config(tensors: Mapping[str, Source]) -> dict[str, Any]:
    """The structure of a T2I-Adapter without a config: read from the sizes of its tensors."""
    blocks = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("adapter.body."))
    resnets = 1 + max(int(key.split(".")[4]) for key in tensors if ".resnets." in key)
    if "adapter.conv_in.weight" not in tensors:
        # The last block of a light adapter repeats the width before it and is in no config.
        channels = [int(tensors[f"adapter.body.{i}.out_conv.weight"].shape[0]) for i in range(blocks - 1)]
        first = int(tensors["adapter.body.0.in_conv.weight"].shape[1])
        kind, factor = "light_adapter", 8
    else:
        channels = [int(tensors[f"adapter.body.{i}.resnets.0.block1.weight"].shape[0]) for i in range(blocks)]
        first = int(tensors["adapter.conv_in.weight"].shape[1])
        large = first in (256, 768)  # SDXL's adapters fold 16 x 16 pixels into one, the others 8 x 8
        kind, factor = ("full_adapter_xl", 16) if large else ("full_adapter", 8)
    return {
        "in_channels": first // factor**2,
        "channels": channels,
        "num_res_blocks": resnets,
        "downscale_factor": factor,
        "adapter_type": kind,
    }


def _fill(network: Any, tensors: Mapping[str, Source], path: Path, model: ModelParts) -> None:
    """Put the tensors in, all of them; says what is missing, too much, or of another size."""
    upload = upload_to(model.device)
    wanted = shapes_of(network)
    upload.pause()
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        wrong = [name for name in wanted if name in given and given[name] != wanted[name]]
        missing = [name for name in wanted if name not in given]
        more = [name for name in given if name not in wanted]
        parts = [
            f"{len(names)} {word} (such as {names[0]})"
            for names, word in ((wrong, "of another size"), (missing, "missing"), (more, "unknown"))
            if names
        ]
        raise SdbridgeError(
            "SDB-CONTROLNET-FAMILY", f"{path} does not fit the model that runs: tensors {', '.join(parts)}"
        )
    with told_of_broken(path):
        give_weights(network, tensors, upload, model.dtype, channels_last=model.device.type == "cuda")


def _other_family(path: Path, kind: str, theirs: int, ours: int) -> SdbridgeError:
    return SdbridgeError(
        "SDB-CONTROLNET-FAMILY",
        f"{path} is a {kind} for {_FAMILIES.get(theirs, 'a model')} (text width {theirs}), "
        f"the model that runs is {_FAMILIES.get(ours, 'one')} (text width {ours})",
    )
