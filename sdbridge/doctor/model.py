"""Findings about the configuration and its model: valid, on the disk, room for the download."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sdbridge import paths
from sdbridge.config import load_config
from sdbridge.demo import demo_config_path
from sdbridge.doctor.finding import Finding
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog


def check_config(path: Path | None) -> Iterator[Finding]:
    where = path or demo_config_path()
    try:
        config = load_config(where)
    except SdbridgeError as error:
        yield Finding("config", "wrong", error.what, error.next_step)
        return
    yield Finding("config", "good", f"{where} is valid")
    yield from check_model(config.engine.model)


def check_model(model: str) -> Iterator[Finding]:
    """Local files must exist; a catalog id must be pulled or have room to be."""
    if not model or model == "embedded":
        yield Finding("model", "good", "the embedded model: nothing to download")
        return
    if Path(model).expanduser().exists():
        yield Finding("model", "good", f"{model} is on the disk")
        return
    entry = catalog.find(model)
    if entry is None:
        step = "Check the path, or give a catalog id (sdbridge pull lists them)."
        yield Finding("model", "wrong", f"{model} is neither a file nor in the catalog", step)
        return
    if catalog.local_folder(entry) is not None:
        yield Finding("model", "good", f"{entry.id} is on the disk")
        return
    needed_gb = entry.size_bytes / 2**30
    folder = paths.models_dir()
    free_gb = shutil.disk_usage(_existing(folder)).free / 2**30
    fits = free_gb > needed_gb * 1.1
    yield Finding(
        "model",
        "note" if fits else "wrong",
        f"{entry.id} is not here yet: {needed_gb:.1f} GB to download, {free_gb:.0f} GB free",
        f"sdbridge pull {entry.id}" if fits else "Free some disk first.",
    )


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
