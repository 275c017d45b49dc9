"""``sdbridge pull``: download a model with its size shown first, a bar, resume and verification."""

from __future__ import annotations

from dataclasses import asdict

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
        OUT.print(f"{plan.id} is already here: {plan.folder}")
        return 0
    gigabytes = plan.missing_bytes / 2**30
    ERR.print(f"{plan.id}: {gigabytes:.2f} GB to download, licence {plan.licence or '?'} -> {plan.folder}")
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
    if as_json:
        print_json({"id": plan.id, "folder": str(folder)})
    else:
        OUT.print(f"{plan.id} is here and checked: {folder}")
    return 0


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
                f"{entry.size_bytes / 2**30:.2f} GB",
                entry.licence,
                entry.summary,
                "yes" if catalog.local_folder(entry) else "",
            )
            for entry in entries
        ],
    )
    OUT.print("\nsdbridge pull ID downloads one; put the id under engine.model in a config to use it.")
    return 0
