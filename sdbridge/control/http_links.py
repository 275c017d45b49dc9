"""The HTTP API of the links that open the page on a phone, as addresses and as QR codes to point it at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Endpoint, json_answer


def endpoints(links: Callable[[], Sequence[str]]) -> tuple[Endpoint, ...]:
    """The endpoint of this file. Only who may write is told: the links carry the token."""

    async def listed(request: Request) -> Response:
        return json_answer({"links": await asyncio.to_thread(lambda: [_link_json(one) for one in links()])})

    link = {"type": "object", "required": ["url", "qr"]}
    return (
        Endpoint(
            "GET",
            "/api/links",
            listed,
            "Links that open the page on a phone; none while the network is shut out",
            answer={
                "type": "object",
                "required": ["links"],
                "properties": {"links": {"type": "array", "items": link}},
            },
            private=True,
        ),
    )


def _link_json(url: str) -> dict[str, str]:
    import segno  # a tenth of a second that a start should not wait for

    picture = segno.make(url, error="m", micro=False)
    return {"url": url, "qr": picture.svg_data_uri(border=3, dark="#000", light="#fff")}
