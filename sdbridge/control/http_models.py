"""The HTTP API of models: the catalog, what is here, and pulling."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Body, Endpoint, json_answer, read_body
from sdbridge.control.pulls import Pulls, PullStatus
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, embedded_model
from sdbridge.models.catalog_entries import CatalogEntry


class PullModel(Body):
    """A catalog id, or a Hugging Face id such as ``stabilityai/sd-turbo``."""

    id: str = Field(min_length=1, max_length=200)


def endpoints(pulls: Pulls) -> tuple[Endpoint, ...]:
    """The endpoints of this file."""
    models = _Models(pulls)
    listed = {
        "type": "object",
        "required": ["models"],
        "properties": {"models": {"type": "array", "items": {"type": "object", "required": ["id", "here"]}}},
    }
    return (
        Endpoint(
            "GET", "/api/models", models.listed, "The catalog, what is here and what is coming", answer=listed
        ),
        Endpoint(
            "POST",
            "/api/models/pull",
            models.pull,
            "Begin to pull a model",
            body=PullModel,
            answer=listed,
            refusals=(404, 422),
        ),
    )


class _Models:
    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    async def listed(self, request: Request) -> Response:
        return await self._answer()

    async def pull(self, request: Request) -> Response:
        wanted = (await read_body(request, PullModel)).id.strip()
        if catalog.find(wanted) is None and catalog.unlisted(wanted) is None:
            near = catalog.nearest(wanted)
            hint = f"; the nearest is {near}" if near else ""
            raise SdbridgeError("SDB-PULL-UNKNOWN", f"{wanted[:80]!r} is no catalog id{hint}")
        self._pulls.start(wanted)
        return await self._answer()

    async def _answer(self) -> Response:
        return json_answer({"models": await asyncio.to_thread(self._all)})

    def _all(self) -> list[dict[str, object]]:
        statuses = self._pulls.statuses()
        entries = [*catalog.entries()]
        known = {entry.id for entry in entries}
        for model in statuses:
            entry = catalog.unlisted(model)
            if model not in known and entry is not None:
                entries.append(entry)
        listed = [_entry_json(entry, statuses.get(entry.id, PullStatus())) for entry in entries]
        return [*(_part_json(part) for part in embedded_model.PARTS if part.path.exists()), *listed]


def _part_json(part: embedded_model.Part) -> dict[str, object]:
    """A part of the package, in the shape of a catalog entry that is here."""
    files = [part.path] if part.path.is_file() else [path for path in part.path.rglob("*") if path.is_file()]
    return {
        "id": part.id,
        "kind": part.kind,
        "size_bytes": sum(path.stat().st_size for path in files),
        "licence": "Apache-2.0",
        "summary": part.summary,
        "fits": [],
        "needs": [],
        "here": True,
        "pulling": None,
        "error": "",
    }


def _entry_json(entry: CatalogEntry, status: PullStatus) -> dict[str, object]:
    place: Path | None = catalog.local_folder(entry)
    return {
        "id": entry.id,
        "kind": entry.kind,
        "size_bytes": entry.size_bytes,
        "licence": entry.licence,
        "summary": entry.summary,
        "fits": list(entry.fits),
        "needs": list(entry.needs),
        "here": place is not None,
        "pulling": None if status.progress is None else asdict(status.progress),
        "error": status.error,
    }
