"""From a local folder or file to a running model: read, check, put on the device. Never the network."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdbridge.engine.image.clip_text import ClipText, ClipTextProjected
from sdbridge.engine.image.clip_tokens import ClipTokenizer
from sdbridge.engine.image.detect import Detected, detect_folder
from sdbridge.engine.image.device import Placement
from sdbridge.engine.image.parts import PICKLES, read_part
from sdbridge.engine.image.schedule import NoiseSchedule, Sampler, noise_schedule
from sdbridge.engine.image.upload import START_PIECE, START_READERS, Upload
from sdbridge.errors import SdbridgeError
from sdbridge.models.vae_choice import tiny_vae_folder, vae_class

log = logging.getLogger(__name__)


#: Reads a VAE in the dtype that the function finds for its config.
ReadVae = Callable[[Callable[[Any], torch.dtype]], Any]


@dataclass
class LoadedModel:
    """Everything the stream needs of a checkpoint, on its device. Implements ``seams.ModelParts``."""

    path: Path
    family: str
    prediction: str
    sampler: Sampler
    schedule: NoiseSchedule
    unet: Any
    vae: Any
    vae_is_tiny: bool
    vae_dtype: torch.dtype
    latent_scale: float
    latent_shift: float
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    device: torch.device
    dtype: torch.dtype
    pixels_per_latent: int
    why: str

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.out_channels)


def load_model(
    path: str | Path,
    placement: Placement,
    *,
    vae: str = "auto",
    allow_pickle: bool = False,
    options: Mapping[str, object] | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> LoadedModel:
    """Load a diffusers-layout folder or one ``.safetensors`` (LDM layout).

    ``vae`` is auto (tiny if there is one), tiny, full, or a folder with an AutoencoderTiny or
    AutoencoderKL. Raises SdbridgeError SDB-MODEL-*: MISSING, PICKLE, CORRUPT, FAMILY, KEYS, PARTS.
    """
    root = Path(path).expanduser()
    if not str(path) or not root.exists():
        raise SdbridgeError("SDB-MODEL-MISSING", f"there is no model at {str(path)!r}")
    if root.suffix.lower() in PICKLES and not allow_pickle:
        raise SdbridgeError(
            "SDB-MODEL-PICKLE", f"{root.name} is a pickle, which can run any program when read"
        )
    with _offline():
        if placement.device.type == "cuda":
            _import_what_loads_beside()
        upload = Upload(placement.device, START_PIECE, min(START_READERS, os.cpu_count() or 1))
        if root.is_file():
            from sdbridge.engine.image.single_file import load_single_file

            return load_single_file(
                root,
                placement,
                vae,
                upload,
                allow_pickle=allow_pickle,
                options=options or {},
                on_stage=on_stage,
            )
        return _load_folder(root, placement, vae, upload, allow_pickle, options or {}, on_stage)


def _import_what_loads_beside() -> None:
    """Now, in 20 ms, and not while frames flow, which would all wait for the interpreter."""
    import diffusers

    diffusers.ControlNetModel, diffusers.T2IAdapter  # noqa: B018


def _load_folder(
    root: Path,
    placement: Placement,
    vae: str,
    upload: Upload,
    allow_pickle: bool,
    options: Mapping[str, object],
    on_stage: Callable[[str], None],
) -> LoadedModel:
    from diffusers import UNet2DConditionModel

    detected = detect_folder(root)
    on_stage("unet")
    unet = read_part(
        UNet2DConditionModel,
        root / "unet",
        placement.dtype,
        allow_pickle,
        upload=upload,
        channels_last=placement.channels_last,
    )
    on_stage("text encoder")
    encoders, tokenizers = load_text(root, detected.family, placement.dtype, allow_pickle, upload)
    return assemble(
        root, root, detected, unet, None, encoders, tokenizers, placement, vae, upload, options, on_stage
    )


def assemble(
    path: Path,
    parts: Path,
    detected: Detected,
    unet: Any,
    full_vae: ReadVae | None,
    encoders: tuple[Any, ...],
    tokenizers: tuple[Any, ...],
    placement: Placement,
    vae: str,
    upload: Upload,
    options: Mapping[str, object],
    on_stage: Callable[[str], None],
) -> LoadedModel:
    """Add the VAE to parts that are on the device and settle what the config leaves open.

    ``full_vae`` reads the file's own one, in the dtype that its config asks for; None: there is none.
    """
    on_stage("vae")

    def dtype_of(config: Any, tiny: bool) -> torch.dtype:
        upcast = not tiny and bool(getattr(config, "force_upcast", False))
        if tiny and placement.tiny_vae_dtype is not None:
            return placement.tiny_vae_dtype
        return torch.float32 if upcast and placement.dtype == torch.float16 else placement.dtype

    def read(folder: Path) -> tuple[Any, bool]:
        return _read_vae(folder, dtype_of, upload, placement.channels_last)

    own = None if full_vae is None else lambda: full_vae(lambda config: dtype_of(config, False))
    decoder, tiny, why_vae = _choose_vae(parts, detected.family, vae, own, options, read)
    channels = int(getattr(decoder.config, "latent_channels", 4))
    if channels != int(unet.config.out_channels):
        raise SdbridgeError(
            "SDB-MODEL-PARTS", f"the {why_vae} has {channels} channels, the UNet {unet.config.out_channels}"
        )
    vae_dtype = dtype_of(decoder.config, tiny)
    for module, dtype in (
        (unet, placement.dtype),
        (decoder, vae_dtype),
        *((e, placement.dtype) for e in encoders),
    ):
        module.to(device=placement.device, dtype=dtype)  # parts that were made, not read, are elsewhere
    if placement.channels_last:
        unet.to(memory_format=torch.channels_last)
        decoder.to(memory_format=torch.channels_last)
    config = detected.scheduler
    prediction = str(config["prediction_type"]) if "prediction_type" in config else ""
    if not prediction:
        prediction = probe_prediction(unet, noise_schedule(config), placement)
        log.info("no config says what the model predicts; a trial call says %s", prediction)
    why = (
        f"{path.name}: {detected.family}, predicts {prediction}, {why_vae}, on {placement.device} in "
        f"{str(placement.dtype).removeprefix('torch.')}"
        f"{'' if vae_dtype == placement.dtype else f' (VAE {vae_dtype})'.replace('torch.', '')} "
        f"because {placement.why}"
    )
    log.info(why)
    return LoadedModel(
        path=path,
        family=detected.family,
        prediction=prediction,
        sampler=detected.sampler,
        schedule=noise_schedule(config),
        unet=unet,
        vae=decoder,
        vae_is_tiny=tiny,
        vae_dtype=vae_dtype,
        latent_scale=float(decoder.config.scaling_factor),
        latent_shift=float(getattr(decoder.config, "shift_factor", None) or 0.0),
        text_encoders=encoders,
        tokenizers=tokenizers,
        device=placement.device,
        dtype=placement.dtype,
        pixels_per_latent=_pixels_per_latent(decoder, tiny),
        why=why,
    )


def _pixels_per_latent(vae: Any, tiny: bool) -> int:
    blocks = len(vae.config.decoder_block_out_channels if tiny else vae.config.block_out_channels)
    return 1 << (blocks - 1)


def _choose_vae(
    root: Path,
    family: str,
    choice: str,
    full: Callable[[], Any] | None,
    options: Mapping[str, object],
    read: Callable[[Path], tuple[Any, bool]],
) -> tuple[Any, bool, str]:
    """The autoencoder, whether it is a tiny one, and why it was taken."""
    tiny = tiny_vae_folder(root, family, options)
    if choice not in ("auto", "tiny", "full"):
        return (*read(Path(choice).expanduser()), f"VAE of {choice}")
    if choice == "tiny" and tiny is None and vae_class(root / "vae") != "AutoencoderTiny":
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"a tiny VAE is asked for, but there is none beside {root.name} (vae_tiny/ or taesd/)",
        )
    if choice != "full" and tiny is not None:
        return (*read(tiny), f"tiny VAE of {tiny.name}/")
    if full is not None:
        return full(), False, "its own full VAE"
    model, is_tiny = read(root / "vae")
    return model, is_tiny, f"its own {'tiny' if is_tiny else 'full'} VAE"


def _read_vae(
    folder: Path, dtype_of: Callable[[Any, bool], torch.dtype], upload: Upload, channels_last: bool
) -> tuple[Any, bool]:
    from diffusers import AutoencoderKL, AutoencoderTiny

    kind = vae_class(folder)
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"{folder} holds no AutoencoderKL or AutoencoderTiny ({kind or 'no config.json'})",
        )
    tiny = kind == "AutoencoderTiny"
    decoder = read_part(
        AutoencoderTiny if tiny else AutoencoderKL,
        folder,
        lambda config: dtype_of(config, tiny),
        False,
        upload=upload,
        channels_last=channels_last,
    )
    return decoder, tiny


def load_text(
    root: Path, family: str, dtype: torch.dtype, allow_pickle: bool, upload: Upload
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The text encoders and tokenizers of a folder."""
    kinds: list[tuple[Any, str]] = [(ClipText, "")]
    if family == "sdxl":
        kinds.append((ClipTextProjected, "_2"))
    encoders = [
        read_part(kind, root / f"text_encoder{number}", dtype, allow_pickle, upload=upload)
        for kind, number in kinds
    ]
    tokenizers = [load_tokenizer(root / f"tokenizer{number}") for _, number in kinds]
    return tuple(encoders), tuple(tokenizers)


def load_tokenizer(folder: Path) -> Any:
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise SdbridgeError("SDB-MODEL-PARTS", f"there is no tokenizer in {folder}")
    try:
        return ClipTokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SdbridgeError(
            "SDB-MODEL-CORRUPT", f"the tokenizer in {folder} cannot be read: {error}"
        ) from None


def probe_prediction(unet: Any, schedule: NoiseSchedule, placement: Placement) -> str:
    """Epsilon or v, told from one call: at the noisiest step eps is the input itself, v is not.

    With X ~ N(0, 1) at t = T - 1 nearly all of X is noise, so a model that predicts noise answers X
    (correlation near 1), one that predicts v = a eps - b x0 answers something else.
    """
    size, config = 16, unet.config
    generator = torch.Generator("cpu").manual_seed(0)
    sample = torch.randn(1, config.out_channels, size, size, generator=generator).to(placement.device)
    given = torch.cat(
        [sample, torch.zeros_like(sample[:, :1]).repeat(1, config.in_channels - sample.shape[1], 1, 1)], 1
    )
    text = torch.zeros(1, 77, config.cross_attention_dim, device=placement.device, dtype=placement.dtype)
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(1, pooled, device=placement.device, dtype=placement.dtype),
            "time_ids": torch.zeros(1, 6, device=placement.device, dtype=placement.dtype),
        }
    with torch.inference_mode():
        out = unet(
            given.to(placement.dtype),
            schedule.length - 1,
            encoder_hidden_states=text,
            return_dict=False,
            **extra,
        )[0].float()
    sample = sample.float()
    correlation = float((out * sample).sum() / (out.norm() * sample.norm()).clamp_min(1e-9))
    return "v_prediction" if abs(correlation) < 0.5 else "epsilon"


@contextmanager
def _offline() -> Iterator[None]:
    """No library may reach out, and none may draw progress bars over the daemon's log."""
    if multiprocessing.parent_process() is not None:  # in the bridge's own process it may still pull
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from diffusers.utils import logging as diffusers_logging

    # transformers is imported for few models; where it comes later, it heeds the variables above.
    libraries = [diffusers_logging]
    if "transformers" in sys.modules:
        libraries.append(importlib.import_module("transformers.utils.logging"))
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # about names of arguments, which differ between versions
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
