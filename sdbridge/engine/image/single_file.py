"""One community ``.safetensors`` in the LDM layout, turned into the parts that diffusers runs.

Such a file holds weights only. What it lacks (tokenizer, and configs where the shapes leave a choice) is
looked for beside it in ``<stem>.parts/``, in ``engine.options.parts``, then among the pulled models
(``sdbridge pull sd15-parts`` and its sisters, 2 to 4 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.clip_text import ClipText, ClipTextProjected
from sdbridge.engine.image.detect import (
    Detected,
    check_channels,
    family_of,
    family_of_keys,
    read_config,
    sampler_of,
)
from sdbridge.engine.image.device import Placement
from sdbridge.engine.image.load import LoadedModel, ReadVae, assemble, load_tokenizer
from sdbridge.engine.image.parts import check_keys, read_part
from sdbridge.engine.image.pickled import PickleRefusedError, unpickle
from sdbridge.engine.image.skeleton import give_weights, shapes_of, skeleton
from sdbridge.engine.image.stored import BrokenFileError, Source, in_memory, look_into, split_rows
from sdbridge.engine.image.upload import Upload
from sdbridge.errors import SdbridgeError

_UNET = "model.diffusion_model."
#: Where each text encoder's keys begin; SD 2.x has two spellings (SD-Turbo's file has the later one).
_TEXT: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sd15": (("cond_stage_model.transformer.",),),
    "sd21": (("cond_stage_model.model.", "conditioner.embedders.0.model."),),
    "sdxl": (("conditioner.embedders.0.transformer.",), ("conditioner.embedders.1.model.",)),
}
_OPEN_CLIP_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def load_single_file(
    path: Path,
    placement: Placement,
    vae: str,
    upload: Upload,
    *,
    allow_pickle: bool,
    options: Mapping[str, object],
    on_stage: Callable[[str], None],
) -> LoadedModel:
    """Read, recognise, convert and assemble. Raises SDB-MODEL-CORRUPT, -FAMILY, -KEYS, -PARTS."""
    on_stage("weights")
    tensors, about = _read(path, allow_pickle)
    family = family_of_keys(tensors, {key: tuple(value.shape) for key, value in tensors.items()}, path.name)
    parts = _parts_folder(path, family, options)
    unet_config = read_config(parts / "unet" / "config.json")
    if unet_config is None:
        raise _lacking(path, family, "unet/config.json")
    if family_of(unet_config, parts.name) != family:
        raise SdbridgeError(
            "SDB-MODEL-PARTS", f"{parts} is for {family_of(unet_config, parts.name)}, {path.name} is {family}"
        )
    scheduler = _scheduler(parts, tensors, about, family)
    detected = Detected(family, sampler_of(scheduler, unet_config), scheduler, unet_config)
    on_stage("unet")
    channels = int(tensors[_UNET + "input_blocks.0.0.weight"].shape[1])
    unet_config = {**unet_config, "in_channels": channels}
    check_channels(unet_config, path.name)
    try:
        unet = _unet(tensors, unet_config, placement, upload)
        full_vae = _vae(path, tensors, parts, placement, upload)
        on_stage("text encoder")
        encoders = _text_encoders(tensors, family, parts, path, allow_pickle, placement.dtype, upload)
    except (BrokenFileError, OSError) as error:
        raise _damaged(path, error) from None
    tokenizers = tuple(
        load_tokenizer(parts / name)
        for name in (("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",))
    )
    try:
        return assemble(
            path,
            parts,
            detected,
            unet,
            full_vae,
            encoders,
            tokenizers,
            placement,
            vae,
            upload,
            options,
            on_stage,
        )
    except SdbridgeError as error:
        if full_vae is not None or error.code != "SDB-MODEL-PARTS":
            raise
        tiny = "taesdxl" if family == "sdxl" else "taesd"
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"{path.name} was saved without its VAE: {error.what}",
            f"Run `sdbridge pull {tiny}`, or set engine.vae to a folder with a VAE.",
        ) from None


def _read(path: Path, allow_pickle: bool) -> tuple[dict[str, Source], Mapping[str, str]]:
    """Tensors, still in the file, and metadata of it."""
    if path.suffix.lower() != ".safetensors":
        if not allow_pickle:
            raise SdbridgeError(
                "SDB-MODEL-FAMILY", f"{path.name} is neither a model folder nor a .safetensors file"
            )
        return dict(_read_pickle(path)), {}
    try:
        file = look_into(path)
    except (BrokenFileError, OSError) as error:
        raise _damaged(path, error) from None
    return dict(file.tensors), file.metadata


def _damaged(path: Path, error: Exception) -> SdbridgeError:
    return SdbridgeError(
        "SDB-MODEL-CORRUPT",
        f"{path.name} ({path.stat().st_size} bytes) is damaged or half-written: {error}",
    )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Weights only, even where pickles are allowed: no code in the file is run."""
    try:
        found = unpickle(path)
    except PickleRefusedError as error:
        raise SdbridgeError("SDB-MODEL-CORRUPT", f"{path.name} {error}") from None
    except OSError as error:
        raise SdbridgeError(
            "SDB-MODEL-CORRUPT", f"{path.name} cannot be read: {error.strerror or error}"
        ) from None
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _parts_folder(path: Path, family: str, options: Mapping[str, object]) -> Path:
    from sdbridge.models import catalog

    given = options.get("parts")
    places = [Path(str(given)).expanduser()] if given else []
    places.append(path.with_suffix(".parts"))
    entry = catalog.find(f"{family}-parts")
    if entry is not None:
        places.append(catalog.folder_of(entry))
    for place in places:
        if (place / "tokenizer").is_dir():
            return place
    raise _lacking(path, family, "a tokenizer")


def _lacking(path: Path, family: str, what: str) -> SdbridgeError:
    return SdbridgeError(
        "SDB-MODEL-PARTS",
        f"{path.name} is one file of the {family} family, which holds no {what}, "
        f"and neither {path.stem}.parts beside it nor {family}-parts among the pulled models has one",
        f"Run `sdbridge pull {family}-parts` (a few MB).",
    )


def _scheduler(
    parts: Path, tensors: Mapping[str, Source], about: Mapping[str, str], family: str
) -> dict[str, Any]:
    """The noise schedule; what is predicted is left out unless the file itself says so.

    Parts are shared by many checkpoints, so only a config of the file's own folder may speak for it.
    """
    config = read_config(parts / "scheduler" / "scheduler_config.json") or {}
    if not parts.name.endswith(".parts"):
        config = {key: value for key, value in config.items() if key.startswith(("beta", "num_train"))}
    says = about.get("modelspec.prediction_type", "")
    if says in ("epsilon", "v", "v_prediction"):
        config["prediction_type"] = "epsilon" if says == "epsilon" else "v_prediction"
    elif "v_pred" in tensors:
        config["prediction_type"] = "v_prediction"
    elif "prediction_type" not in config and family == "sd15":
        config["prediction_type"] = "epsilon"
    if "ztsnr" in tensors:
        config["rescale_betas_zero_snr"] = True
    return config


def _unet(tensors: Mapping[str, Source], config: dict[str, Any], placement: Placement, upload: Upload) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = {key: value for key, value in tensors.items() if key.startswith(_UNET)}
    try:
        with skeleton():
            unet = UNet2DConditionModel.from_config(config)
        # New names; looks at no value. With what the file leaves to defaults.
        converted = convert_ldm_unet_checkpoint(own, dict(unet.config))
    except (KeyError, ValueError, AttributeError) as error:
        raise SdbridgeError(
            "SDB-MODEL-KEYS", f"the UNet lacks weights or has others, first {error}"
        ) from None
    chosen = _complete(unet, converted, "unet")
    give_weights(unet, chosen, upload, placement.dtype, channels_last=placement.channels_last)
    return unet


def _vae(
    path: Path, tensors: Mapping[str, Source], parts: Path, placement: Placement, upload: Upload
) -> ReadVae | None:
    """Reads the file's own full VAE; None when it has none or no config describes it."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = read_config(parts / "vae" / "config.json")
    own = {key: value for key, value in tensors.items() if key.startswith("first_stage_model.")}
    if config is None or not own or config.get("_class_name") == "AutoencoderTiny":
        return None

    def read(dtype_of: Callable[[Any], torch.dtype]) -> Any:
        with skeleton():
            vae = AutoencoderKL.from_config(config)
        try:
            converted = convert_ldm_vae_checkpoint({k: in_memory(v) for k, v in own.items()}, vae.config)
            chosen = _complete(vae, converted, "vae")
            give_weights(vae, chosen, upload, dtype_of(vae.config), channels_last=placement.channels_last)
        except (BrokenFileError, OSError) as error:
            raise _damaged(path, error) from None
        except (KeyError, AttributeError) as error:
            raise SdbridgeError(
                "SDB-MODEL-KEYS", f"the VAE lacks weights or has others, first {error}"
            ) from None
        return vae

    return read


def _text_encoders(
    tensors: Mapping[str, Source],
    family: str,
    parts: Path,
    path: Path,
    allow_pickle: bool,
    dtype: torch.dtype,
    upload: Upload,
) -> tuple[Any, ...]:
    """The file's own encoders; one that was left out is read from the parts, if these have its weights."""
    encoders: list[Any] = []
    for index, prefixes in enumerate(_TEXT[family]):
        folder = "text_encoder_2" if index else "text_encoder"
        kind: Any = ClipTextProjected if index else ClipText
        prefix = next((p for p in prefixes if any(key.startswith(p) for key in tensors)), "")
        if not prefix:
            encoders.append(_left_out(kind, parts / folder, path, allow_pickle, dtype, upload))
            continue
        config = read_config(parts / folder / "config.json")
        if config is None:
            raise _lacking(path, family, f"{folder}/config.json")
        with skeleton():
            encoder = kind.from_config(config)
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        state = _from_open_clip(own) if prefix.endswith(".model.") else own
        bare = {key.removeprefix("text_model."): value for key, value in state.items()}
        wrapped = any(key.startswith("text_model.") for key in shapes_of(encoder))
        outside = ("text_projection",)
        named = {k if not wrapped or k.startswith(outside) else f"text_model.{k}": v for k, v in bare.items()}
        give_weights(encoder, _complete(encoder, named, folder), upload, dtype)
        encoders.append(encoder)
    return tuple(encoders)


def _left_out(
    kind: Any, folder: Path, path: Path, allow_pickle: bool, dtype: torch.dtype, upload: Upload
) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"{path.name} was saved without its {folder.name}, and {folder} has no weights for it",
            f"Take a file that holds it, or put its weights (model.safetensors) into {folder}.",
        )
    return read_part(kind, folder, dtype, allow_pickle, upload=upload)


def _from_open_clip(tensors: Mapping[str, Source]) -> dict[str, Source]:
    """OpenCLIP's names (SD 2.1, SDXL's second encoder) as transformers has them; q, k, v are one there."""
    state: dict[str, Source] = {}
    for key, value in tensors.items():
        if key in _OPEN_CLIP_TOP:
            state[_OPEN_CLIP_TOP[key]] = value
        elif key == "text_projection":
            state["text_projection.weight"] = in_memory(value).T.contiguous()
        elif key.startswith("transformer.resblocks."):
            name = key.replace("transformer.resblocks.", "encoder.layers.")
            if ".attn.in_proj_" in name:
                for part, piece in zip("qkv", split_rows(value, 3), strict=True):
                    state[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = piece
                continue
            for theirs, ours in _OPEN_CLIP_LAYER.items():
                name = name.replace(f".{theirs}.", f".{ours}.")
            state[name] = value
    return state


def _complete(module: Any, state: Mapping[str, Source], part: str) -> dict[str, Source]:
    """What the module needs, all of it; deeper text layers than the model uses are left over, which is usual.

    Raises SDB-MODEL-KEYS where something is missing or of another shape.
    """
    wanted = shapes_of(module)
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    check_keys(part, [key for key in wanted if key not in state], wrong)
    return {key: state[key] for key in wanted if key in state}
