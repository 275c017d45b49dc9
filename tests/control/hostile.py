"""Datagrams that mean harm: the measured ones of the reference, and endless changes of good ones."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator

from sdbridge.control.osc_decode import encode_message

_NTP = 2_208_988_800


def _bundle(ahead_s: float, *messages: bytes) -> bytes:
    tag = int((time.time() + ahead_s + _NTP) * 2**32) & (2**64 - 1)
    return b"#bundle\x00" + struct.pack(">Q", tag) + b"".join(struct.pack(">i", len(m)) + m for m in messages)


def _good(rng: random.Random) -> bytes:
    """A message that does no lasting harm if it happens to be valid."""
    address = rng.choice(
        [
            "/sdbridge/strength",
            "/sdbridge/prompt",
            "/sdbridge/steps",
            "/sdbridge/seed",
            "/sdbridge/refresh",
            "/sdbridge/subscribe",
            "/sdbridge/controlnet/*/scale",
            "/sdbridge/normalized",
            "/sdbridge/preset/recall",
            "/sdbridge/cue/go",
            "/sdbridge/fade",
            "/sdbridge/morph",
            "/sdbridge/unsubscribe",
            "/sdbridge/status/fps",
        ]
    )
    values = [
        0.5,
        3,
        "text",
        "夜",
        True,
        None,
        b"blob",
        float("nan"),
        float("inf"),
        -1,
        2**40,
        "x" * 300,
        1e300 * 0,
    ]
    return encode_message(address, [rng.choice(values) for _ in range(rng.randrange(4))], booleans=True)


def _mean(rng: random.Random, largest: int) -> bytes:
    kind = rng.randrange(10)
    if kind == 0:
        return encode_message("/sdbridge/param/" + "*" * rng.randrange(10, 40) + "!", (1.0,))
    if kind == 1:
        return encode_message(
            "/sdbridge/" + "{a,b}" * rng.randrange(1, 30) + "[!-z" * rng.randrange(3), (1.0,)
        )
    if kind == 2:
        return _bundle(rng.choice([4.0, 60.0, 3600.0, 1e9, -1e9]), _good(rng))
    if kind == 3:
        nested = _good(rng)
        for _ in range(rng.randrange(1, 40)):
            nested = _bundle(0.0, nested)
        return nested
    if kind == 4:
        return rng.randbytes(rng.randrange(min(largest, 1500)))
    if kind == 5:
        return b"#bundle\x00" + rng.randbytes(rng.randrange(100))
    if kind == 6:
        return b"/" + b"\xff" * rng.randrange(50) + b"\x00,s\x00\x00"
    if kind == 7:
        return encode_message("/sdbridge/prompt", ("y" * rng.randrange(largest - 200),))[:largest]
    if kind == 8:
        return encode_message("/" + "/".join("abc" for _ in range(rng.randrange(200))), (1,))
    return (b"/sdbridge/strength\x00\x00," + b"[" * rng.randrange(300)).ljust(rng.randrange(400), b"\x00")


def hostile_datagrams(seed: int, count: int, largest: int) -> Iterator[bytes]:
    """``count`` datagrams, the same for the same seed."""
    rng = random.Random(seed)
    for n in range(count):
        packet = _mean(rng, largest) if n % 2 else bytearray(_good(rng))
        if isinstance(packet, bytearray):
            for _ in range(rng.randrange(4)):
                packet[rng.randrange(len(packet))] = rng.randrange(256)
        yield bytes(packet)[:largest]
