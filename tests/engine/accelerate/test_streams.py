"""Every stream we use has one owner, though PyTorch hands out the same ones again."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from sdbridge.engine.accelerate import streams

CARD = torch.device("cuda", 0)


class PoolStream:
    """As ``torch.cuda.Stream``: the same 32 of each priority, in turn."""

    turns = itertools.count()

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.device_index = device.index
        self.cuda_stream = (-priority) * 1000 + next(self.turns) % 32


@pytest.fixture(autouse=True)
def pool(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", PoolStream)
    monkeypatch.setattr(streams, "_owned", set())
    monkeypatch.setattr(streams, "_shared", {})


def test_no_stream_is_given_twice_and_what_is_let_go_comes_back() -> None:
    mine = streams.own_stream(CARD)
    for _ in range(100):  # round the pool three times
        assert streams.own_stream(CARD).cuda_stream != mine.cuda_stream
    handle = mine.cuda_stream
    del mine
    gc.collect()
    assert handle in {streams.own_stream(CARD).cuda_stream for _ in range(32)}


def test_when_all_of_a_priority_have_owners_another_one_helps_out() -> None:
    kept = [streams.own_stream(CARD, priority=-1) for _ in range(128)]
    assert len({stream.cuda_stream for stream in kept}) == 128
    assert all(stream.cuda_stream // 1000 == 1 for stream in kept[:32])
    with pytest.raises(RuntimeError, match="all 128"):
        streams.own_stream(CARD)


def test_captures_go_on_when_every_stream_has_an_owner_on_one_that_they_share() -> None:
    kept = []
    for _ in range(127):
        with streams.capture_stream(CARD) as stream:
            kept.append(stream)
    assert len({stream.cuda_stream for stream in kept}) == 127
    with streams.capture_stream(CARD) as first:
        pass
    with streams.capture_stream(CARD) as second:
        assert second is first and streams._in_turns.locked()
    assert first.cuda_stream not in {stream.cuda_stream for stream in kept}


def test_the_stream_that_captures_share_is_of_their_own_card() -> None:
    other = torch.device("cuda", 1)
    with streams.capture_stream(CARD), streams.capture_stream(other):
        pass
    kept = []
    for card in (CARD, other):
        while True:
            try:
                kept.append(streams.own_stream(card))
            except RuntimeError:
                break
    for card in (CARD, other):
        with streams.capture_stream(card) as stream:
            assert stream.device_index == card.index
