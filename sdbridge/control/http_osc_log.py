"""The HTTP API of the OSC log: the last messages, each with its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Endpoint, json_answer, whole_number


class OscLogEntryView(Protocol):
    """One message as ``osc_log.py`` keeps it."""

    def as_json(self) -> dict[str, object]: ...


class OscLogView(Protocol):
    """What the page needs of the OSC server."""

    @property
    def log(self) -> Sequence[OscLogEntryView]: ...
    @property
    def counts(self) -> Mapping[str, int]: ...


def endpoints(osc: Callable[[], OscLogView | None]) -> tuple[Endpoint, ...]:
    """The endpoint of this file. ``osc`` gives the OSC server, which starts after this one."""

    async def messages(request: Request) -> Response:
        count = whole_number(request, "count", 50, 1, 200)
        server = osc()
        if server is None:
            return json_answer({"messages": [], "counts": {}})
        found = [entry.as_json() for entry in server.log[-count:]]
        return json_answer({"messages": found, "counts": dict(server.counts)})

    return (
        Endpoint(
            "GET",
            "/api/osc-log",
            messages,
            "The last OSC messages, oldest first, each with its verdict",
            query={"count": {"type": "integer", "minimum": 1, "maximum": 200}},
            answer={"type": "object", "required": ["messages", "counts"]},
            private=True,
        ),
    )
