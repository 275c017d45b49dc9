"""Which textures the bridge has open now: made from the config, swapped live, asked for their status."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from sdbridge.clock import Clock
from sdbridge.config import Config, OutputConfig, TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import INPUT_ROLES, Frame, OutputRole, Role
from sdbridge.preview import PreviewRelay
from sdbridge.slot import LatestSlot
from sdbridge.status import SourceStatus
from sdbridge.textures.geometry import fit_frame
from sdbridge.textures.gpu_handover import GpuSide, HandoverSender, may_be_handed_over
from sdbridge.textures.served_paths import USUAL, ServedPaths
from sdbridge.textures.still import FallbackImage
from sdbridge.textures.stub import Sender
from sdbridge.textures.supply import Textures
from sdbridge.textures.test_card import TestCard
from sdbridge.textures.threads import Note, OnSent, Outgoing, ReceiveThread, SendThread, with_pixels

log = logging.getLogger(__name__)

SetSenders = Callable[[tuple[tuple[Role, LatestSlot[Outgoing]], ...]], None]
#: How long a texture chosen live may take to open before the old one is kept.
OPEN_S = 5.0
_AS_IS = TextureConfig(fit="stretch")


class FrameTaker(Protocol):
    """The engine, as far as inputs are concerned."""

    @property
    def size(self) -> tuple[int, int]: ...
    def offer(self, role: Role, frame: Frame) -> None: ...
    def withdraw(self, role: Role) -> None: ...


class TextureDesk:
    """All receivers and senders of one bridge. Methods may be called from any thread."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        taker: FrameTaker,
        set_senders: SetSenders,
        on_sent: OnSent,
        note: Note,
        textures: Textures | None = None,
        gpu_side: GpuSide | None = None,
    ) -> None:
        self._name = config.name
        self._clock = clock
        self._taker = taker
        self._set_senders = set_senders
        self._on_sent = on_sent
        self._note = note
        self._textures = textures or Textures()
        self._gpu_side = gpu_side
        self.hold_image = FallbackImage(note)
        self._lock = threading.Lock()  # held while the sets of threads change, never on the frame path
        self._newest: dict[Role, Frame] = {}
        self._card: TestCard | None = None
        self._fallback_input: Frame | None = None  # a lent input may be gone when it is wanted
        self._previews: dict[Role, PreviewRelay] = {role: PreviewRelay(clock) for role in INPUT_ROLES}
        self._frames_before = 0  # of receivers that were replaced
        self._paths = ServedPaths()
        self._receivers: dict[Role, ReceiveThread] = {}
        for role in INPUT_ROLES:
            chosen = getattr(config.input, role)
            if chosen is not None:
                self._receivers[role] = self._receive_thread(role, chosen)
        self._senders = [self._send_thread(chosen) for chosen in config.output]

    def start(self) -> None:
        self._publish()
        for thread in (*self._senders, *self._receivers.values()):
            thread.start()

    def stop(self) -> None:
        with self._lock:
            threads = (*self._receivers.values(), *self._senders)
        for thread in threads:
            thread.ask_to_stop()
        for thread in threads:
            thread.stop()

    # --- frames ---

    def _on_frame(self, role: Role, frame: Frame) -> None:
        """In the receiver's thread: bring the frame to the engine's size and put it before the engine."""
        thread = self._receivers.get(role)
        config = thread.config if thread is not None else _AS_IS
        fitted = with_pixels(frame, fit_frame(frame.pixels, *self._taker.size, config))
        if fitted is None:
            return  # its source has written over it already: the next one is here
        self._taker.offer(role, fitted)
        self._newest[role] = fitted
        self._previews[role].show(fitted)

    def newest_input(self) -> Frame | None:
        """The main input's newest frame, as the engine gets it; perhaps lent."""
        return self._newest.get("main")

    def waiting_card(self, width: int, height: int, number: int) -> np.ndarray:
        """The test card, for outputs while the first picture is still being made."""
        if self._card is None or (self._card.width, self._card.height) != (width, height):
            self._card = TestCard(width, height)
        return self._card.draw(number)

    def fallback(self, action: str, width: int, height: int) -> np.ndarray | None:
        """The picture for ``hold.action``, or None for black."""
        if action == "image":
            return self.hold_image.at(width, height)
        if action != "input":
            return None
        newest = self.newest_input()
        owned = newest.own() if newest is not None else None
        if owned is not None:
            self._fallback_input = owned
        if self._fallback_input is None:
            return None
        return fit_frame(self._fallback_input.pixels, width, height, _AS_IS)

    def preview(self, role: Role) -> Frame | None:
        return self._previews[role].look() if role in self._previews else None

    # --- choosing live ---

    def choose_input(self, role: Role, backend: str, name: str) -> None:
        """Replace the receiver of ``role``, keeping its geometry. Raises what opening it raises."""
        if role not in INPUT_ROLES:
            raise SdbridgeError(
                "SDB-TEXTURE-UNKNOWN", f"there is no input {role!r}; {', '.join(INPUT_ROLES)}"
            )
        old = self._receivers.get(role)
        base = old.config if old is not None else TextureConfig()
        options = base.options if backend == base.backend else {}
        config = base.model_copy(update={"backend": backend, "name": name, "options": options})
        thread = self._receive_thread(role, config)
        self._try(thread)
        with self._lock:
            self._receivers[role] = thread
            if old is not None:
                self._frames_before += old.frames if role == "main" else 0
        if old is not None:
            old.stop()

    def drop_input(self, role: Role) -> None:
        """Receive nothing as ``role`` any more: what steers by it has no effect, as if it never was there."""
        if role == "main":
            raise SdbridgeError(
                "SDB-TEXTURE-UNKNOWN",
                "the main input cannot be switched off",
                "Choose another source, or mode txt2img.",
                output="It goes on as it was.",
            )
        with self._lock:
            thread = self._receivers.pop(role, None)
        if thread is not None:
            thread.stop()
        self._newest.pop(role, None)
        self._previews[role].forget()
        self._taker.withdraw(role)

    def drop_output(self, index: int) -> None:
        """Send as output ``index`` no more; those after it move up."""
        with self._lock:
            if not 0 <= index < len(self._senders):
                raise self._no_output(index)
            thread = self._senders.pop(index)
        self._publish()
        thread.stop()
        self._paths.release(thread.config)

    def _no_output(self, index: int) -> SdbridgeError:
        return SdbridgeError(
            "SDB-TEXTURE-UNKNOWN", f"there is no output {index}; there are {len(self._senders)}, from 0"
        )

    def choose_output(self, index: int, backend: str, name: str, role: OutputRole | None = None) -> None:
        """Replace output ``index`` (0 is the first; one past the last adds one).

        ``role`` is what it sends; None: as before, and the generated picture for a new one.
        """
        if not 0 <= index <= len(self._senders):
            raise self._no_output(index)
        old = self._senders[index] if index < len(self._senders) else None
        base = old.config if old is not None else OutputConfig()
        options = base.options if backend == base.backend else {}
        sent = role or base.role
        config = base.model_copy(update={"backend": backend, "name": name, "options": options, "role": sent})
        if old is not None:
            named = name in (old.config.name, old.status().name)
            if named and old.backend == backend and sent == base.role and not old.ended:
                return  # two senders of one name would stand in each other's way
            self._paths.hand_over(old.config, config)
        thread = self._send_thread(config)
        try:
            self._try(thread)
        except SdbridgeError:
            self._paths.release(config)
            if old is not None:
                self._paths.take(old.config, old.backend)
            raise
        with self._lock:
            self._senders[index : index + 1] = [thread]
        self._publish()
        if old is not None:
            old.stop()

    def _try(self, thread: ReceiveThread | SendThread) -> None:
        thread.start()
        thread.opened.wait(OPEN_S)
        if thread.open_error is not None or not thread.opened.is_set():
            thread.ask_to_stop()
            raise thread.open_error or SdbridgeError(
                "SDB-TEXTURE-FAULT",
                f"{thread.config.backend} {thread.config.name!r} did not open within {OPEN_S:g} s",
                output="The old one goes on.",
            )

    # --- what there is ---

    @property
    def frames_in(self) -> int:
        main = self._receivers.get("main")
        return self._frames_before + (main.frames if main is not None else 0)

    @property
    def fps_in(self) -> float:
        main = self._receivers.get("main")
        return main.meter.rate(self._clock.now_ns()) if main is not None else 0.0

    def inputs(self) -> tuple[SourceStatus, ...]:
        return tuple(thread.status() for thread in list(self._receivers.values()))

    def outputs(self) -> tuple[SourceStatus, ...]:
        return tuple(thread.status() for thread in list(self._senders))

    def mounts(self) -> dict[str, object]:
        """ASGI apps of all senders, by path; the first sender of a path keeps it."""
        apps: dict[str, object] = {}
        for thread in list(self._senders):
            for path, app in thread.mounts.items():
                apps.setdefault(path, app)
        return apps

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        return self._textures.backends(direction)

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        return self._textures.sources(backend)

    # --- making ---

    def _publish(self) -> None:
        self._set_senders(tuple((thread.config.role, thread.slot) for thread in self._senders))

    def _receive_thread(self, role: Role, config: TextureConfig) -> ReceiveThread:
        return ReceiveThread(
            role, config, lambda: self._textures.receiver(config), self._on_frame, self._clock, self._note
        )

    def _sender(self, config: OutputConfig) -> tuple[str, Sender]:
        backend, sender = self._textures.sender(config, self._name)
        path = self._paths.take(config, backend)
        if path and path != USUAL[backend] and "path" not in config.options:
            options = {**config.options, "path": path}
            backend, sender = self._textures.sender(
                config.model_copy(update={"options": options}), self._name
            )
        if self._gpu_side is not None and may_be_handed_over(backend, config):
            sender = HandoverSender(backend, sender, self._gpu_side, self._clock)
        return backend, sender

    def _send_thread(self, config: OutputConfig) -> SendThread:
        with suppress(SdbridgeError):  # in the order of the outputs; what is wrong is told when it opens
            self._paths.take(config, config.backend)
        return SendThread(
            config,
            lambda: self._sender(config),
            fit_frame,
            self._clock,
            self._note,
            self._on_sent,
        )
