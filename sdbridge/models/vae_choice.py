"""Which VAE goes with a checkpoint, told from the folders there are? Asked by the loader and by doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbridge.models import catalog


def tiny_vae_folder(root: Path, family: str, options: Mapping[str, object]) -> Path | None:
    """A tiny VAE for this model: named in the options, beside its parts, or TAESD among the pulled models.

    TAESD speaks the latents of Stability's own VAEs, so it is taken only where the model has one of these.
    """
    given = options.get("tiny_vae")
    places = [Path(str(given)).expanduser()] if given else []
    places.append(root / "vae_tiny")
    name = "taesdxl" if family == "sdxl" else "taesd"
    own = vae_config(root / "vae")
    if own.get("_class_name") == "AutoencoderKL" and int(own.get("latent_channels", 4)) == 4:
        places += [root / name, root.parent / name]
        pulled = catalog.local_path(name)
        places += [pulled] if pulled is not None else []
    return next((place for place in places if (place / "config.json").is_file()), None)


def vae_class(folder: Path) -> str:
    """The diffusers class that the folder's config names; '' where there is none."""
    return str(vae_config(folder).get("_class_name", ""))


def vae_config(folder: Path) -> dict[str, Any]:
    """The folder's config; empty where it cannot be read, of which the loader says more."""
    try:
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
