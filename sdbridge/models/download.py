"""Fetching models from the Hugging Face hub: exact size first, resumed, checked, with one progress.

Only the bridge and the command line call this; the engine loads local files only. Nothing here imports
torch, and huggingface_hub is imported when a call needs it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbridge import paths
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError, first_line
from sdbridge.models import catalog, unpickle
from sdbridge.models.catalog import MARK
from sdbridge.models.catalog_entries import CatalogEntry

_REPORT_S = 0.1
_SPARE_BYTES = 500 * 10**6


@dataclass(frozen=True)
class PlannedFile:
    """One file to fetch: exact size and, where the hub knows it, SHA-256."""

    repo: str
    name: str
    folder: Path
    size: int
    sha256: str
    revision: str

    @property
    def path(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True)
class DownloadPlan:
    """What a pull will do. ``missing_bytes`` is what is not on the disk yet."""

    id: str
    folder: Path
    licence: str
    total_bytes: int
    missing_bytes: int
    files: tuple[PlannedFile, ...] = ()


def plan(model: str) -> DownloadPlan:
    """Find out what ``model`` (a catalog id or ``owner/name``) and what it needs would download.

    Asks the hub only if something is not here. Raises SdbridgeError SDB-PULL-*.
    """
    entry = catalog.find(model) or catalog.unlisted(model)
    if entry is None:
        near = catalog.nearest(model)
        hint = f"; the nearest is {near}" if near else ""
        raise SdbridgeError("SDB-PULL-UNKNOWN", f"{model!r} is no catalog id and no Hugging Face id{hint}")
    wanted = [entry, *(found for name in entry.needs if (found := catalog.find(name)) is not None)]
    files: list[PlannedFile] = []
    for each in wanted:
        if catalog.local_folder(each) is None:
            files += _files_on_hub(each)
    missing = sum(file.size for file in files if not _is_here(file))
    return DownloadPlan(
        entry.id,
        catalog.folder_of(entry),
        entry.licence,
        sum(file.size for file in files),
        missing,
        tuple(files),
    )


def pull(model: str, on_progress: Callable[[Progress], None] = lambda progress: None) -> Path:
    """Fetch ``model`` with what it needs and return its folder (a LoRA or adapter: its file).

    An interrupted download goes on where it stopped. A pickle that the catalog names is rewritten as
    safetensors. Every file's size, and its SHA-256 where the hub
    states one, is checked; a damaged file is deleted. Raises SdbridgeError SDB-PULL-UNKNOWN, -NETWORK,
    -GATED, -DISK, -DAMAGED.
    """
    planned = plan(model)
    _check_disk(planned)
    report = _Reporter(planned, on_progress)
    for file in planned.files:
        if not _is_here(file):
            report.begin(file)
            _fetch(file, report)
        _verify(file, report)  # also what an interrupted pull left, which nobody has checked
    by_folder: dict[Path, list[PlannedFile]] = {}
    for file in planned.files:
        by_folder.setdefault(file.folder, []).append(file)
        if file.path.suffix in unpickle.SUFFIXES:  # only what the catalog names one by one
            report.say("convert", file, force=True)
            unpickle.rewrite(file.path)
    for folder, files in by_folder.items():
        mark = {"files": {file.name: file.size for file in files}, "revision": files[0].revision}
        (folder / MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    report.end()
    found = catalog.local_path(model)
    assert found is not None
    return found


def _files_on_hub(entry: CatalogEntry) -> list[PlannedFile]:
    from huggingface_hub import HfApi

    with _hub_errors(entry.repo):
        about = HfApi(endpoint=_endpoint()).model_info(entry.repo, files_metadata=True)
    siblings = about.siblings or []
    names = [sibling.rfilename for sibling in siblings]
    chosen = set(_matching(names, entry.files) if entry.files else _layout_files(names))
    if not chosen:
        raise SdbridgeError("SDB-PULL-UNKNOWN", f"{entry.repo} has no files that sdbridge can use")
    return [
        PlannedFile(
            repo=entry.repo,
            name=sibling.rfilename,
            folder=catalog.folder_of(entry),
            size=int(sibling.size or 0),
            sha256=_lfs_sha256(sibling.lfs),
            revision=str(about.sha or "main"),
        )
        for sibling in siblings
        if sibling.rfilename in chosen and _is_plain(sibling.rfilename)
    ]


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _layout_files(names: list[str]) -> list[str]:
    """Of an unlisted repository: configs, tokenizers and one set of safetensors, half precision first."""
    small = [name for name in names if name.endswith((".json", ".txt", ".model")) and name.count("/") <= 1]
    weights = [name for name in names if name.endswith(".safetensors")]
    inside = [
        name for name in weights if name.split("/")[0] in ("unet", "vae", "text_encoder", "text_encoder_2")
    ]
    if not inside:
        return [*small, *(name for name in weights if "/" not in name)]
    chosen: list[str] = []
    for part in sorted({name.split("/")[0] for name in inside}):
        here = [name for name in inside if name.startswith(part + "/")]
        half = [name for name in here if ".fp16." in name]
        chosen += half or [name for name in here if ".non_ema." not in name]
    return [*small, *chosen]


def _is_plain(name: str) -> bool:
    """No way out of the folder, whatever the hub says."""
    parts = Path(name).parts
    return not Path(name).is_absolute() and ".." not in parts and "\\" not in name and ":" not in name


def _lfs_sha256(lfs: Any) -> str:
    if lfs is None:
        return ""
    return str(lfs.get("sha256", "") if isinstance(lfs, dict) else getattr(lfs, "sha256", "") or "")


def _is_here(file: PlannedFile) -> bool:
    return file.path.is_file() and file.path.stat().st_size == file.size


def _fetch(file: PlannedFile, report: _Reporter) -> None:
    from huggingface_hub import hf_hub_download

    extra: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        extra["tqdm_class"] = report.bar_class()
    file.folder.mkdir(parents=True, exist_ok=True)
    if file.path.is_file():  # of another size: half-written by something else, or an older version
        file.path.unlink()
    with _hub_errors(file.repo):
        hf_hub_download(
            file.repo,
            file.name,
            revision=file.revision,
            local_dir=str(file.folder),
            endpoint=_endpoint(),
            **extra,
        )


def _verify(file: PlannedFile, report: _Reporter) -> None:
    size = file.path.stat().st_size if file.path.is_file() else 0
    if size != file.size:
        file.path.unlink(missing_ok=True)
        raise SdbridgeError("SDB-PULL-DAMAGED", f"{file.name} has {size} bytes instead of {file.size}")
    if not file.sha256:
        return
    report.say("verify", file)
    digest = hashlib.sha256()
    with file.path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        file.path.unlink()
        raise SdbridgeError(
            "SDB-PULL-DAMAGED",
            f"{file.name} has SHA-256 {digest.hexdigest()[:12]}..., not {file.sha256[:12]}...",
        )


def _check_disk(planned: DownloadPlan) -> None:
    place = paths.models_dir()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if planned.missing_bytes and free < planned.missing_bytes + _SPARE_BYTES:
        raise SdbridgeError(
            "SDB-PULL-DISK",
            f"{planned.id} needs {planned.missing_bytes / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free",
        )


def _endpoint() -> str | None:
    """A mirror of the hub, as huggingface_hub's own variable names it; read late, so that it may be set."""
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub's client raises, as errors with a code."""
    from huggingface_hub import errors

    fetching: tuple[type[Exception], ...] = (
        errors.HfHubHTTPError,
        errors.OfflineModeIsEnabled,
        OSError,
        *_http_errors(),
    )
    try:
        yield
    except errors.GatedRepoError:
        raise SdbridgeError("SDB-PULL-GATED", f"{repo} wants its licence accepted first") from None
    except errors.RepositoryNotFoundError:
        raise SdbridgeError("SDB-PULL-UNKNOWN", f"the hub has no public {repo}") from None
    except errors.EntryNotFoundError as error:
        raise SdbridgeError("SDB-PULL-UNKNOWN", f"{repo} lacks a file: {first_line(error)}") from None
    except fetching as error:
        raise SdbridgeError("SDB-PULL-NETWORK", f"{repo} cannot be fetched: {first_line(error)}") from None


def _http_errors() -> tuple[type[Exception], ...]:
    """The base error of the HTTP client that huggingface_hub uses, which changed with its versions."""
    found = []
    for name in ("httpx2", "httpx"):
        if importlib.util.find_spec(name) is not None:
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


class _Reporter:
    """Adds the files up to one progress, at most ten times a second."""

    def __init__(self, planned: DownloadPlan, tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._id = planned.id
        self._total = float(planned.missing_bytes)
        self._done = 0.0
        self._before = 0.0
        self._name = ""
        self._file_size = 0.0
        self._began = time.monotonic()
        self._told = 0.0

    def begin(self, file: PlannedFile) -> None:
        self._before += self._file_size
        self._file_size = float(file.size)
        self._done = self._before
        self._name = file.name
        self.say("download", file, force=True)

    def advance(self, count: float) -> None:
        """``count`` more bytes of the present file, also those that an earlier try had left."""
        self._done = min(self._before + self._file_size, self._done + count)
        self._send("download", self._name)

    def say(self, stage: str, file: PlannedFile, *, force: bool = False) -> None:
        self._send(stage, file.name, force=force)

    def end(self) -> None:
        self._done = self._total
        self._send("done", "", force=True)

    def _send(self, stage: str, message: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._told < _REPORT_S:
            return
        self._told = now
        spent = now - self._began
        left = (self._total - self._done) * spent / self._done if self._done > 0 and spent > 1 else None
        self._tell(Progress(stage, self._done, self._total, f"{self._id} {message}".strip(), left))

    def bar_class(self) -> type:
        """A tqdm that draws nothing and tells us instead."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        reporter = self

        class Bar(tqdm):  # type: ignore[misc,valid-type]  # huggingface_hub's tqdm is untyped
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                keywords["disable"] = True
                super().__init__(*arguments, **keywords)
                initial = keywords.get("initial", 0) or 0
                if initial:
                    reporter.advance(float(initial))

            def update(self, n: float | None = 1) -> bool | None:
                if n:
                    reporter.advance(float(n))
                return None

        return Bar
