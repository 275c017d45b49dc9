"""Frames on their way in: borrowed where they are used at once, copied where a chunk keeps them."""

import numpy as np

from sdbridge.engine.inlet import Inlet
from sdbridge.frame import Frame
from sdbridge.slot import SharedSlot


def picture(number):
    return Frame(np.full((4, 4, 4), number, np.uint8), number, 0)


def test_an_engine_that_keeps_no_frames_looks_at_them_where_they_lie():
    with SharedSlot.create(64) as slot:
        inlet = Inlet(borrow=True)
        inlet.attach({"in:main": slot.name})
        slot.write(picture(1))
        taken = inlet.take()
        assert taken.loan is not None and (taken.pixels == 1).all()
        chunk = inlet.gather()
        for number in (2, 3, 4, 5):
            slot.write(picture(number))
        assert (chunk.main.pixels == 1).all()
        del taken, chunk
        inlet.close()


def test_frames_that_wait_for_their_chunk_do_not_change_meanwhile():
    with SharedSlot.create(64) as slot:
        inlet = Inlet(borrow=True)
        inlet.attach({"in:main": slot.name})
        inlet.want(4)
        chunk = None
        for number in range(1, 5):
            slot.write(picture(number))
            inlet.take()
            chunk = inlet.gather()
        for number in (9, 9, 9, 9):
            slot.write(picture(number))
            inlet.take()
        assert [int(entry["main"].pixels[0, 0, 0]) for entry in chunk.frames] == [1, 2, 3, 4]
        inlet.close()
