"""What every component's extension shares: it never raises, and it says on Status what is wrong."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from .discovery import Running, find_running, is_alive
from .link import Link, monotonic
from .pages import find_par

if TYPE_CHECKING:
    import td

P = ParamSpec("P")
E = TypeVar("E", bound="BaseExt")
_LOOK_FOR_DAEMON_S = 2.0


def never_raises(method: Callable[Concatenate[E, P], None]) -> Callable[Concatenate[E, P], None]:
    """TouchDesigner calls this: an exception would stop its cook, so it ends on Status instead."""

    @functools.wraps(method)
    def guarded(self: E, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - the edge to TouchDesigner: the show goes on, the trace is printed
            self.fault(traceback.format_exc())

    return guarded


class BaseExt:
    """One component's Python side. ``clock`` gives seconds that never go back."""

    def __init__(self, comp: td.COMP, clock: Callable[[], float] = monotonic) -> None:
        self.comp = comp
        self.clock = clock
        self.link = Link()
        self._fault = ""
        self._said = ""
        self._running: Running | None = None
        self._look_at = 0.0

    # --- for TouchDesigner ---

    @never_raises
    def Close(self) -> None:
        """Let go of the socket."""
        self.link.close()

    def onDestroyTD(self) -> None:
        self.Close()

    def Frame(self) -> None:
        """Called at the start of every frame."""

    def ValuesChanged(self, changes: Any) -> None:
        """Called once a frame with every parameter that changed."""

    def Pulse(self, par: td.Par) -> None:
        """Called when a pulse parameter is pulsed."""

    def Built(self, missing: list[str]) -> None:
        """Called when the component was made or mended; ``missing`` operators could not be made."""

    # --- for the components ---

    def value(self, name: str, default: Any) -> Any:
        """What a parameter evaluates to, as the type of ``default``; the default if that fails.

        An expression that fails to evaluate must not stop a frame.
        """
        par = find_par(self.comp, name)
        if par is None:
            return default
        try:
            found = par.eval()
            return default if found is None else type(default)(found)
        except Exception:  # noqa: BLE001 - a user's expression may raise anything
            return default

    def show(self, name: str, value: Any) -> None:
        """Write one of our own read-only parameters, only if it says something else."""
        par = find_par(self.comp, name)
        if par is not None and par.val != value:
            par.val = value

    def say(self, text: str) -> bool:
        """Put a line on Status; True if it is a new one."""
        if self._fault:
            text = f"{text}; internal fault, see the textport: {self._fault}"
        if text == self._said:
            return False
        self._said = text
        self.show("Status", text)
        return True

    def fault(self, trace: str) -> None:
        last = trace.strip().splitlines()[-1]
        if last != self._fault:  # once, not sixty times a second
            self._fault = last
            print(f"{self.comp.path}: {trace}")  # to TouchDesigner's textport
        self._said = ""
        try:
            self.show("Status", f"internal fault, see the textport: {last}")
        except Exception:  # noqa: BLE001 - the component may be half destroyed
            return

    def _found(self, running: Running | None) -> None:
        """A daemon that is gone stays the one we wait for, until another is there."""
        if running is None:
            return
        if self._running is not None and running.pid != self._running.pid:
            self.link.restarts += 1
        self._running = running

    def keep_link(self, now: float) -> None:
        """Open the line to where the daemon is, as Connection, Host and OSC Port say."""
        if not self.value("Active", True):
            self.link.close()
            return
        host, port = self.value("Host", "127.0.0.1"), self.value("Oscport", 9000)
        if self.value("Connection", "manual") == "auto":
            # A process on this machine is looked at every frame, so that its last picture is held
            # before whatever its texture becomes can be taken for a picture.
            if self._running is not None and self.link.alive(now) and not is_alive(self._running.pid):
                self.link.lose(f"the daemon has ended (process {self._running.pid})")
            if not self.link.alive(now) and now >= self._look_at:
                self._look_at = now + _LOOK_FOR_DAEMON_S
                self._found(find_running())
            if self._running is not None:
                host, port = "127.0.0.1", self._running.port
        self.link.open(host, port, self.value("Feedbackport", 0), now)
        self.link.tick(now)
