"""Which texture backends there are, and how a name in the configuration becomes a class."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from sdbridge.errors import SdbridgeError
from sdbridge.textures.stub import Receiver, Sender, Source

#: Backend name -> where its Receiver is. Nothing is imported until it is asked for by name.
RECEIVERS: Mapping[str, str] = MappingProxyType(
    {
        "demo_scene": "sdbridge.textures.demo_scene:Receiver",
        "image_file": "sdbridge.textures.image_file:Receiver",
        "ndi": "sdbridge.textures.ndi.receiver:Receiver",
        "screen": "sdbridge.textures.screen:Receiver",
        "shared_memory": "sdbridge.textures.shared_memory:Receiver",
        "spout": "sdbridge.textures.spout:Receiver",
        "syphon": "sdbridge.textures.syphon:Receiver",
        "test_pattern": "sdbridge.textures.test_pattern:Receiver",
        "touchdesigner_memory": "sdbridge.textures.touchdesigner_memory:Receiver",
        "video_file": "sdbridge.textures.video_file:Receiver",
    }
)

#: Backend name -> where its Sender is.
SENDERS: Mapping[str, str] = MappingProxyType(
    {
        "mjpeg": "sdbridge.textures.mjpeg:Sender",
        "ndi": "sdbridge.textures.ndi.sender:Sender",
        "null": "sdbridge.textures.null:Sender",
        "recording": "sdbridge.textures.recording:Sender",
        "shared_memory": "sdbridge.textures.shared_memory:Sender",
        "spout": "sdbridge.textures.spout:Sender",
        "syphon": "sdbridge.textures.syphon:Sender",
        "touchdesigner_memory": "sdbridge.textures.touchdesigner_memory:Sender",
        "virtual_camera": "sdbridge.textures.virtual_camera:Sender",
        "webrtc": "sdbridge.textures.webrtc:Sender",
    }
)

#: Modules that can say why sources stay unseen on this machine, each by its own ``diagnose``.
_DIAGNOSED: tuple[str, ...] = ("sdbridge.textures.ndi.finder",)


def receiver_class(backend: str) -> type[Receiver]:
    """The backend's Receiver. Raises SDB-TEXTURE-UNKNOWN for an unknown name; ``auto`` is no backend."""
    found: type[Receiver] = _import(backend, RECEIVERS, SENDERS, "receive")
    return found


def sender_class(backend: str) -> type[Sender]:
    """The backend's Sender. Raises SDB-TEXTURE-UNKNOWN for an unknown name; ``auto`` is no backend."""
    found: type[Sender] = _import(backend, SENDERS, RECEIVERS, "send")
    return found


def receiver_names() -> tuple[str, ...]:
    """All backends that receive, by name."""
    return tuple(sorted(RECEIVERS))


def sender_names() -> tuple[str, ...]:
    """All backends that send, by name."""
    return tuple(sorted(SENDERS))


def receiver_available(backend: str) -> tuple[bool, str]:
    """Whether this machine can receive by ``backend``, and why. Raises SDB-TEXTURE-UNKNOWN."""
    return receiver_class(backend).available()


def sender_available(backend: str) -> tuple[bool, str]:
    """Whether this machine can send by ``backend``, and why. Raises SDB-TEXTURE-UNKNOWN."""
    return sender_class(backend).available()


def list_sources(backend: str) -> tuple[Source, ...]:
    """What can be received by ``backend`` now; may take a second. Raises SDB-TEXTURE-UNKNOWN."""
    kind = receiver_class(backend)
    return kind.list_sources() if kind.available()[0] else ()


def diagnose() -> Iterator[tuple[str, str]]:
    """(what stands in the way of seeing other programs, what to do about it), for doctor."""
    for module in _DIAGNOSED:
        yield from importlib.import_module(module).diagnose()


def _import(backend: str, table: Mapping[str, str], other: Mapping[str, str], verb: str) -> type:
    if backend not in table:
        if backend in other:
            what = f"the backend {backend} cannot {verb}; those that can: {', '.join(sorted(table))}"
        else:
            near = difflib.get_close_matches(backend, table, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(table))}"
            what = f"there is no texture backend {backend}; {hint}"
        raise SdbridgeError("SDB-TEXTURE-UNKNOWN", what)
    module, _, name = table[backend].partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found
