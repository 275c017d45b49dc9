"""Announces the bridge by zeroconf, so that OSC and OSCQuery programs list it without an address typed."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

from sdbridge.control.view import BridgeView

if TYPE_CHECKING:
    from zeroconf import Zeroconf

log = logging.getLogger(__name__)

OSCQUERY_SERVICE = "_oscjson._tcp.local."
OSC_SERVICE = "_osc._udp.local."


class Advertisement:
    """``_oscjson._tcp`` and ``_osc._udp`` under the config's name, from ``start`` to ``close``.

    Announcing takes a second, so it is done in a thread of its own, and not before the bridge has
    stood for a moment. Without ``lan`` it goes to this
    machine only. Where it cannot be done, one line says so and all else works.
    """

    def __init__(self, view: BridgeView, after_s: float = 1.0) -> None:
        self._view = view
        self._after_s = after_s
        self._zeroconf: Zeroconf | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.announced = threading.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread = threading.Thread(target=self._announce, name="advertise", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the names back. May be called twice."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        if self._zeroconf is not None:
            self._zeroconf.close()
            self._zeroconf = None

    def _announce(self) -> None:
        if self._closing.wait(self._after_s):
            return
        try:
            from zeroconf import InterfaceChoice, IPVersion, NonUniqueNameException, ServiceInfo, Zeroconf
        except ImportError as error:
            log.info("not announced by zeroconf: %s", error)
            return
        lan, port, name = self._view.config.lan, self._view.config.port, self._view.config.name
        addresses = _own_addresses() if lan else ["127.0.0.1"]
        label = name.replace(".", " ")[:40]
        host = f"{_host_label(name)}-{port}.local."
        try:
            interfaces = InterfaceChoice.All if lan else ["127.0.0.1"]
            zeroconf = Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
            for service in (OSCQUERY_SERVICE, OSC_SERVICE):
                if self._closing.is_set():
                    break
                info = ServiceInfo(
                    service,
                    f"{label}.{service}",
                    port=port,
                    parsed_addresses=addresses,
                    server=host,
                    properties={"txtvers": "1"},
                )
                zeroconf.register_service(info, allow_name_change=True)
        except (OSError, NonUniqueNameException, TimeoutError, AssertionError) as error:
            log.info("not announced by zeroconf: %s", error or type(error).__name__)
            return
        self._zeroconf = zeroconf
        self.announced.set()


def _own_addresses() -> list[str]:
    """This machine's IPv4 addresses that others may reach."""
    import psutil

    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    return found or ["127.0.0.1"]


def _host_label(name: str) -> str:
    label = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return label.strip("-")[:40] or "sdbridge"
