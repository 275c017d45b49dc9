"""What will an engine with these values want of the card? Read out of them and counted, nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdbridge.engine.interface import EngineConfig
from sdbridge.models import catalog, embedded_model
from sdbridge.models.footprint import Footprint, Vae, footprint
from sdbridge.models.vae_choice import tiny_vae_folder, vae_class, vae_config
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.table import TABLE

#: Where the published IP-Adapters keep their image encoder, seen from the adapter's file.
_ENCODER_PLACES = ("image_encoder", "../image_encoder", "../models/image_encoder", "models/image_encoder")


def demand(
    engine: EngineConfig, values: Mapping[str, Value], width: int, height: int, *, captured: bool = False
) -> Footprint | None:
    """Bytes by cause for ``engine`` with ``values`` (defaults for what is missing); None: not on the disk.

    ``captured``: its acceleration keeps CUDA graphs. Raises SDB-MODEL-CORRUPT.
    """
    model = on_disk(engine.model)
    if model is None:
        return None
    complete: dict[str, Value] = {**TABLE.defaults(), **values}
    frames, rows = int(complete["frame_batch"]), unet_rows(complete)
    wide = 4 if engine.dtype == "float32" else 2
    return footprint(
        model,
        width,
        height,
        rows,
        wide,
        frames=frames,
        vae=_vae_of(model, engine, wide),
        loras=[file for _, file in _files(complete, "lora", "file")],
        networks=_networks(complete),
        bank_frames=int(complete["feature_bank.frames"]) if complete["feature_bank.enabled"] else 0,
        captured=captured,
    )


def unet_rows(values: Mapping[str, Value]) -> int:
    """Rows of a UNet call, as ``settings.py`` and ``guidance.py`` make them of these (complete) values."""
    frames = int(values["frame_batch"])
    given = len([word for word in str(values["step_indices"]).replace(",", " ").split() if word])
    steps = min(given or int(values["steps"]), int(values["schedule_steps"]))
    if float(values["guidance_scale"]) <= 1.0:
        return steps * frames
    extra = {"full": steps * frames, "initialize": frames}.get(str(values["guidance_mode"]), 0)
    return steps * frames + extra


def on_disk(model: str) -> Path | None:
    """The folder or file that a name in a configuration means, where it is here already."""
    if model in ("", "embedded"):
        return embedded_model.EMBEDDED_DIR if embedded_model.is_present() else None
    inside = embedded_model.EMBEDDED_DIR / model.removeprefix("embedded/")
    if model.startswith("embedded/") and inside.exists():
        return inside
    given = Path(model).expanduser()
    return given if given.exists() else catalog.local_path(model)


def _vae_of(model: Path, engine: EngineConfig, wide: int) -> Vae:
    """The VAE that the loader would take, and its precision: most full ones overflow in half."""
    if engine.vae not in ("auto", "tiny", "full"):
        folder = Path(engine.vae).expanduser()
        return _vae_in(folder, wide)
    tiny = None
    if engine.vae != "full":
        xl = "text_time" in str(vae_config(model / "unet").get("addition_embed_type", ""))
        tiny = tiny_vae_folder(model, "sdxl" if xl else "sd15", engine.options)
    if tiny is not None:
        return Vae(tiny, True, wide)
    return _vae_in(model / "vae", wide) if model.is_dir() else Vae(None, False, 4)


def _vae_in(folder: Path, wide: int) -> Vae:
    tiny = vae_class(folder) == "AutoencoderTiny"
    upcast = not tiny and bool(vae_config(folder).get("force_upcast", True))  # diffusers' own default
    return Vae(folder, tiny, 4 if upcast else wide)


def _networks(values: Mapping[str, Value]) -> dict[str, Path]:
    """What is loaded beside the UNet: ControlNets with their preprocessors' networks, and the style's."""
    found: dict[str, Path | None] = {}
    for number, network in _files(values, "controlnet", "model"):
        found[f"controlnet {number}"] = network
        kind = values[f"controlnet.{number}.preprocessor"]
        if kind in ("depth", "normal"):
            found["depth network"] = on_disk(str(values["depth_model"]))
        elif kind == "softedge" and values["softedge_model"]:
            found["soft edge network"] = on_disk(str(values["softedge_model"]))
    style = on_disk(str(values["style_model"])) if values["style_model"] else None
    if style is not None:
        around = style if style.is_dir() else style.parent
        encoder = str(values["style_encoder"])
        places = [on_disk(encoder)] if encoder else [around / place for place in _ENCODER_PLACES]
        found["style"] = style
        found["image encoder"] = next((place for place in places if place and place.is_dir()), None)
    return {name: place for name, place in found.items() if place is not None}


def _files(values: Mapping[str, Value], group: str, field: str) -> list[tuple[str, Path]]:
    """Slot and place of what the values load into the slots of ``group``, as far as it is on the disk."""
    found = []
    for name, value in sorted(values.items()):
        if name.startswith(f"{group}.") and name.endswith(f".{field}") and value:
            place = on_disk(str(value))
            if place is not None:
                found.append((name.split(".")[1], place))
    return found
