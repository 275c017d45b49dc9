"""One part of a checkpoint folder, such as its UNet: from config and weights to a network on its device."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from sdbridge.engine.image.gentle_imports import importing_gently
from sdbridge.engine.image.skeleton import give_weights, move, shapes_of, skeleton
from sdbridge.engine.image.stored import BrokenFileError, Stored, look_into
from sdbridge.engine.image.upload import Upload, upload_to
from sdbridge.errors import SdbridgeError, first_line

log = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
#: What diffusers and transformers call a part's weights, the first that is there is read.
_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_HALVES = tuple(name.replace(".safetensors", ".fp16.safetensors") for name in _NAMES)
#: And the list of the files they are spread over.
_INDEXES = tuple(f"{name}.index.json" for name in _NAMES)
_INDEXES_OF_HALVES = tuple(f"{name}.index.fp16.json" for name in _NAMES)
#: How files of vision networks spell what transformers 5 calls otherwise.
_SPELLINGS = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
)


def read_part(
    kind: Any,
    folder: Path,
    dtype: torch.dtype | Callable[[Any], torch.dtype],
    allow_pickle: bool,
    *,
    upload: Upload | None = None,
    channels_last: bool = False,
) -> Any:
    """One component of a folder, complete or not at all: without gradients, for use.

    ``dtype`` may depend on the config. With ``upload`` it comes to that device, else it stays on the CPU.
    Raises SDB-MODEL-PARTS (no such folder), -PICKLE (only pickles there), -CORRUPT, -KEYS.
    """
    from sdbridge.models import random_weights

    if not (folder / "config.json").is_file():
        raise SdbridgeError("SDB-MODEL-PARTS", f"{folder.parent.name} has no {folder.name}/config.json")
    weights = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    pickles = [path for path in folder.iterdir() if path.suffix in PICKLES]
    if not weights and pickles and not allow_pickle:
        raise SdbridgeError(
            "SDB-MODEL-PICKLE", f"{folder} holds its weights as a pickle only ({pickles[0].name})"
        )
    if not weights and (folder / random_weights.MARK).is_file():
        made = random_weights.make_marked_part(kind, folder)
        return made.to(dtype if isinstance(dtype, torch.dtype) else dtype(made.config))
    if not weights and not pickles:
        raise SdbridgeError("SDB-MODEL-PARTS", f"{folder} holds a config but no weights")
    way = upload or upload_to(torch.device("cpu"))
    model = _read_ourselves(kind, folder, weights, dtype, way, channels_last) if weights else None
    if model is None:
        with importing_gently() if way.gentle else nullcontext():
            model = _read_by_library(kind, folder, weights, dtype if isinstance(dtype, torch.dtype) else None)
        model = move(model, way, dtype if isinstance(dtype, torch.dtype) else dtype(model.config))
    return model.eval().requires_grad_(False)


def check_keys(part: str, missing: Any, mismatched: Any = ()) -> None:
    """Raise SDB-MODEL-KEYS when weights are absent: they would be random."""
    absent = [key for key in missing if not str(key).endswith("position_ids")]
    wrong = [str(item) for item in mismatched]
    if absent or wrong:
        first = ", ".join(sorted(str(key) for key in (absent or wrong))[:3])
        raise SdbridgeError(
            "SDB-MODEL-KEYS",
            f"{part} lacks {len(absent)} weights and has {len(wrong)} of another shape, first {first}",
        )


def _read_ourselves(
    kind: Any,
    folder: Path,
    weights: Sequence[Path],
    dtype: torch.dtype | Callable[[Any], torch.dtype],
    upload: Upload,
    channels_last: bool,
) -> Any | None:
    """Config and tensors straight from the files; None where the keys need the library's own knowledge."""
    tensors: dict[str, Stored] = {}
    for path in _files(folder, weights):
        try:
            tensors |= look_into(path).tensors
        except (BrokenFileError, OSError) as error:
            raise _damaged(path, error) from None
    make = _maker(kind, folder)
    try:
        with skeleton(upload.gentle):
            model = make()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        log.debug("%s is left to its library: %s", folder, first_line(error, 300))
        return None  # which may know better, or say what is wrong
    if hasattr(model, "_fix_state_dict_keys_on_load"):  # diffusers: attention layers had other names once
        model._fix_state_dict_keys_on_load(tensors)
    wanted = shapes_of(model)
    named = _named(tensors, wanted, (getattr(model, "base_model_prefix", ""), "text_model", "vision_model"))
    whole = all(key in named or key.endswith("position_ids") for key in wanted)
    if not whole or any(named[key].shape != shape for key, shape in wanted.items() if key in named):
        return None
    chosen = dtype if isinstance(dtype, torch.dtype) else dtype(model.config)
    try:
        give_weights(model, named, upload, chosen, channels_last=channels_last, make=make)
    except (BrokenFileError, OSError) as error:
        raise _damaged(folder, error) from None
    return model


def _files(folder: Path, weights: Sequence[Path]) -> list[Path]:
    """Which files hold the part's weights. Raises SDB-MODEL-CORRUPT where one of several is missing."""
    present = {path.name: path for path in weights}
    for names, indexes in ((_NAMES, _INDEXES), (_HALVES, _INDEXES_OF_HALVES)):
        for name in names:
            if name in present:
                return [present[name]]
        for index in indexes:
            if (folder / index).is_file():
                return _listed(folder / index, present)
    if len(weights) == 1:
        return [weights[0]]
    others = ", ".join(path.name for path in weights[:3])
    raise SdbridgeError("SDB-MODEL-CORRUPT", f"{folder} cannot be read: none of {others} is its weights")


def _listed(index: Path, present: Mapping[str, Path]) -> list[Path]:
    try:
        listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [present[name] for name in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SdbridgeError(
            "SDB-MODEL-CORRUPT", f"{index} names no file that is there: {first_line(error, 300)}"
        ) from None


def _maker(kind: Any, folder: Path) -> Callable[[], Any]:
    """Makes the part from its config, by diffusers or by transformers."""

    def make() -> Any:
        if hasattr(kind, "config_class"):
            config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
            return kind(config)
        return kind.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    return make


def _named(
    tensors: Mapping[str, Stored], wanted: Mapping[str, object], prefixes: Sequence[str]
) -> dict[str, Stored]:
    """The tensors by the keys that are wanted; transformers' versions differ in a prefix or a word."""
    found: dict[str, Stored] = {}
    for key in wanted:
        others = [f"{prefix}.{key}" for prefix in prefixes if prefix]
        others += [key.removeprefix(f"{prefix}.") for prefix in prefixes if prefix]
        others += [key.replace(ours, theirs) for ours, theirs in _SPELLINGS if ours in key]
        name = next((name for name in (key, *others) if name in tensors), None)
        if name is not None:
            found[key] = tensors[name]
    return found


def _read_by_library(kind: Any, folder: Path, weights: Sequence[Path], dtype: torch.dtype | None) -> Any:
    from safetensors import SafetensorError

    variant = {"variant": "fp16"} if weights and all(".fp16." in path.name for path in weights) else {}
    try:
        model, about = kind.from_pretrained(
            str(folder),
            torch_dtype=dtype or torch.float32,
            local_files_only=True,
            use_safetensors=bool(weights),
            output_loading_info=True,
            **variant,
        )
    except SafetensorError as error:
        raise _damaged(weights[0], error) from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise SdbridgeError(
            "SDB-MODEL-CORRUPT", f"{folder} cannot be read: {first_line(error, 300)}"
        ) from None
    check_keys(folder.name, about.get("missing_keys", ()), about.get("mismatched_keys", ()))
    return model


def _damaged(path: Path, error: Exception) -> SdbridgeError:
    return SdbridgeError("SDB-MODEL-CORRUPT", f"{path} is damaged or half-written: {error}")
