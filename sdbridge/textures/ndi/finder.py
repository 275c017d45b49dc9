"""Which NDI sources can be seen, which of them a name means, and what stands in the way of seeing any."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdbridge.textures.ndi import library
from sdbridge.textures.stub import Source

_FIRST_LOOK_S = 1.0  # a late announcement was seen after 1.1 s at the most
_ADDRESS = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}|localhost|\[[0-9a-fA-F:]+\]):(\d{1,5})")


@dataclass(frozen=True)
class Found:
    """A source as the network shows it: ``MACHINE (Name)`` and ``address:port``."""

    name: str
    address: str


class Finder:
    """Watches the network for sources from ``open`` to ``close``."""

    def __init__(self, groups: str = "", extra_addresses: str = "") -> None:
        self._groups = groups
        self._extra = extra_addresses
        self._native: object | None = None

    def open(self) -> None:
        ndi = library.load()
        settings = ndi.FindCreate(
            show_local_sources=True, p_groups=self._groups or None, p_extra_ips=self._extra or None
        )
        self._native = ndi.find_create_v2(settings)

    def sources(self) -> tuple[Found, ...]:
        """What is seen now; costs nothing."""
        if self._native is None:
            return ()
        seen = library.load().find_get_current_sources(self._native)
        return tuple(Found(source.ndi_name or "", source.url_address or "") for source in seen)

    def close(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            library.load().find_destroy(native)


def list_sources() -> tuple[Source, ...]:
    """All sources of the public group but our own outputs, after a look of about a second."""
    if not library.available()[0]:
        return ()
    finder = Finder()
    finder.open()
    try:
        end = time.monotonic() + _FIRST_LOOK_S
        while time.monotonic() < end:
            time.sleep(0.05)
        others = [found for found in finder.sources() if found.name not in library.own_names]
        return tuple(Source(found.name, found.address) for found in others)
    finally:
        finder.close()


def is_address(name: str) -> bool:
    """Whether a configured name is an address and port rather than a source's name."""
    return _ADDRESS.fullmatch(name) is not None


def choose(name: str, sources: Iterable[Found], own: Iterable[str] = ()) -> Found | None:
    """The source that ``name`` means: the full ``MACHINE (Name)``, or the first machine's ``Name``.

    An empty name means the first source that is not one of our ``own``.
    """
    seen = tuple(sources)
    if not name:
        ours = set(own)
        return next((found for found in seen if found.name not in ours), None)
    for same in (_exactly(name), _inside(name), _exactly(name.casefold(), str.casefold)):
        matches = [found for found in seen if same(found.name)]
        if matches:
            return matches[0]
    return None


def diagnose(
    platform: str = sys.platform,
    exists: Callable[[str], bool] = lambda path: Path(path).exists(),
) -> Iterator[tuple[str, str]]:
    """(what keeps NDI sources from being seen here, what to do). NDI itself stays silent about all of it."""
    if not platform.startswith("linux") or not library.available()[0]:
        return
    if not exists("/run/dbus/system_bus_socket"):
        yield (
            "NDI finds nobody by name: the system D-Bus does not run",
            "Start dbus and avahi-daemon, or give the address host:port as the name.",
        )
    elif not exists("/run/avahi-daemon/socket"):
        yield (
            "NDI finds nobody by name: avahi-daemon does not run",
            "apt install avahi-daemon and start it, or give the address host:port as the name.",
        )


def _exactly(name: str, folded: Callable[[str], str] = str) -> Callable[[str], bool]:
    return lambda seen: folded(seen) == name


def _inside(name: str) -> Callable[[str], bool]:
    return lambda seen: seen.endswith(f" ({name})")
