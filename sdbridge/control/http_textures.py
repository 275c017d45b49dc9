"""The HTTP API of sources and senders: what there is, and choosing while the show runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Body, Endpoint, json_answer, read_body
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.frame import InputRole, OutputRole

_LIST = {"type": "array", "items": {"type": "object"}}


class ChooseInput(Body):
    """Receive ``name`` by ``backend`` for ``role`` from now on; an empty name lets the backend choose."""

    role: InputRole = "main"
    backend: str = Field(max_length=64)
    name: str = Field(default="", max_length=2048)


class ChooseOutput(Body):
    """Send as ``name`` by ``backend`` from now on. ``index`` counts from 0; their number adds an output.

    ``role`` is the picture that is sent; left out it stays, and is the generated one for a new output.
    """

    index: int = Field(default=0, ge=0, le=63)
    backend: str = Field(max_length=64)
    name: str = Field(default="", max_length=256)
    role: OutputRole | None = None


class DropInput(Body):
    """Receive nothing for ``role`` any more. The main input cannot be switched off."""

    role: InputRole


class DropOutput(Body):
    """End output ``index``; those after it move up."""

    index: int = Field(ge=0, le=63)


def endpoints(view: BridgeView) -> tuple[Endpoint, ...]:
    """The endpoints of this file."""
    textures = _Textures(view)
    backend = {"backend": {"type": "string", "description": "also list what this backend can see now"}}
    return (
        Endpoint(
            "GET",
            "/api/sources",
            textures.sources,
            "Inputs in use, receiver backends, and with backend= what it sees",
            query=backend,
            answer={
                "type": "object",
                "properties": {"inputs": _LIST, "backends": _LIST, "sources": _LIST},
                "required": ["inputs", "backends", "sources"],
            },
            refusals=(422,),
        ),
        Endpoint(
            "POST",
            "/api/sources",
            textures.choose_input,
            "Receive from another source",
            body=ChooseInput,
            refusals=(404, 422),
        ),
        Endpoint(
            "POST",
            "/api/sources/off",
            textures.drop_input,
            "Switch an input off",
            body=DropInput,
            refusals=(404, 422),
        ),
        Endpoint(
            "GET",
            "/api/outputs",
            textures.outputs,
            "Outputs in use and sender backends",
            answer={
                "type": "object",
                "properties": {
                    "outputs": _LIST,
                    "backends": _LIST,
                    "paths": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["outputs", "backends", "paths"],
            },
        ),
        Endpoint(
            "POST",
            "/api/outputs",
            textures.choose_output,
            "Send under another name or backend",
            body=ChooseOutput,
            refusals=(404, 422),
        ),
        Endpoint(
            "POST",
            "/api/outputs/off",
            textures.drop_output,
            "End an output",
            body=DropOutput,
            refusals=(404, 422),
        ),
    )


class _Textures:
    def __init__(self, view: BridgeView) -> None:
        self._view = view

    async def sources(self, request: Request) -> Response:
        backend = request.query_params.get("backend", "")
        backends = await asyncio.to_thread(self._view.backends, "in")
        found: Sequence[tuple[str, str]] = ()
        if backend:
            if backend not in [name for name, _, _ in backends]:
                raise SdbridgeError("SDB-WEB-BODY", f"there is no receiver backend {backend[:40]!r}")
            found = await asyncio.to_thread(self._view.sources, backend)
        status = await asyncio.to_thread(self._view.status)
        return json_answer(
            {
                "inputs": [asdict(item) for item in status.inputs],
                "backends": _backends_json(backends),
                "sources": [{"name": name, "detail": detail} for name, detail in found],
            }
        )

    async def choose_input(self, request: Request) -> Response:
        wanted = await read_body(request, ChooseInput)
        await asyncio.to_thread(self._view.choose_input, wanted.role, wanted.backend, wanted.name)
        return json_answer(wanted.model_dump())

    async def drop_input(self, request: Request) -> Response:
        wanted = await read_body(request, DropInput)
        await asyncio.to_thread(self._view.drop_input, wanted.role)
        return json_answer(wanted.model_dump())

    async def drop_output(self, request: Request) -> Response:
        wanted = await read_body(request, DropOutput)
        await asyncio.to_thread(self._view.drop_output, wanted.index)
        return json_answer(wanted.model_dump())

    async def outputs(self, request: Request) -> Response:
        backends = await asyncio.to_thread(self._view.backends, "out")
        status = await asyncio.to_thread(self._view.status)
        outputs = [asdict(item) for item in status.outputs]
        paths = sorted(self._view.mounts())  # where senders serve on this very port
        return json_answer({"outputs": outputs, "backends": _backends_json(backends), "paths": paths})

    async def choose_output(self, request: Request) -> Response:
        wanted = await read_body(request, ChooseOutput)
        await asyncio.to_thread(
            self._view.choose_output, wanted.index, wanted.backend, wanted.name, wanted.role
        )
        return json_answer(wanted.model_dump())


def _backends_json(backends: Sequence[tuple[str, bool, str]]) -> list[dict[str, object]]:
    return [{"name": name, "available": available, "reason": reason} for name, available, reason in backends]
