"""The output loop's second picture: whose control image is sent, and when none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdbridge.engine.pipe import Wake
from sdbridge.frame import Frame, Role
from sdbridge.hold import HoldSettings
from sdbridge.output import OutputLoop
from sdbridge.parameters.store import ParameterStore
from sdbridge.testing import FakeClock


class Engine:
    """Gives what a test puts here."""

    size = (8, 8)

    def __init__(self) -> None:
        self.waiting: dict[Role, Frame] = {}

    def take(self, role: Role) -> Frame | None:
        return self.waiting.pop(role, None)


def a_frame(number: int, revision: int) -> Frame:
    return Frame(np.full((8, 8, 4), number, np.uint8), number, 0, revision)


@pytest.fixture
def ready():
    wake = Wake()
    yield wake
    wake.close()


def test_the_control_image_of_a_slot_goes_with_it(ready: Wake) -> None:
    store, clock = ParameterStore(), FakeClock()
    engine: Any = Engine()
    output = OutputLoop(engine, store, clock, ready)

    def turn(**waiting: Frame) -> int | None:
        """What there is to look at once these have come."""
        engine.waiting.update(waiting)
        values, revision = store.snapshot()
        output._choose_control(int(values["control_output"]), revision)
        output._turn(HoldSettings.of(values), 0.0)
        clock.advance(1.0)
        shown = output.preview("control")
        return None if shown is None else int(shown.pixels[0, 0, 0])

    def choose(slot: int) -> int:
        store.set("control_output", slot)
        return store.revision

    choose(1)
    assert turn(generated=a_frame(1, store.revision)) is None
    assert turn(generated=a_frame(2, store.revision), control=a_frame(40, store.revision)) == 40
    before = store.revision
    now = choose(2)
    assert turn(generated=a_frame(3, before), control=a_frame(41, before)) is None, "the first slot's, late"
    assert turn(generated=a_frame(4, now)) is None
    assert turn(generated=a_frame(5, now), control=a_frame(42, now)) == 42
    early = choose(3)
    engine.waiting["control"] = a_frame(43, early)  # faster than the loop, which looks at the slot first
    output._turn(HoldSettings.of(store.snapshot()[0]), 0.0)
    assert turn(generated=a_frame(6, early)) == 43
    choose(0)
    assert turn(generated=a_frame(7, early), control=a_frame(44, early)) is None
