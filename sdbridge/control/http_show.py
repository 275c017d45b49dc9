"""The HTTP API of presets and cues: list, save, recall, morph, go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Body, Endpoint, json_answer, read_body
from sdbridge.control.http_api import Easing, outcome_json
from sdbridge.control.view import BridgeView
from sdbridge.parameters.presets import Preset

WhichOne = Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0, le=1_000_000)]


class WhichPreset(Body):
    """A preset by name or number."""

    preset: WhichOne


class SavePreset(Body):
    """Write the look of now under a name; a preset of that name is replaced."""

    name: str = Field(min_length=1, max_length=200)


class RenamePreset(WhichPreset):
    """Give a preset another name."""

    name: str = Field(min_length=1, max_length=200)


class RecallPreset(WhichPreset):
    """Go to a preset over ``fade_s`` seconds; without it, the preset's own time holds."""

    fade_s: float | None = Field(default=None, ge=0, le=3600)
    easing: Easing | None = None


class MorphPresets(Body):
    """Between two presets: 0 is ``a``, 1 is ``b``."""

    a: WhichOne
    b: WhichOne
    position: float = Field(ge=0, le=1)


class WhichCue(Body):
    """A cue by name or place; without it, the next one."""

    cue: WhichOne | None = None


class Nothing(Body):
    """An empty object."""


def endpoints(view: BridgeView) -> tuple[Endpoint, ...]:
    """The endpoints of this file."""
    show = _Show(view)
    presets = {
        "type": "object",
        "required": ["presets", "active"],
        "properties": {"presets": {"type": "array"}},
    }
    cues = {"type": "object", "required": ["cues", "position"], "properties": {"cues": {"type": "array"}}}
    outcome = {"$ref": "#/components/schemas/Outcome"}
    refused = (404, 422)
    return (
        Endpoint("GET", "/api/presets", show.presets, "All presets by number", answer=presets),
        _writing("/api/presets/save", show.save, "Save the look of now", SavePreset, presets),
        _writing("/api/presets/recall", show.recall, "Go to a preset", RecallPreset, outcome),
        _writing("/api/presets/rename", show.rename, "Rename a preset", RenamePreset, presets),
        _writing(
            "/api/presets/delete", show.delete, "Put a preset into the folder deleted", WhichPreset, presets
        ),
        _writing("/api/presets/morph", show.morph, "Between two presets on one fader", MorphPresets, outcome),
        Endpoint("GET", "/api/cues", show.cues, "The cue list and where it stands", answer=cues),
        Endpoint("POST", "/api/cues/go", show.go, "Recall a cue", WhichCue, answer=outcome, refusals=refused),
        _writing("/api/cues/next", show.next, "Recall the next cue", Nothing, outcome),
        _writing("/api/cues/previous", show.previous, "Recall the previous cue", Nothing, outcome),
        _writing("/api/cues/stop", show.stop, "All fades stand still, no cue follows", Nothing, cues),
    )


def _writing(path: str, call: Any, summary: str, body: type[Body], answer: dict[str, Any]) -> Endpoint:
    return Endpoint("POST", path, call, summary, body, answer=answer, refusals=(404, 422))


class _Show:
    def __init__(self, view: BridgeView) -> None:
        self._view = view
        self._show = view.show

    async def presets(self, request: Request) -> Response:
        return await self._after(lambda: None)

    async def save(self, request: Request) -> Response:
        wanted = await read_body(request, SavePreset)
        return await self._after(lambda: self._show.save(wanted.name))

    async def rename(self, request: Request) -> Response:
        wanted = await read_body(request, RenamePreset)
        return await self._after(lambda: self._show.rename(wanted.preset, wanted.name))

    async def delete(self, request: Request) -> Response:
        wanted = await read_body(request, WhichPreset)
        return await self._after(lambda: self._show.delete(wanted.preset))

    async def recall(self, request: Request) -> Response:
        wanted = await read_body(request, RecallPreset)
        outcome = await asyncio.to_thread(
            self._show.recall, wanted.preset, wanted.fade_s, wanted.easing or "", "page"
        )
        return json_answer(outcome_json(outcome))

    async def morph(self, request: Request) -> Response:
        wanted = await read_body(request, MorphPresets)
        outcome = await asyncio.to_thread(self._show.morph, wanted.a, wanted.b, wanted.position, "page")
        return json_answer(outcome_json(outcome))

    async def cues(self, request: Request) -> Response:
        return json_answer(self._cues_json())

    async def go(self, request: Request) -> Response:
        wanted = await read_body(request, WhichCue)
        outcome = await asyncio.to_thread(self._show.go, wanted.cue, "page")
        return json_answer(outcome_json(outcome))

    async def next(self, request: Request) -> Response:
        await read_body(request, Nothing)
        return json_answer(outcome_json(await asyncio.to_thread(self._show.next, "page")))

    async def previous(self, request: Request) -> Response:
        await read_body(request, Nothing)
        return json_answer(outcome_json(await asyncio.to_thread(self._show.previous, "page")))

    async def stop(self, request: Request) -> Response:
        await read_body(request, Nothing)
        await asyncio.to_thread(self._show.stop_all)
        return json_answer(self._cues_json())

    async def _after(self, act: Callable[[], object]) -> Response:
        """Do something to the presets, then answer with the list as it is now."""

        def both() -> tuple[Preset, ...]:
            act()
            return self._show.list()

        listed = await asyncio.to_thread(both)
        return json_answer({"presets": [_preset_json(one) for one in listed], "active": self._show.preset})

    def _cues_json(self) -> dict[str, object]:
        cues = [
            {
                "place": place,
                "name": cue.name,
                "preset": cue.preset,
                "fade_s": cue.fade,
                "follow_s": cue.follow,
            }
            for place, cue in enumerate(self._show.cues, 1)
        ]
        return {"cues": cues, "position": self._show.cue_position}


def _preset_json(preset: Preset) -> dict[str, object]:
    return {
        "number": preset.number,
        "name": preset.name,
        "fade_s": preset.fade_s,
        "easing": preset.easing,
        "parameters": len(preset.values),
        "prompt": str(preset.values.get("prompt.1.text", ""))[:200],
        "error": preset.error,
    }
