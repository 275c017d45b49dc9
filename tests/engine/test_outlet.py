"""Finished frames on their way out: what an engine lends is copied before the engine goes on."""

import threading

import numpy as np

from sdbridge.engine.outlet import Outlet
from sdbridge.frame import Chunk, Frame
from sdbridge.slot import SharedSlot
from sdbridge.testing import FakeClock


class HeldUp:
    """Stands for the wake-up of the bridge; holds whoever sets it until released."""

    def __init__(self):
        self.reached, self.released = threading.Event(), threading.Event()

    def set(self):
        self.reached.set()
        assert self.released.wait(30)


def test_pictures_lent_by_the_engine_are_copied_before_they_wait_for_their_turn():
    ready = HeldUp()
    with SharedSlot.create(4 * 4 * 4) as slot, SharedSlot.attach(slot.name) as reader:
        outlet = Outlet(FakeClock(), ready, lambda place, size: None)
        outlet.lent = True
        outlet.attach({"out:generated": slot.name})
        pictures = [np.full((4, 4, 4), number, np.uint8) for number in (1, 2)]
        entries = tuple({"generated": Frame(picture, at, 0)} for at, picture in enumerate(pictures))
        outlet.emit(Chunk(entries), 7, 0.0)
        assert ready.reached.wait(30)  # the first is out, the second waits
        for picture in pictures:
            picture[:] = 99
        first = reader.take()
        ready.released.set()
        while slot.writes < 2:
            threading.Event().wait(0.001)
        second = reader.take()
        outlet.close()
    assert (first.pixels == 1).all() and (second.pixels == 2).all()
    assert first.revision == second.revision == 7
