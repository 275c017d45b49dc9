"""``sdbridge presets``: look at and tidy the saved presets without a running bridge."""

from __future__ import annotations

from sdbridge import paths
from sdbridge.commands.say import ERR, OUT, print_json, print_table
from sdbridge.parameters.presets import PresetLibrary


def run_presets(action: str, name: str, new_name: str, as_json: bool) -> int:
    """list | show NAME | delete NAME | rename NAME NEW. Exit 2 for anything else."""
    library = PresetLibrary(paths.presets_dir())
    if action == "list":
        names = library.names()
        if as_json:
            print_json(list(names))
        elif names:
            print_table(("number", "name"), [(str(i), n) for i, n in enumerate(names, 1)])
        else:
            OUT.print(
                f"No presets yet in {paths.presets_dir()}. Save one on the page or by /sdbridge/preset/save."
            )
        return 0
    if action == "show" and name:
        print_json(dict(library.load(name).values))
        return 0
    if action == "delete" and name:
        library.delete(name)
        return 0
    if action == "rename" and name and new_name:
        library.rename(name, new_name)
        return 0
    ERR.print("Usage: sdbridge presets [list | show NAME | delete NAME | rename NAME NEW]")
    return 2
