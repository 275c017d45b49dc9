"""Senders inside the engine's process, which show a picture where its tensor is: opened and closed as told.

The bridge decides who sends under a name; here is only what it orders. No torch above the ``Show``
that an output is made with, so that all of this runs with a fake engine too.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: Pictures in a row that may fail before the sender is given back to the bridge.
FAILURES_ALLOWED = 3
#: How long a sender's thread may take to let go of its name when the engine ends.
CLOSE_S = 2.0

#: Texture backend -> where its Show is. Nothing is imported before the bridge asks for it.
SHOWS: dict[str, str] = {"spout": "sdbridge.engine.accelerate.spout_output:SpoutShow"}

Options = Mapping[str, bool | int | float | str]
#: Told: the output's name, its state, and why.
Tell = Callable[[str, "GpuState", str], None]


class GpuUnusableError(SdbridgeError):
    """Raised by a ``Show`` that can never work here: no use in trying the next picture."""


class GpuState(StrEnum):
    """What the engine says of a sender of its own."""

    NONE = "none"  # nothing was said yet
    READY = "ready"  # could show at once; holds no name
    SHOWING = "showing"  # holds the name and has shown a picture
    UNAVAILABLE = "unavailable"  # cannot, here or any more


class Show(Protocol):
    """One sender on the GPU. All but ``keep`` is called in the thread that the sender belongs to."""

    def open(self) -> None:
        """Get all that is needed short of the name. Raises SdbridgeError if that cannot work here."""

    def take(self, name: str) -> bool:
        """Begin to send as ``name``; False while somebody else still does."""

    def keep(self, tensor: Any) -> Any:
        """In the engine's thread, at once: what ``show`` is to get, safe from the engine's next frame."""

    def show(self, kept: Any) -> None:
        """Send what ``keep`` gave. Raises SdbridgeError if it did not go out."""

    def release(self) -> None:
        """Give the name up."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""


class GpuOutputs:
    """All senders of one engine. ``order`` is called in the inbox's thread, ``offer`` in the engine's."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._outputs: dict[str, _Output] = {}
        self._unable = "the engine has not begun to stream"

    def enable(self, able: bool, why: str) -> None:
        """Whether this engine offers its tensors at all; said once, before it streams."""
        self._unable = "" if able else why

    def order(self, order: str, name: str, backend: str, options: Options) -> None:
        """``prepare``, ``take``, ``release`` or ``drop`` the sender called ``name``. Never waits."""
        if order == "prepare" and name not in self._outputs:
            if self._unable:
                self._tell(name, GpuState.UNAVAILABLE, self._unable)
                return
            self._outputs[name] = _Output(name, backend, options, self._tell)
        output = self._outputs.get(name)
        if output is None or order == "prepare":
            return
        if order == "drop":  # the output is gone, or has another name: nobody will ask for this one
            del self._outputs[name]
            output.ask_to_close(quietly=True)
            self._tell(name, GpuState.NONE, "")
        else:
            output.want(order == "take")

    def offer(self, tensor: Any) -> None:
        """Show this picture, uint8 RGBA ``[H, W, 4]`` on the GPU, wherever the engine holds a name."""
        for output in tuple(self._outputs.values()):
            output.offer(tensor)

    def close(self) -> None:
        """Give all names up, before the engine's own tensors go."""
        outputs, self._outputs = self._outputs, {}
        for output in outputs.values():
            output.ask_to_close()
        for output in outputs.values():
            output.join()


class _Output:
    """One sender and its thread, to which its OpenGL context belongs."""

    def __init__(self, name: str, backend: str, options: Options, tell: Tell) -> None:
        self._name = name
        self._backend = backend
        self._options = options
        self._tell = tell
        self._wanted = False  # whether the bridge has left the name to us
        self._answer_due = False  # it wants to hear that the name is free
        self._newest: Any = None
        self._closing = False
        self._quiet = False  # whether the end of this sender is nobody's business any more
        self._change = threading.Condition()
        self._open: Show | None = None
        self._holds = False
        self._told = False  # whether the bridge knows that pictures go out
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"gpu output {name}", daemon=True)
        self._thread.start()

    # --- from other threads ---

    def want(self, wanted: bool) -> None:
        with self._change:
            self._wanted = wanted
            self._answer_due = not wanted
            self._change.notify()

    def offer(self, tensor: Any) -> None:
        show = self._open
        if not self._wanted or show is None:
            return
        kept = show.keep(tensor)
        with self._change:
            self._newest = kept
            self._change.notify()

    def ask_to_close(self, quietly: bool = False) -> None:
        with self._change:
            self._closing, self._quiet = True, quietly
            self._change.notify()

    def join(self) -> None:
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("the sender %s does not let go; its process ends with it", self._name)

    # --- in its own thread ---

    def _run(self) -> None:
        show: Show | None = None
        why = "the engine ends"
        try:
            show = _make_show(self._backend, self._options)
            show.open()
            self._open = show
            self._tell(self._name, GpuState.READY, "")
            while not self._closing:
                self._turn(show)
        except SdbridgeError as error:
            why = error.what
            log.info("%s stays with the bridge's sender: %s", self._name, why)
        except Exception as error:  # edge: a driver's fault here must not end the engine
            log.exception("the engine's sender %s failed", self._name)
            why = f"{type(error).__name__}: {error}"
        self._open, self._wanted = None, False
        if show is not None:
            _close_surely(show, self._name)
        if not self._quiet:
            self._tell(self._name, GpuState.UNAVAILABLE, why)

    def _turn(self, show: Show) -> None:
        with self._change:
            self._change.wait_for(lambda: self._closing or self._answer_due or self._newest is not None, 0.25)
            wanted, answer_due, kept = self._wanted, self._answer_due, self._newest
            self._answer_due, self._newest = False, None
        if not wanted:
            if self._holds:
                show.release()
                self._holds = False
            if answer_due:
                self._tell(self._name, GpuState.READY, "")
        elif kept is not None and (self._holds or show.take(self._name)):
            self._send(show, kept)

    def _send(self, show: Show, kept: Any) -> None:
        if not self._holds:
            self._holds, self._told, self._failures = True, False, 0
        try:
            show.show(kept)
        except GpuUnusableError:
            raise
        except SdbridgeError:
            self._failures += 1
            if self._failures >= FAILURES_ALLOWED:
                raise
            return
        self._failures = 0
        if not self._told:
            self._told = True
            self._tell(self._name, GpuState.SHOWING, "")


def _close_surely(show: Show, name: str) -> None:
    try:
        show.close()
    except Exception:  # edge: a driver's fault here must not end the engine
        log.exception("the engine's sender %s could not be closed", name)


def _make_show(backend: str, options: Options) -> Show:
    module, _, name = SHOWS[backend].partition(":")
    made: Show = getattr(importlib.import_module(module), name)(options)
    return made
