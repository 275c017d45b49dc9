"""``sdbridge pull``: download a model with its size shown first, a bar, resume and verification."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sdbridge.commands.say import ERR, OUT, print_json, print_table
from sdbridge.engine.interface import Progress as ProgressEvent
from sdbridge.models import catalog, download


def run_pull(model: str | None, as_json: bool, yes: bool) -> int:
    """Without a model: the catalog. Exit 1 when the download failed."""
    if model is None:
        return _list_catalog(as_json)
    plan = download.plan(model)
    if plan.missing_bytes == 0:
        _say_where(plan.id, plan.folder, "is already here", as_json)
        return 0
    size, licence = amount(plan.missing_bytes), plan.licence or "?"
    ERR.print(f"{plan.id}: {size} to download, licence {licence} -> {plan.folder}", soft_wrap=True)
    if not yes and not as_json and not typer.confirm("Download?", default=True):
        return 1
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=ERR,
    ) as bars:
        bar = bars.add_task(plan.id, total=plan.missing_bytes)

        def show(event: ProgressEvent) -> None:
            bars.update(bar, completed=event.done, total=event.total or None, description=event.stage)

        folder = download.pull(model, show)
    _say_where(plan.id, folder, "is here and checked", as_json)
    return 0


def _say_where(model: str, folder: Path, how: str, as_json: bool) -> None:
    if as_json:
        print_json({"id": model, "folder": str(folder)})
    else:
        OUT.print(f"{model} {how}: {folder}", soft_wrap=True)


def _list_catalog(as_json: bool) -> int:
    entries = catalog.entries()
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return 0
    print_table(
        ("id", "kind", "size", "licence", "what it is", "here"),
        [
            (
                entry.id,
                entry.kind,
                amount(entry.size_bytes),
                entry.licence,
                entry.summary,
                "yes" if catalog.local_folder(entry) else "",
            )
            for entry in entries
        ],
    )
    OUT.print("\nsdbridge pull ID downloads one; put the id under engine.model in a config to use it.")
    return 0


def amount(size: int) -> str:
    """Bytes as a person reads them: 2.40 GB, 9 MB, 412 KB."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"
