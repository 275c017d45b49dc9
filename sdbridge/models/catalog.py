"""Which entry of the catalog a name means, and where its files lie on this machine.

Importing this needs neither torch nor the network.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from sdbridge import paths
from sdbridge.models.catalog_entries import ENTRIES, CatalogEntry

#: Written into a pulled folder when every file is there and has been checked.
MARK = ".sdbridge-pulled.json"


def entries() -> tuple[CatalogEntry, ...]:
    """Every entry, checkpoints first."""
    return ENTRIES


def find(model: str) -> CatalogEntry | None:
    """The entry of a catalog id, or of a Hugging Face id (``stabilityai/sd-turbo``); None if unknown."""
    wanted = model.strip()
    by_id = {entry.id: entry for entry in ENTRIES}
    if wanted in by_id:
        return by_id[wanted]
    return next((entry for entry in ENTRIES if entry.repo == wanted and entry.kind != "parts"), None)


def nearest(model: str) -> str | None:
    """The most similar id, for error messages."""
    found = difflib.get_close_matches(model, [entry.id for entry in ENTRIES], n=1, cutoff=0.5)
    return found[0] if found else None


def folder_of(entry: CatalogEntry) -> Path:
    """Where a pulled entry lies, whether it is there or not. ``taesd`` lies beside the checkpoints."""
    return paths.models_dir() / entry.id.replace("/", "--")


def local_folder(entry: CatalogEntry) -> Path | None:
    """The folder of a completely pulled and checked entry, or None."""
    folder = folder_of(entry)
    return folder if (folder / MARK).is_file() else None


def local_path(model: str) -> Path | None:
    """What the engine may load for a catalog or Hugging Face id: a folder or its main file, if pulled."""
    entry = find(model) or unlisted(model)
    folder = None if entry is None else local_folder(entry)
    if folder is None or entry is None:
        return None
    return folder / entry.main_file if entry.main_file else folder


def unlisted(model: str) -> CatalogEntry | None:
    """An entry for a Hugging Face id ``owner/name`` that is not in the catalog; None for other words."""
    owner, slash, name = model.strip().partition("/")
    legal = all(part and all(c.isalnum() or c in "-_." for c in part) for part in (owner, name))
    if not slash or not legal or owner.startswith(".") or ".." in model:
        return None
    return CatalogEntry(model.strip(), "checkpoint", model.strip(), (), 0, "see the model's page", "")
