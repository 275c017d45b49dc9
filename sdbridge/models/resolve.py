"""From what a person writes under ``engine.model`` to a local folder or file, fetching it if need be.

The bridge calls this before it starts an engine, so that the engine never needs the network. Nothing
here imports torch; the stand-in model is built in a process of its own.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sdbridge import paths
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, download, embedded_model

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
_BUILD_SMALL = (
    "import sys; from pathlib import Path; from sdbridge.models.small import build_small_checkpoint; "
    "build_small_checkpoint(Path(sys.argv[1]), 'sd15', distilled='turbo')"
)
_BUILD_TIMEOUT_S = 300.0


def resolve_model(model: str, on_progress: Callable[[Progress], None] = lambda progress: None) -> Path:
    """The local folder or ``.safetensors`` file that ``model`` means.

    ``""`` and ``embedded`` mean the model in the package. A path that exists is itself. A catalog id
    or a Hugging Face id is taken from the disk, or pulled with ``on_progress``. Raises SdbridgeError
    SDB-MODEL-MISSING or SDB-PULL-*.
    """
    if model in ("", EMBEDDED):
        return embedded_model.EMBEDDED_DIR if embedded_model.is_present() else _stand_in()
    given = Path(model).expanduser()
    if given.exists():
        return given.resolve()
    here = catalog.local_path(model)
    if here is not None:
        return here
    if catalog.find(model) is not None or is_hub_id(model):
        log.info("%s is not on this machine yet; it is pulled now, the output goes on meanwhile", model)
        return download.pull(model, on_progress)
    near = catalog.nearest(model)
    hint = f"; the nearest in the catalog is {near}" if near else ""
    raise SdbridgeError("SDB-MODEL-MISSING", f"there is no file, folder or catalog id {model!r}{hint}")


def is_hub_id(model: str) -> bool:
    """``owner/name``; a path such as ``/no/such/model`` or ``models/x.safetensors`` is none."""
    owner, slash, name = model.partition("/")
    whole = bool(owner and slash and name) and "/" not in name and not name.endswith(".safetensors")
    return whole and catalog.unlisted(model) is not None


def _stand_in() -> Path:
    """A tiny pipeline with random weights, built once: it runs everything and draws nothing sensible."""
    folder = paths.cache_dir() / "stand-in-model"
    if not (folder / "model_index.json").exists():
        log.warning(
            "the embedded model's weights are not in this checkout; a tiny model with RANDOM weights "
            "stands in: pictures follow the input, but no prompt"
        )
        command = [sys.executable, "-c", _BUILD_SMALL, str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
        if result.returncode:
            said = result.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise SdbridgeError("SDB-MODEL-MISSING", f"the stand-in model could not be built: {said[0]}")
    return folder
