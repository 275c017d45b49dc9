"""From a model's name to a path on this machine; what is not here is pulled beside the show."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, embedded_model

log = logging.getLogger(__name__)

#: Fetches a model and gives its path: ``models.download.pull``, or a fake in tests.
Pull = Callable[[str, Callable[[Progress], None]], Path]


def local_path(model: str) -> str | None:
    """The path that an engine may load for ``model``, or None if it must be pulled first.

    ``model`` is a folder, a file, a catalog id, a Hugging Face id, or ``embedded`` (also empty).
    Raises SDB-MODEL-MISSING for a path or name that cannot be pulled either.
    """
    if model in ("", "embedded"):
        if not embedded_model.is_present():
            raise SdbridgeError("SDB-MODEL-MISSING", "the embedded model is not part of this installation")
        return str(embedded_model.EMBEDDED_DIR)
    path = Path(model).expanduser()
    if path.exists():
        return str(path)
    found = catalog.local_path(model)
    if found is not None:
        return str(found)
    if catalog.find(model) is None and (catalog.unlisted(model) is None or _looks_like_a_path(model)):
        near = catalog.nearest(model)
        hint = f"; the catalog has {near}" if near else ""
        raise SdbridgeError("SDB-MODEL-MISSING", f"there is no model at {model!r}{hint}")
    return None


def _looks_like_a_path(model: str) -> bool:
    """``models/mine`` could be a Hugging Face id, ``./models/mine`` and ``mine.safetensors`` could not."""
    return model.startswith((".", "/", "~", "\\")) or Path(model).suffix in (".safetensors", ".ckpt")


def pull_from_hub(model: str, tell: Callable[[Progress], None]) -> Path:
    """``models.download.pull``, imported when it is first needed."""
    from sdbridge.models.download import pull

    return pull(model, tell)


class ModelFetch:
    """At most one pull at a time, in a thread of its own; the last one asked for counts."""

    def __init__(self, done: Callable[[], None], pull: Pull = pull_from_hub) -> None:
        self._done = done
        self._pull = pull
        self._lock = threading.Lock()
        self._model = ""
        self.progress: Progress | None = None
        self._failed: dict[str, SdbridgeError] = {}

    def begin(self, model: str) -> None:
        """Pull ``model``; ``done`` is called when that ended, one way or the other."""
        with self._lock:
            if self._model == model:
                return
            self._model = model
            self._failed.pop(model, None)
        log.info("model %s is not on this machine: pulling it", model)
        threading.Thread(target=self._run, args=(model,), name="pull", daemon=True).start()

    def failure(self, model: str) -> SdbridgeError | None:
        """Why the pull of ``model`` failed, told once."""
        return self._failed.pop(model, None)

    def _run(self, model: str) -> None:
        try:
            self._pull(model, lambda progress: self._tell(model, progress))
        except SdbridgeError as error:
            self._failed[model] = error
        except Exception as error:  # edge: a library's fault while pulling must reach the operator as a line
            log.exception("pulling %s failed", model)
            self._failed[model] = SdbridgeError("SDB-MODEL-MISSING", f"{model!r} cannot be pulled: {error}")
        with self._lock:
            if self._model != model:
                return  # another one is wanted by now
            self._model, self.progress = "", None
        self._done()

    def _tell(self, model: str, progress: Progress) -> None:
        if self._model == model:
            self.progress = progress
