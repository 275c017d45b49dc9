"""What an engine's process imports at its start, and what it leaves alone."""

import json
import subprocess
import sys
from pathlib import Path

from sdbridge.engine.image import imports

ROOT = Path(__file__).resolve().parents[3]
ASK = """
import gc, json, sys
from sdbridge.engine.registry import prepare_process
prepare_process("image")
begun = sorted(sys.modules)
import importlib.util
print(json.dumps({
    "modules": begun,
    "collects": gc.isenabled(),
    "frozen": gc.get_freeze_count(),
    "importable": [name for name in %r if importlib.util.find_spec(name) is not None],
}))
"""


def test_an_engine_process_imports_all_it_needs_and_nothing_it_never_uses():
    said = subprocess.run(
        [sys.executable, "-c", ASK % (imports.NEVER_USED,)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    loaded = set(found["modules"])
    assert {"sdbridge.engine.image.painter", "diffusers.models.unets.unet_2d_condition"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & set(imports.NEVER_USED)
    assert found["collects"] and found["frozen"] > 100_000
    assert "peft" in found["importable"], "hidden for good, where it was to be hidden for a moment"


def test_a_hidden_package_is_refused_for_the_moment_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "graphlib", raising=False)
    with imports._hidden(("graphlib", "json")):
        try:
            import graphlib
        except ImportError:
            pass
        else:
            raise AssertionError(f"{graphlib} could be imported")
        import json as still_there

        assert still_there.loads("1") == 1
    import graphlib

    assert graphlib.TopologicalSorter
