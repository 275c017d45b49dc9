"""Where sdbridge keeps things: one folder if SDBRIDGE_HOME is set, the system's places if not."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP = "sdbridge"


def _home() -> Path | None:
    home = os.environ.get("SDBRIDGE_HOME")
    return Path(home).expanduser() if home else None


def config_dir() -> Path:
    """Presets and the user's own configs."""
    home = _home()
    return home / "config" if home else Path(platformdirs.user_config_dir(APP, appauthor=False))


def presets_dir() -> Path:
    return config_dir() / "presets"


def log_dir() -> Path:
    """Rotated logs and crash reports."""
    home = _home()
    return home / "log" if home else Path(platformdirs.user_log_dir(APP, appauthor=False))


def cache_dir() -> Path:
    """What can be made again: compiled engines, small checkpoints."""
    home = _home()
    return home / "cache" if home else Path(platformdirs.user_cache_dir(APP, appauthor=False))


def runtime_dir() -> Path:
    """Lock and discovery file of the running daemon; TouchDesigner's launcher looks here too."""
    home = _home()
    return home / "run" if home else Path(platformdirs.user_data_dir(APP, appauthor=False)) / "run"


def models_dir() -> Path:
    """Single files that were pulled; repositories stay in Hugging Face's own cache."""
    home = _home()
    return home / "models" if home else Path(platformdirs.user_data_dir(APP, appauthor=False)) / "models"


def typed_path(text: str) -> Path:
    """What a person typed or pasted: Windows' "Copy as path" has quotes, a browser gives a link."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if text.lower().startswith("file://"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        text = url2pathname(urlsplit(text).path)
    return Path(text).expanduser()


def all_paths() -> dict[str, Path]:
    """Every place by name, for ``sdbridge doctor``."""
    return {
        "config": config_dir(),
        "presets": presets_dir(),
        "log": log_dir(),
        "cache": cache_dir(),
        "runtime": runtime_dir(),
        "models": models_dir(),
    }
