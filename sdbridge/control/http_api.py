"""The HTTP API's core: status, parameters, single pictures, the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control import pictures
from sdbridge.control.diagnostics import diagnostics, without_secrets
from sdbridge.control.endpoint import Body, Endpoint, json_answer, read_body, whole_number
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.frame import INPUT_ROLES, OUTPUT_ROLES, Frame, Role
from sdbridge.parameters.store import Outcome

Easing = Literal["linear", "ease_in", "ease_out", "ease_in_out"]


class SetParameters(Body):
    """Values by name, alias or address; numbers fade over ``fade_s`` seconds, the rest is set at once."""

    values: dict[str, Any] = Field(
        json_schema_extra={
            "additionalProperties": {"type": ["boolean", "number", "string"]},
            "examples": [{"strength": 0.5}],
        }
    )
    fade_s: float = Field(default=0.0, ge=0, le=3600)
    easing: Easing = "linear"


def endpoints(view: BridgeView, token: str) -> tuple[Endpoint, ...]:
    """The endpoints of this file. ``token`` is what no log line that is shown may hold."""
    core = _Core(view, token)
    outcome = {"$ref": "#/components/schemas/Outcome"}
    picture_in = {"role": {"type": "string", "enum": list(INPUT_ROLES)}}
    picture_out = {"role": {"type": "string", "enum": list(OUTPUT_ROLES)}}
    return (
        Endpoint(
            "GET",
            "/api/status",
            core.status,
            "The numbers now",
            answer={"$ref": "#/components/schemas/Status"},
        ),
        Endpoint(
            "GET",
            "/api/parameters",
            core.parameters,
            "Every parameter with its value, range and address",
            answer={"$ref": "#/components/schemas/Parameters"},
        ),
        Endpoint(
            "POST",
            "/api/parameters",
            core.set_parameters,
            "Set parameters or fire triggers; they share a frame edge",
            body=SetParameters,
            answer=outcome,
            refusals=(422,),
        ),
        Endpoint(
            "GET",
            "/api/input.png",
            core.input_png,
            "The newest input frame",
            query=picture_in,
            answer="image/png",
            refusals=(409,),
        ),
        Endpoint(
            "GET",
            "/api/output.png",
            core.output_png,
            "The newest output frame",
            query=picture_out,
            answer="image/png",
            refusals=(409,),
        ),
        Endpoint(
            "GET",
            "/api/log",
            core.log,
            "The newest lines of the log, oldest first",
            query={"count": {"type": "integer", "minimum": 1, "maximum": 1000}},
            private=True,
        ),
        Endpoint(
            "GET",
            "/api/diagnostics",
            core.diagnostics,
            "A report for bug threads, redacted",
            answer="text/plain",
            private=True,
        ),
    )


class _Core:
    def __init__(self, view: BridgeView, token: str) -> None:
        self._view = view
        self._token = token

    async def status(self, request: Request) -> Response:
        status = await asyncio.to_thread(self._view.status)
        return json_answer(status.as_json())

    async def parameters(self, request: Request) -> Response:
        values, revision = self._view.store.snapshot()
        table = self._view.store.table
        rows = []
        for row in table:
            about = {**asdict(row), "address": row.address, "title": row.title, "range": row.range_text()}
            del about["slots"]
            if row.kind != "trigger":
                about["value"] = values[row.name]
            rows.append(about)
        return json_answer({"revision": revision, "schema": table.schema_hash(), "parameters": rows})

    async def set_parameters(self, request: Request) -> Response:
        wanted = await read_body(request, SetParameters)
        source = f"http:{request.client.host}:{request.client.port}" if request.client else "http"
        outcome = await asyncio.to_thread(
            write, self._view, wanted.values, wanted.fade_s, source, wanted.easing
        )
        answer = {**outcome_json(outcome), "adjusted": list(adjusted(self._view, wanted.values))}
        return json_answer(answer, 422 if _all_refused(wanted.values, outcome) else 200)

    async def input_png(self, request: Request) -> Response:
        role = _role(request, INPUT_ROLES)
        return await _png(await asyncio.to_thread(self._view.input_frame, role))

    async def output_png(self, request: Request) -> Response:
        role = _role(request, OUTPUT_ROLES)
        return await _png(await asyncio.to_thread(self._view.output_frame, role))

    async def log(self, request: Request) -> Response:
        count = whole_number(request, "count", 200, 1, 1000)
        lines = await asyncio.to_thread(self._view.log_lines, count)
        return json_answer({"lines": [without_secrets(line, self._token) for line in lines]})

    async def diagnostics(self, request: Request) -> Response:
        text = await asyncio.to_thread(diagnostics, self._view, self._token)
        return Response(text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8")


def write(
    view: BridgeView, values: Mapping[str, object], fade_s: float, source: str, easing: str = "linear"
) -> Outcome:
    """Set ``values``, or let what can fade go there over ``fade_s`` seconds."""
    if fade_s <= 0:
        return view.store.set_many(values, source)
    return view.show.fade(values, fade_s, easing, source)


def adjusted(view: BridgeView, values: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Those of ``values`` that were taken, but not as they were sent: out of range or between two steps."""
    for name, sent in values.items():
        try:
            row = view.store.table.find(name)
            remark = row.adjusted(sent, row.coerce(sent))
        except SdbridgeError:
            continue  # refused, and told so
        if remark is not None:
            yield {"name": name, "code": remark.code, "message": str(remark)}


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """The answer that the design pins: ``revision`` and ``rejected``."""
    return {"revision": outcome.revision, "rejected": [asdict(item) for item in outcome.rejected]}


def _all_refused(values: Mapping[str, object], outcome: Outcome) -> bool:
    return bool(values) and len(outcome.rejected) >= len(values)


def _role(request: Request, known: tuple[Role, ...]) -> Role:
    wanted = request.query_params.get("role", known[0])
    for role in known:
        if role == wanted:
            return role
    raise SdbridgeError("SDB-WEB-BODY", f"role is one of {', '.join(known)}")


async def _png(frame: Frame | None) -> Response:
    if frame is None:
        raise SdbridgeError("SDB-WEB-ABSENT", "no frame has come yet")
    content = await asyncio.to_thread(pictures.png, frame)
    return Response(
        content,
        media_type="image/png",
        headers={
            "cache-control": "no-store",
            "cross-origin-resource-policy": "same-origin",
            "x-frame-id": str(frame.frame_id),
            "x-revision": str(frame.revision),
        },
    )
