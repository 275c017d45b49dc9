"""The figures of control: the engine that shows a fader, and the cases by name."""

from __future__ import annotations

import numpy as np
import pytest

from sdbridge.bench import registry
from sdbridge.bench.control import ShadeEngine, run_case
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame


def test_the_shade_engine_paints_the_fader_and_marks_every_frame() -> None:
    engine = ShadeEngine(EngineConfig(kind="shade"))
    frame = Frame(np.zeros((8, 8, 4), np.uint8), 3, 5, 7)
    seen = []
    for strength in (0.0, 0.25, 0.25, 1.0):
        engine.apply({"strength": strength}, 1)
        chunk = engine.tick(Chunk.of(frame))
        assert chunk is not None
        made = chunk.frames[-1]["generated"]
        assert (made.frame_id, made.received_at_ns, made.revision) == (3, 5, 7)
        seen.append(int(made.pixels[4, 4, 1]))
    assert [(shade - 2) // 2 for shade in seen] == [0, 25, 25, 100]
    assert len(set(seen)) == 4


def test_the_cases_are_known_to_the_command_and_by_name() -> None:
    for name in ("control-latency", "control-10k", "control-subscribers"):
        case = registry.find(name)
        assert case is not None and callable(case.load())
    with pytest.raises(SdbridgeError, match="SDB-BENCH-FAULT"):
        run_case("nothing")
