"""What one HTTP endpoint is, how it reads its body, and how it answers or refuses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sdbridge.errors import SdbridgeError

LARGEST_BODY = 1 << 20  # bytes; the largest preset is a fraction of this
BODY_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)

Call = Callable[[Request], Awaitable[Response]]
B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """A request body. Unknown keys are refused, so that a misspelt one never passes in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Endpoint:
    """One address of the HTTP API; routes and the OpenAPI document are both made from it.

    ``answer`` is the JSON schema of a good answer, or a media type such as ``image/png``.
    ``refusals`` are the status codes it may refuse with, besides those that hold everywhere.
    ``private`` reading needs the token too on the network: logs name people's files and machines.
    """

    method: str
    path: str
    call: Call
    summary: str
    body: type[Body] | None = None
    query: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    answer: Mapping[str, object] | str = field(default_factory=lambda: {"type": "object"})
    refusals: tuple[int, ...] = ()
    private: bool = False


def guarded(endpoint: Endpoint) -> Call:
    """The control edge for HTTP: every fault becomes an answer with a code, and none ends the server."""

    async def guard(request: Request) -> Response:
        try:
            if endpoint.private and not request.scope.get("sdbridge.may_write"):
                raise SdbridgeError("SDB-WEB-TOKEN", f"reading {endpoint.path} needs the access token")
            return await endpoint.call(request)
        except SdbridgeError as error:
            return refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is left to read it
        except Exception:  # noqa: BLE001  # edge: control; logged with its trace
            _log.exception("%s %s failed", request.method, request.url.path)
            return refusal(
                SdbridgeError("SDB-WEB-FAULT", f"{request.method} {request.url.path} failed inside")
            )

    return guard


async def read_body(request: Request, shape: type[B]) -> B:
    """The request's JSON body as ``shape``. Raises SDB-WEB-SIZE or SDB-WEB-BODY with every mistake."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BODY:
                    raise SdbridgeError("SDB-WEB-SIZE", f"the body is larger than {LARGEST_BODY} bytes")
                parts.append(part)
    except TimeoutError:
        raise SdbridgeError(
            "SDB-WEB-BODY", f"the body did not arrive within {BODY_TIMEOUT_S:g} s, {size} bytes came"
        ) from None
    return shape_of(b"".join(parts), shape)


def shape_of(text: bytes | str, shape: type[B]) -> B:
    """``text`` as JSON of ``shape``. Raises SDB-WEB-BODY naming what is wrong and where."""
    try:
        tree: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SdbridgeError("SDB-WEB-BODY", f"the body is no JSON: {_plain(str(error))[:120]}") from None
    if not isinstance(tree, dict):
        raise SdbridgeError("SDB-WEB-BODY", f"the body must be a JSON object, not {type(tree).__name__}")
    try:
        return shape.model_validate(tree)
    except ValidationError as error:
        wrong = [
            f"{_plain('.'.join(str(p) for p in item['loc']))[:80] or 'body'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SdbridgeError("SDB-WEB-BODY", "; ".join(wrong[:8])) from None


def whole_number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A query value between ``low`` and ``high``. Raises SDB-WEB-BODY otherwise."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise SdbridgeError("SDB-WEB-BODY", f"{name} takes {low} to {high}, not {_plain(text)[:40]!r}")
    return int(text)


def json_text(content: object) -> str:
    """JSON in ASCII, so that half a surrogate in somebody's prompt cannot break the answer."""
    return json.dumps(content, separators=(",", ":"), default=list)


def json_answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that no cache keeps."""
    return Response(
        json_text(content),
        status_code=status,
        headers={"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


#: The status code of a refusal; every other code of the table means 422: understood, and refused.
_STATUS_CODES: Mapping[str, int] = {
    "SDB-WEB-BODY": 400,
    "SDB-WEB-TOKEN": 401,
    "SDB-WEB-HOST": 403,
    "SDB-WEB-ORIGIN": 403,
    "SDB-WEB-PATH": 404,
    "SDB-WEB-METHOD": 405,
    "SDB-WEB-SIZE": 413,
    "SDB-WEB-TYPE": 415,
    "SDB-WEB-FAULT": 500,
    "SDB-WEB-ABSENT": 409,
    "SDB-WEB-FULL": 503,
}


def refusal(error: SdbridgeError, headers: Mapping[str, str] | None = None) -> Response:
    """The error as JSON: ``{"error": {code, message, what, next_step, output}}``."""
    status = _STATUS_CODES.get(error.code, 404 if error.code.endswith(("-UNKNOWN", "-MISSING")) else 422)
    return json_answer({"error": error_json(error)}, status, headers)


def error_json(error: SdbridgeError) -> dict[str, str]:
    """The error's parts, for JSON edges."""
    return {
        "code": error.code,
        "message": str(error),
        "what": error.what,
        "next_step": error.next_step,
        "output": error.output,
    }


def _plain(text: str) -> str:
    """``text`` on one line and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
