"""The published OpenAPI document, made from the endpoints themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from sdbridge import __version__
from sdbridge.control.endpoint import Endpoint
from sdbridge.status import Status

_WHAT: Mapping[int, str] = {
    400: "the body or a query value is malformed",
    401: "the access token is missing or wrong",
    403: "the Host or Origin is not ours",
    404: "there is no such thing",
    405: "another method is meant",
    409: "not there now",
    413: "the body is too large",
    415: "the body's content type is not application/json",
    422: "understood, and refused",
    500: "a fault inside; it is in the log",
}
_ALWAYS_READING = (400, 403, 500)
_ALWAYS_WRITING = (400, 401, 403, 413, 415, 500)


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of ``endpoints``."""
    schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sdbridge",
            "version": __version__,
            "description": "Parameters, presets, cues, textures and status of a running bridge. "
            "With `lan: true` everything that writes needs `Authorization: Bearer <token>`. "
            "OSC and NDI carry no authentication of their own.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    writing = endpoint.method != "GET"
    if isinstance(endpoint.answer, str):
        schema = (
            {"type": "string", "format": "binary"}
            if endpoint.answer.startswith("image/")
            else {"type": "string"}
        )
        good: dict[str, Any] = {endpoint.answer: {"schema": schema}}
    else:
        good = {"application/json": {"schema": endpoint.answer}}
    answers: dict[str, Any] = {"200": {"description": "done" if writing else "here it is", "content": good}}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    always = _ALWAYS_WRITING if writing else (*_ALWAYS_READING, 401) if endpoint.private else _ALWAYS_READING
    for status in sorted({*endpoint.refusals, *always}):
        answers[str(status)] = {"description": _WHAT[status], "content": refused}
    if endpoint.path == "/api/parameters" and writing:  # all refused: still revision and reasons
        outcome = {"$ref": "#/components/schemas/Outcome"}
        answers["422"]["content"] = {"application/json": {"schema": outcome}}
    name = endpoint.path.strip("/").replace("/", "_").replace(".", "_")
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{name}",
        "summary": endpoint.summary,
        "responses": answers,
    }
    if endpoint.query:
        operation["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": dict(schema)}
            for name, schema in endpoint.query.items()
        ]
    if endpoint.body is not None:
        shape = endpoint.body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(shape.pop("$defs", {}))
        schemas[endpoint.body.__name__] = shape
        reference = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if writing or endpoint.private:
        operation["security"] = [{}, {"token": []}]
    return operation


def _schemas() -> dict[str, Any]:
    status = TypeAdapter(Status).json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = dict(status.pop("$defs", {}))
    rejection = {"name": {"type": "string"}, "code": {"type": "string"}, "message": {"type": "string"}}
    schemas["Status"] = status
    schemas["Outcome"] = {
        "type": "object",
        "required": ["revision", "rejected"],
        "properties": {
            "revision": {"type": "integer"},
            "rejected": {"type": "array", "items": {"type": "object", "properties": rejection}},
            "adjusted": {"type": "array", "items": {"type": "object", "properties": rejection}},
        },
    }
    schemas["Parameters"] = {
        "type": "object",
        "required": ["revision", "schema", "parameters"],
        "properties": {
            "revision": {"type": "integer"},
            "schema": {"type": "string"},
            "parameters": {
                "type": "array",
                "items": {"type": "object", "required": ["name", "address", "kind"]},
            },
        },
    }
    parts = {name: {"type": "string"} for name in ("code", "message", "what", "next_step", "output")}
    schemas["Refusal"] = {
        "type": "object",
        "properties": {
            "error": {"type": "object", "properties": parts, "required": list(parts)},
            "revision": {"type": "integer"},
            "rejected": {"type": "array"},
        },
    }
    return schemas
