"""A chunk whose frames are being painted: who they are is known, their pixels are on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sdbridge.engine.image.pictures import Handout
from sdbridge.engine.image.travellers import FrameTag
from sdbridge.frame import Chunk, Frame, Role


class Painting:
    """``finish`` gives the chunk, waiting for the device if need be; the same chunk every time."""

    def __init__(
        self,
        make: Callable[[], Chunk],
        last_id: int,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._make: Callable[[], Chunk] | None = make
        self._is_ready = ready
        self._chunk: Chunk | None = None
        self.last_id = last_id

    @property
    def ready(self) -> bool:
        """Whether ``finish`` would not wait."""
        return self._chunk is not None or self._is_ready()

    def finish(self) -> Chunk:
        if self._chunk is None:
            assert self._make is not None
            self._chunk = self._make()
            self._make = None  # and with it whatever it held on to
        return self._chunk


def painting_of(handouts: Mapping[Role, Handout], tags: Sequence[FrameTag], revision: int) -> Painting:
    """Frames ``tags`` with the pictures that the handouts bring."""

    def make() -> Chunk:
        pictures = {role: handout.pixels() for role, handout in handouts.items()}
        entries: list[Mapping[Role, Frame]] = []
        for index, tag in enumerate(tags):
            entries.append(
                MappingProxyType(
                    {
                        role: Frame(pixels[index], tag.frame_id, tag.received_at_ns, revision)
                        for role, pixels in pictures.items()
                    }
                )
            )
        return Chunk(tuple(entries))

    return Painting(make, tags[-1].frame_id, lambda: all(each.ready for each in handouts.values()))


def same_again(last: Painting, entries: Sequence[Mapping[Role, Frame]], revision: int) -> Painting:
    """The last frame of ``last`` again, once for each of these inputs, under their ids."""

    def make() -> Chunk:
        picture = last.finish().frames[-1]
        again: list[Mapping[Role, Frame]] = []
        for entry in entries:
            main = entry["main"]
            again.append(
                MappingProxyType(
                    {
                        role: Frame(frame.pixels, main.frame_id, main.received_at_ns, revision)
                        for role, frame in picture.items()
                    }
                )
            )
        return Chunk(tuple(again))

    return Painting(make, entries[-1]["main"].frame_id, lambda: last.ready)


def as_generated(chunk: Chunk, revision: int) -> Painting:
    """Bypass: the main pictures as they came."""
    entries: list[Mapping[Role, Frame]] = []
    for entry in chunk.frames:
        frame = entry["main"]
        made = Frame(frame.pixels, frame.frame_id, frame.received_at_ns, revision)
        entries.append(MappingProxyType({"generated": made}))
    given = Chunk(tuple(entries))
    return Painting(lambda: given, chunk.frames[-1]["main"].frame_id)
