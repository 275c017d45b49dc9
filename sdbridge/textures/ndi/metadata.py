"""What travels with each NDI frame: one XML element with the frame's number, times and prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from sdbridge.frame import Frame

_ELEMENT = "sdbridge"
_LONGEST_VALUE = 2000
_LONGEST_DOCUMENT = 64_000
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def to_xml(frame: Frame, about: Mapping[str, str], sent_at_ns: int) -> str:
    """``<sdbridge frame_id="7" received_at_ns=".." sent_at_ns=".." revision="3" prompt=".."/>``.

    Times are of the bridge's monotonic clock. Entries of ``about`` become attributes where their
    names allow it.
    """
    values = {
        "frame_id": str(frame.frame_id),
        "received_at_ns": str(frame.received_at_ns),
        "sent_at_ns": str(sent_at_ns),
        "revision": str(frame.revision),
    }
    for name, value in about.items():
        if _NAME.fullmatch(name) and name not in values:
            values[name] = value
    attributes = (f"{name}={quoteattr(_clean(value))}" for name, value in values.items())
    return f"<{_ELEMENT} {' '.join(attributes)}/>"


def from_xml(text: str) -> Mapping[str, str]:
    """The attributes of a frame's metadata, whoever wrote it; nothing for what is no plain XML."""
    # Definitions of entities are what makes XML dangerous, and metadata has no use for them.
    if not text or len(text) > _LONGEST_DOCUMENT or "<!" in text:
        return {}
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return {}
    return dict(root.attrib)


def _clean(value: str) -> str:
    return _NOT_IN_XML.sub(" ", str(value))[:_LONGEST_VALUE]
