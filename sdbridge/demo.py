"""Where the demo's configuration lies, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path


def demo_config_path() -> Path:
    """``configs/demo.yaml`` beside the package; the wheel carries it as ``sdbridge/configs/demo.yaml``."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "configs" / "demo.yaml"
    return beside if beside.exists() else package / "configs" / "demo.yaml"
