"""``sdbridge presets``: look at and tidy the saved presets without a running bridge."""

from __future__ import annotations

from pathlib import Path

from sdbridge import paths
from sdbridge.commands.say import ERR, OUT, print_json, print_table
from sdbridge.config import load_config
from sdbridge.parameters.presets import PresetFolder


def run_presets(action: str, name: str, new_name: str, as_json: bool, config: Path | None = None) -> int:
    """list | show NAME | delete NAME | rename NAME NEW. Exit 2 for anything else."""
    chosen = load_config(config).presets_dir if config is not None else ""
    place = Path(chosen).expanduser() if chosen else paths.presets_dir()
    folder = PresetFolder(place)
    if action == "list":
        presets = folder.list()
        if as_json:
            keys = ("number", "name", "file", "error")
            print_json([{key: getattr(preset, key) for key in keys} for preset in presets])
        elif presets:
            print_table(
                ("number", "name", "file"),
                [(str(p.number), p.name, f"{p.file}  {p.error}".strip()) for p in presets],
            )
        else:
            OUT.print(
                f"No presets yet in {place}. Save one on the page or by /sdbridge/preset/save.",
                soft_wrap=True,
            )
        return 0
    if action == "show" and name:
        print_json(dict(folder.find(name).values))
        return 0
    if action == "delete" and name:
        folder.delete(name)
        return 0
    if action == "rename" and name and new_name:
        folder.rename(name, new_name)
        return 0
    ERR.print("Usage: sdbridge presets [list | show NAME | delete NAME | rename NAME NEW]")
    return 2
