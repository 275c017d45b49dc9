"""Which backend ``auto`` stands for on this machine, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath

from sdbridge.textures.registry import RECEIVERS, SENDERS, receiver_class, sender_class
from sdbridge.textures.stub import Receiver, Sender

_STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "srt", "udp", "rtp", "http", "https", "file", "hls")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FILMS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".gif", ".mxf", ".y4m")

#: The way pictures travel between programs on each system, best first.
_SHARED: Mapping[str, tuple[str, ...]] = {
    "win32": ("spout", "ndi"),
    "darwin": ("syphon", "ndi"),
    "linux": ("ndi",),
}


def choose_receiver(
    name: str,
    platform: str = sys.platform,
    class_of: Callable[[str], type[Receiver]] = receiver_class,
) -> tuple[str, str]:
    """(backend, reason) for an input called ``name``. Looking for sources may take a second or two.

    A file name or an address decides by itself. A plain name is a source of the system's own kind
    of shared texture. Without a name the first kind that shows any source is taken, and if there
    is none the test pattern, so that a bare machine still shows a moving picture.
    """
    by_name = _by_name(name)
    if by_name is not None:
        return by_name
    unavailable: list[str] = []
    for backend in _shared(platform, RECEIVERS):
        kind = class_of(backend)
        able, why = kind.available()
        if not able:
            unavailable.append(f"{backend}: {why}")
            continue
        if name:
            return (
                backend,
                f"the source {name!r} is looked for over {backend}, which programs on {platform} share by",
            )
        sources = kind.list_sources()
        if sources:
            return backend, f"{backend} shows {len(sources)} source(s), the first is {sources[0].name!r}"
        unavailable.append(f"{backend}: no source is seen now")
    return "test_pattern", "no shared texture can be received (" + "; ".join(unavailable) + ")"


def choose_sender(
    platform: str = sys.platform,
    class_of: Callable[[str], type[Sender]] = sender_class,
) -> tuple[str, str]:
    """(backend, reason) for an output: the system's own shared texture, else MJPEG over HTTP."""
    unavailable: list[str] = []
    for backend in _shared(platform, SENDERS):
        able, why = class_of(backend).available()
        if able:
            return backend, f"{backend} is how programs on {platform} share pictures; {why}"
        unavailable.append(f"{backend}: {why}")
    return "mjpeg", "any browser and OBS can show it, and nothing better runs here (" + (
        "; ".join(unavailable) + ")"
    )


def _shared(platform: str, table: Mapping[str, str]) -> list[str]:
    return [backend for backend in _SHARED.get(platform, ("ndi",)) if backend in table]


def _by_name(name: str) -> tuple[str, str] | None:
    scheme = name.partition("://")[0].lower() if "://" in name else ""
    if scheme in _STREAM_SCHEMES:
        return "video_file", f"{name!r} is an address that starts with {scheme}://"
    ending = PurePath(name).suffix.lower()
    if ending in _PICTURES:
        return "image_file", f"{name!r} is a picture by its ending {ending}"
    if ending in _FILMS:
        return "video_file", f"{name!r} is a film by its ending {ending}"
    return None
