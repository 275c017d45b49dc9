"""The HTTP API of MIDI: what is connected, what was learnt, learning by touch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sdbridge.control.endpoint import Body, Endpoint, json_answer, read_body
from sdbridge.errors import SdbridgeError


class MidiView(Protocol):
    """What the page needs of the MIDI surface. ``mappings`` are ``(control, parameter)`` for people."""

    @property
    def learning(self) -> bool: ...
    @property
    def devices(self) -> Sequence[str]: ...
    @property
    def mappings(self) -> Sequence[tuple[str, str]]: ...
    def learn(self, on: bool) -> None:
        """While on, the next control that moves is bound to the parameter that was touched last."""

    def forget(self, control: str) -> None: ...


class LearnMidi(Body):
    """Switch learning on or off."""

    on: bool


class ForgetMidi(Body):
    """Unbind one control, named as in the list."""

    control: str = Field(max_length=200)


def endpoints(midi: Callable[[], MidiView | None]) -> tuple[Endpoint, ...]:
    """The endpoints of this file. ``midi`` gives the MIDI surface, which starts after this one."""
    calls = _Midi(midi)
    answer: Mapping[str, object] = {
        "type": "object",
        "required": ["available", "reason", "learning", "devices", "mappings"],
    }
    return (
        Endpoint("GET", "/api/midi", calls.state, "Devices, mappings, and whether it learns", answer=answer),
        Endpoint(
            "POST",
            "/api/midi/learn",
            calls.learn,
            "Learn by touch, or stop learning",
            body=LearnMidi,
            answer=answer,
            refusals=(409, 422),
        ),
        Endpoint(
            "POST",
            "/api/midi/forget",
            calls.forget,
            "Unbind a control",
            body=ForgetMidi,
            answer=answer,
            refusals=(404, 409, 422),
        ),
    )


class _Midi:
    def __init__(self, find: Callable[[], MidiView | None]) -> None:
        self._find = find

    async def state(self, request: Request) -> Response:
        midi = self._find()
        if midi is None:
            reason = (
                'MIDI is not running: pip install "sdbridge[midi]" in sdbridge\'s .venv, then start again.'
            )
            return json_answer(
                {"available": False, "reason": reason, "learning": False, "devices": [], "mappings": []}
            )
        return await self._answer(midi)

    async def learn(self, request: Request) -> Response:
        wanted = await read_body(request, LearnMidi)
        midi = self._there()
        await asyncio.to_thread(midi.learn, wanted.on)
        return await self._answer(midi)

    async def forget(self, request: Request) -> Response:
        wanted = await read_body(request, ForgetMidi)
        midi = self._there()
        await asyncio.to_thread(midi.forget, wanted.control)
        return await self._answer(midi)

    def _there(self) -> MidiView:
        midi = self._find()
        if midi is None:
            raise SdbridgeError("SDB-WEB-ABSENT", "MIDI is not running")
        return midi

    async def _answer(self, midi: MidiView) -> Response:
        mappings = [{"control": control, "parameter": parameter} for control, parameter in midi.mappings]
        return json_answer(
            {
                "available": True,
                "reason": "",
                "learning": midi.learning,
                "devices": list(await asyncio.to_thread(lambda: midi.devices)),
                "mappings": mappings,
            }
        )
