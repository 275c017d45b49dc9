"""The threads that carry pixels: one per receiver and one per sender, all backend calls inside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from sdbridge.clock import Clock
from sdbridge.config import OutputConfig, TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, Role, check_pixels
from sdbridge.meters import RateMeter
from sdbridge.slot import LatestSlot
from sdbridge.status import SourceStatus
from sdbridge.textures.stub import Receiver, Sender

log = logging.getLogger(__name__)

#: Seconds between attempts to open a texture that would not open or broke.
RETRY_S = 1.0
#: A texture that ran for so long had recovered: its next fault is told, even if it is the same again.
SOUND_S = 5.0
#: Seconds without a frame after which a source that had been there is said to be gone.
GONE_S = 2.0
#: Seconds after which a source that never came is told of: a name mistyped, a program not started.
MISSED_S = 10.0
_NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_MOUNTS: Mapping[str, object] = MappingProxyType({})

OnFrame = Callable[[Role, Frame], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Outgoing:
    """What a sender's thread gets: the picture, facts for its metadata, and whether it is a new one."""

    frame: Frame
    about: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    new: bool = True
    input: Frame | None = None  # whose alpha is taken for ``alpha: input``
    timed: bool = False  # whether its age says how long a picture takes through the bridge


class _TextureThread:
    """Opens, runs and closes one texture, again and again until stopped. Faults are told, not raised."""

    def __init__(self, name: str, clock: Clock, note: Note) -> None:
        self._clock = clock
        self._note = note
        self._stopping = threading.Event()
        self._told = ""
        self.opened = threading.Event()
        self.open_error: SdbridgeError | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Let the thread end by itself, soon."""
        self._stopping.set()
        self._wake()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Let the thread close its texture and wait for it; a backend that hangs is left behind."""
        self.ask_to_stop()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("%s did not end within %g s; it is left behind", self._thread.name, timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._run_once()
            self._stopping.wait(RETRY_S)

    def _run_once(self) -> None:
        """From opening to the first fault, or to the end."""
        opened_ns: int | None = None
        try:
            self._open()
            opened_ns = self._clock.now_ns()
            self.open_error = None
            self.opened.set()
            while not self._stopping.is_set():
                self._step()
        except SdbridgeError as error:
            self._forget_if_it_ran(opened_ns)
            self._fault(error)
        except Exception as error:  # edge: a texture backend, written by others, must not end the show
            log.exception("%s failed", self._thread.name)
            self._forget_if_it_ran(opened_ns)
            self._fault(SdbridgeError("SDB-TEXTURE-FAULT", f"{self._thread.name}: {_say(error)}"))
        self._close_surely()

    def _forget_if_it_ran(self, opened_ns: int | None) -> None:
        """A camera unplugged for the second time is news again; one that never opens is not."""
        if opened_ns is not None and self._clock.now_ns() - opened_ns > SOUND_S * 1e9:
            self._told = ""

    def _close_surely(self) -> None:
        try:
            self._close()
        except Exception:  # edge: a texture backend, written by others, must not end the show
            log.exception("%s could not be closed", self._thread.name)

    def _fault(self, error: SdbridgeError) -> None:
        if not self.opened.is_set():
            self.open_error = error
            self.opened.set()
        if error.what != self._told:  # once, not at every attempt
            self._told = error.what
            self._note(str(error))

    def _wake(self) -> None:
        """End the wait inside ``_step``."""

    def _open(self) -> None: ...
    def _step(self) -> None: ...
    def _close(self) -> None: ...


class ReceiveThread(_TextureThread):
    """Runs one receiver: numbers and stamps its frames and hands them on in this thread."""

    def __init__(
        self,
        role: Role,
        config: TextureConfig,
        make: Callable[[], tuple[str, Receiver]],
        on_frame: OnFrame,
        clock: Clock,
        note: Note,
    ) -> None:
        super().__init__(f"receive {role} over {config.backend}", clock, note)
        self.role = role
        self.backend = config.backend
        self.config = config
        self.frames = 0
        self.meter = RateMeter()
        self._make = make
        self._receiver: Receiver | None = None
        self._on_frame = on_frame
        self._size = (0, 0)
        self._seen_ns = clock.now_ns()  # the last frame, or when the waiting for the first began
        self._missed = False

    def _open(self) -> None:
        self.backend, self._receiver = self._make()
        self._receiver.open()

    def _step(self) -> None:
        assert self._receiver is not None
        given = self._receiver.lend(0.1)
        now = self._clock.now_ns()
        if given is None:
            self._look_for_it(now)
            return
        if self._missed:
            self._missed = False
            log.info("input %s: %s is there", self.role, self._receiver.describe())
        self._seen_ns = now
        try:
            pixels = check_pixels(np.asarray(given.pixels))
            loan = given.loan if pixels is given.pixels else None
            self.frames += 1
            self.meter.count(now)
            self._size = (pixels.shape[1], pixels.shape[0])
            self._on_frame(self.role, Frame(pixels, self.frames, now, loan=loan))
        except SdbridgeError as error:
            self._fault(error)  # a bad frame is left out; the receiver stays open

    def _look_for_it(self, now: int) -> None:
        """Say once that a source is gone, or never came; the receiver looks for it all the time."""
        receiver = self._receiver
        if self._missed or receiver is None or receiver.connected:
            return
        silent_s = (now - self._seen_ns) / 1e9
        if silent_s < (GONE_S if self.frames else MISSED_S):
            return
        self._missed = True
        since = f"no frame for {silent_s:.0f} s" if self.frames else f"no frame in the first {silent_s:.0f} s"
        what = f"input {self.role} has had {since}: {receiver.describe()}"
        meanwhile = None if self.role == "main" else "The output goes on without it."
        log.warning("%s", SdbridgeError("SDB-TEXTURE-SILENT", what, output=meanwhile))

    def _close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()

    def status(self) -> SourceStatus:
        return SourceStatus(
            role=self.role,
            backend=self.backend,
            name=self._receiver.name if self._receiver is not None else self.config.name,
            line=self._receiver.describe() if self._receiver is not None else f"{self.backend}, being opened",
            connected=self._receiver is not None and self._receiver.connected,
            width=self._size[0],
            height=self._size[1],
            fps=self.meter.rate(self._clock.now_ns()),
        )


def with_pixels(frame: Frame, pixels: np.ndarray) -> Frame | None:
    """``frame`` with ``pixels`` that were made of its own; None if those were lent and changed meanwhile."""
    if pixels is frame.pixels:
        return frame
    if frame.loan is None:
        return replace(frame, pixels=pixels)
    if np.may_share_memory(pixels, frame.pixels):  # a cut-out
        pixels = pixels.copy()
    return replace(frame, pixels=pixels, loan=None) if frame.loan.whole() else None


Fit = Callable[..., np.ndarray]
OnSent = Callable[["SendThread", Outgoing], None]


class SendThread(_TextureThread):
    """Runs one sender: takes the newest output frame, fits it to this output, sends it."""

    def __init__(
        self,
        config: OutputConfig,
        make: Callable[[], tuple[str, Sender]],
        fit: Fit,
        clock: Clock,
        note: Note,
        on_sent: OnSent = lambda thread, outgoing: None,
    ) -> None:
        super().__init__(f"send {config.role} over {config.backend}", clock, note)
        self.backend = config.backend
        self.config = config
        self.slot: LatestSlot[Outgoing] = LatestSlot()
        self.frames = 0
        self.meter = RateMeter()
        self._make = make
        self._sender: Sender | None = None
        self._fit = fit
        self._on_sent = on_sent
        self._size = (0, 0)

    @property
    def ended(self) -> bool:
        """Whether it sends nothing any more, such as a recording whose disk is full."""
        return self._sender is not None and self._sender.fault is not None

    @property
    def mounts(self) -> Mapping[str, object]:
        return self._sender.mounts if self._sender is not None else _NO_MOUNTS

    def _wake(self) -> None:
        self.slot.close()

    def _open(self) -> None:
        self.backend, self._sender = self._make()
        self._sender.open()

    def _step(self) -> None:
        assert self._sender is not None
        outgoing = self.slot.take(0.5)
        if outgoing is None:
            return
        frame: Frame | None = outgoing.frame
        if not self._sender.takes_loans:
            frame = outgoing.frame.own()
        if frame is not None:
            frame = self._fitted(frame, outgoing.input)
        if frame is None:
            return  # lent and gone before we came to it: a newer one is there
        self._size = (frame.width, frame.height)
        self._sender.send(frame, outgoing.about)
        if self._sender.fault is not None:
            self._fault(self._sender.fault)  # told once; the sender stays as it is, and so do the others
            return
        self.frames += 1
        self.meter.count(self._clock.now_ns())
        self._on_sent(self, outgoing)

    def _fitted(self, frame: Frame, source: Frame | None) -> Frame | None:
        """The frame in this output's shape; None if it was lent and changed under our hands."""
        alpha: Frame | None = None
        if self.config.alpha == "input" and source is not None:
            alpha = source.own()
        alpha_from = alpha.pixels if alpha is not None else None
        pixels = self._fit(frame.pixels, self.config.width, self.config.height, self.config, alpha_from)
        return with_pixels(frame, pixels)

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()

    def status(self) -> SourceStatus:
        return SourceStatus(
            role=self.config.role,
            backend=self.backend,
            name=self._sender.name if self._sender is not None else self.config.name,
            line=self._sender.describe() if self._sender is not None else f"{self.backend}, being opened",
            connected=self._sender is not None and self._sender.receivers != 0,
            width=self._size[0],
            height=self._size[1],
            fps=self.meter.rate(self._clock.now_ns()),
        )


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
