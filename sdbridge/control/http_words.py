"""The HTTP API of the prompt's vocabulary: words that the model in use knows."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Endpoint, json_answer
from sdbridge.control.view import BridgeView
from sdbridge.models.embedded_model import EXAMPLE_PROMPTS, VOCABULARY


def endpoints(view: BridgeView) -> tuple[Endpoint, ...]:
    """The endpoint of this file."""
    words = {"type": "array", "items": {"type": "string"}}
    answer = {
        "type": "object",
        "required": ["examples", "words"],
        "properties": {"examples": words, "words": words},
    }

    async def vocabulary(request: Request) -> Response:
        if _embedded_model_runs(view):
            return json_answer({"examples": EXAMPLE_PROMPTS, "words": VOCABULARY.words()})
        return json_answer({"examples": [], "words": []})  # a large model knows every word

    return (
        Endpoint(
            "GET",
            "/api/vocabulary",
            vocabulary,
            "Whole prompts to begin with, and the words of a small model",
            answer=answer,
        ),
    )


def _embedded_model_runs(view: BridgeView) -> bool:
    return (str(view.store.get("model")) or view.config.engine.model) in ("", "embedded")
