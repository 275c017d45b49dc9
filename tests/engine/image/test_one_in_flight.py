"""While something is loaded or captured each frame is fetched before the next is queued, and is the same."""

from __future__ import annotations

import pytest
import torch

from sdbridge.bench.drive import Drive, Recipe
from sdbridge.engine.accelerate import courtesy
from sdbridge.engine.image.loading import LoadingThread
from sdbridge.frame import Frame
from tests.engine.image.rig import Rig


class TwoDeep:
    """An engine with its pair of methods, as on a GPU; during chunks ``works`` a job is at work."""

    def __init__(self, rig: Rig, works: range) -> None:
        self._engine, self._works = rig.engine, works
        self.submit = self._submit
        self.before: list[int] = []  # pending before each submit
        self.frames: list[Frame] = []
        self._job = courtesy.at_work()

    def apply(self, changes, revision):
        return self._engine.apply(changes, revision)

    @property
    def pending(self) -> int:
        return self._engine.pending

    @property
    def most_pending(self) -> int:
        return self._engine.most_pending

    def _submit(self, chunk) -> None:
        self.before.append(self.pending)
        assert self.pending < self.most_pending
        self._engine._queue(chunk)
        if len(self.before) == self._works.start:
            self._job.__enter__()
        if len(self.before) == self._works.stop:
            self._job.__exit__(None, None, None)

    def collect(self, wait: bool):
        made = self._engine.collect(wait)
        self.frames += [entry["generated"] for entry in made.frames] if made is not None else []
        return made


def test_ids_order_and_pictures_are_those_of_two_in_flight(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(courtesy, "EDGE_PATIENCE_S", 0.0)
    made = []
    for works in (range(0), range(4, 8)):
        rig = Rig(checkpoint(), {"scheduler": "lcm", "steps": 2}, dtype="float32")
        engine = TwoDeep(rig, works)
        Drive(engine, Recipe({}, 64, 64, moves=lambda number: {"seed.1.value": number // 2})).run(10)
        made.append(engine)
        assert not courtesy.one_at_a_time()
    plain, careful = made
    assert plain.before == [0, *[1] * 10]
    assert careful.before == [0, *[1] * 3, *[0] * 4, *[1] * 3], (
        "one from the next frame on, and then two again"
    )
    assert [frame.frame_id for frame in careful.frames] == [frame.frame_id for frame in plain.frames]
    for a, b in zip(careful.frames, plain.frames, strict=True):
        assert (a.pixels == b.pixels).all() and a.revision == b.revision


@pytest.mark.gpu
def test_the_loading_thread_is_at_work_while_it_loads() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    loading = LoadingThread(torch.device("cuda"))
    assert loading.submit(courtesy.one_at_a_time).result()
    assert not courtesy.one_at_a_time()
    fault = loading.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fault.result()
    assert not courtesy.one_at_a_time()
    loading.close()
