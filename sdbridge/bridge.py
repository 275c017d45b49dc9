"""The composition root: builds the parts, connects them, starts and stops them."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from sdbridge import __version__, paths
from sdbridge.clock import Clock, SystemClock
from sdbridge.config import Config
from sdbridge.crash import CrashReports
from sdbridge.engine.interface import EngineStats
from sdbridge.engine.patience import Patience
from sdbridge.engine.pipe import Wake
from sdbridge.engine.running import RunningEngine
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, OutputRole, Role
from sdbridge.instance import Instance
from sdbridge.model_supply import ModelSupply
from sdbridge.output import OutputLoop
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import Change, ParameterStore
from sdbridge.status import Status, ToldError
from sdbridge.surfaces import free_port, open_surfaces
from sdbridge.textures import main_thread
from sdbridge.textures.desk import TextureDesk
from sdbridge.textures.supply import Textures
from sdbridge.textures.threads import Outgoing, SendThread

log = logging.getLogger(__name__)

#: How often fades move and the engine is looked after.
TICK_S = 0.01
ERRORS_KEPT = 8
SWITCH_S = 0.001
#: Faults after which the developers want to know how the bridge stood.
WORTH_A_REPORT = ("SDB-ENGINE-DIED", "SDB-ENGINE-STALLED", "SDB-ENGINE-SILENT", "SDB-ENGINE-GIVENUP")


class Bridge:
    """A whole sdbridge in one object: ``with Bridge(config) as bridge: bridge.start(); bridge.run()``.

    Keeps ``control/view.py: BridgeView``. After ``start`` nothing that a user, a source, a receiver
    or the engine does stops the output.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock | None = None,
        *,
        textures: Textures | None = None,
        log_lines: Callable[[int], Sequence[str]] = lambda count: (),
        control: bool = True,
    ) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.store = ParameterStore()
        self.port = config.port
        self._log_lines = log_lines
        self._with_control = control
        self._errors: tuple[tuple[str, int, int], ...] = ()  # line, number, when in ns
        self._errors_told = 0
        self._errors_lock = threading.Lock()  # any thread may have something to tell
        self._safe_mode = False
        self._stopping = threading.Event()
        self._stop_asked = False
        self._crashes: CrashReports | None = None
        self._closed = False
        self._panicked = threading.Event()
        self._stack = ExitStack()
        self._began_ns = self.clock.now_ns()
        self._schema = self.store.table.schema_hash()
        self._set_initial_values()
        folder = Path(config.presets_dir).expanduser() if config.presets_dir else paths.presets_dir()
        self.show = Show(self.store, folder, self.clock, config.cues)
        self._ready = Wake()
        self._models = ModelSupply()
        self.engine = RunningEngine(
            config.engine,
            self.store,
            self.clock,
            self._ready,
            self.note_error,
            stall_s=config.hold.stall_s,
            restarts_a_minute=config.hold.restarts_a_minute,
            prepare=self._models.prepare,
        )
        self.output = OutputLoop(self.engine, self.store, self.clock, self._ready)
        self.textures = TextureDesk(
            config,
            self.clock,
            self.engine,
            self.output.set_senders,
            self._on_sent,
            self.note_error,
            textures,
            gpu_side=self.engine,
        )
        self.output.fallback = self.textures.fallback
        self.output.waiting = self.textures.waiting_card
        self.output.newest_input = self.textures.newest_input
        self._unsubscribe = self.store.subscribe(self._on_change)
        self._ticker = threading.Thread(target=self._tick_forever, name="ticker", daemon=True)

    def _set_initial_values(self) -> None:
        engine = self.config.engine
        values: dict[str, object] = {"width": engine.width, "height": engine.height}
        if engine.acceleration in self.store.table.find("acceleration").choices:
            values["acceleration"] = engine.acceleration
        if engine.vae in self.store.table.find("vae").choices:
            values["vae"] = engine.vae
        values.update(self.config.parameters)
        for remark in self.config.remarks:
            log.warning("%s", remark)
        for rejection in self.store.set_many(values, "config").rejected:
            self.note_error(rejection.message)

    # --- life ---

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start everything. Returns at once; the engine loads while the output already runs.

        Raises SdbridgeError if another bridge runs on this port (SDB-INSTANCE-RUNNING) or another
        program holds it; then nothing was started.
        """
        if self.config.port == 0:
            self.config = self.config.model_copy(update={"port": free_port(self.config.lan)})
        self.port = self.config.port
        if self._with_control:
            self._stack.enter_context(Instance(self.port, self.config.name))
            self._stack.enter_context(open_surfaces(self))
            self._crashes = self._stack.enter_context(CrashReports(self, self._report_folder(), self.clock))
        self.textures.hold_image.choose(str(self.store.get("hold.image")))
        self._be_prompt()
        self.engine.start()
        self.textures.start()
        self.output.start()
        self._go_to_first_cue()
        self._ticker.start()
        # What is here now stays to the end: searched for garbage, it would stop the frames for 20 ms.
        gc.freeze()
        self._stack.callback(gc.unfreeze)

    def _be_prompt(self) -> None:
        """Let waiting threads have their turn sooner: nothing else may hold a frame up for 5 ms."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self._stack.callback(sys.setswitchinterval, before)

    def _go_to_first_cue(self) -> None:
        if not self.config.first_cue:
            return
        try:
            self.show.go(self.config.first_cue, "start")
        except SdbridgeError as error:
            self.note_error(str(error))

    def run(self, frames: int | None = None) -> Status:
        """Block until ``stop`` is called or ``frames`` output frames went out; the status at that moment.

        Frames count from the first generated one on, so that a run over a few frames has seen the
        engine at work; if none can come (the engine was given up, or no input arrives for
        10 seconds), from then on.
        """
        counted_from: int | None = None
        waiting = Patience(self.clock)
        while not self.stopping:
            if counted_from is None and (self.output.frames_made or waiting.is_over(self.engine)):
                counted_from = self.output.frames_out
            if frames is not None and counted_from is not None:
                if self.output.frames_out - counted_from >= frames:
                    break
            main_thread.rest(self.clock, 0.01)
        status = self.status()
        self.stop()
        return status

    @property
    def stopping(self) -> bool:
        return self._stop_asked or self._stopping.is_set()

    def stop(self) -> None:
        """Ask ``run`` to end. May be called from a signal handler, so it touches no lock."""
        self._stop_asked = True

    def kill(self) -> None:
        """End the engine at once and remove its shared memory; for the second Ctrl+C.

        The thread that the signal interrupted may hold any of our locks, so the work is done in
        another one and not waited for for ever: an engine without a bridge ends by itself.
        """
        self._stop_asked = True
        killing = threading.Thread(target=self.engine.kill, name="kill", daemon=True)
        killing.start()
        killing.join(3.0)

    def close(self) -> None:
        """Stop and release everything, in the reverse order of ``start``. May be called twice."""
        self._stopping.set()
        if self._closed:
            return
        self._closed = True
        self.engine.rest()
        self._unsubscribe()
        self.show.close()
        if self._ticker.is_alive():
            self._ticker.join(2.0)
        self._stack.close()
        self.output.stop()
        self.textures.stop()
        self.engine.stop()
        self._ready.close()

    def _tick_forever(self) -> None:
        while not self._stopping.is_set():
            self.clock.sleep(TICK_S)
            try:
                self._tick()
            except Exception:  # edge: the ticker serves every surface; one bad tick must not end it
                log.exception("a tick failed")

    def _tick(self) -> None:
        if self._panicked.is_set():
            self._panicked.clear()
            self.store.set("output.black", True, "panic")
        self.show.tick()

    # --- what control surfaces ask (control/view.py) ---

    def status(self) -> Status:
        now = self.clock.now_ns()
        client = self.engine.client
        stats = client.stats if client is not None else EngineStats()
        errors = self._errors
        return Status(
            state=str(self.engine.state),
            output=str(self.output.state),
            frames_in=self.textures.frames_in,
            frames_out=self.output.frames_out,
            dropped=self.engine.dropped,
            held=self.output.held,
            fps=self.output.rate.rate(now),
            fps_new=self.output.rate_new.rate(now),
            fps_in=self.textures.fps_in,
            latency_ms=self.output.latency.read(),
            applied_revision=self.engine.applied_revision,
            revision=self.store.revision,
            errors=tuple(line for line, _, _ in errors),
            errors_told=tuple(ToldError(line, number, (now - at) / 1e9) for line, number, at in errors),
            uptime_s=(now - self._began_ns) / 1e9,
            engine_kind=client.spec.kind if client is not None else self.config.engine.kind,
            engine_line=self.engine.line,
            model=client.config.model if client is not None else self.config.engine.model,
            device=client.report.device if client is not None and client.report is not None else "",
            engine_start_s=client.start_parts_s if client is not None else {},
            tick_ms=stats.tick_ms,
            parts_ms=dict(stats.parts_ms),
            vram_mb=stats.vram_mb,
            vram_total_mb=stats.vram_total_mb,
            gpu_load=stats.gpu_load,
            queue=client.waiting if client is not None else 0,
            pipeline_ticks=client.spec.pipeline_ticks if client is not None else 0,
            restarts=self.engine.restarts,
            safe_mode=self._safe_mode or self.engine.safe_mode,
            unused=stats.unused,
            inputs=self.textures.inputs(),
            outputs=self.textures.outputs(),
            progress=self._models.progress() + self.engine.progress(),
            fading=self.show.fading,
            preset=self.show.preset,
            cue=self.show.cue,
            cue_follows=self.show.cue_follows,
            version=__version__,
            schema=self._schema,
        )

    def input_frame(self, role: Role = "main") -> Frame | None:
        return self.textures.preview(role)

    def output_frame(self, role: Role = "generated") -> Frame | None:
        return self.output.preview(role)

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        return self.textures.backends(direction)

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        return self.textures.sources(backend)

    def choose_input(self, role: Role, backend: str, name: str) -> None:
        self.textures.choose_input(role, backend, name)

    def drop_input(self, role: Role) -> None:
        self.textures.drop_input(role)

    def choose_output(self, index: int, backend: str, name: str, role: OutputRole | None = None) -> None:
        self.textures.choose_output(index, backend, name, role)

    def drop_output(self, index: int) -> None:
        self.textures.drop_output(index)

    def mounts(self) -> Mapping[str, object]:
        return MappingProxyType(self.textures.mounts())

    def log_lines(self, count: int) -> Sequence[str]:
        return self._log_lines(count)

    # --- faults and changes ---

    def note_error(self, text: str, safe_mode: bool = False) -> None:
        """Keep one line for ``Status.errors`` and the log; the same line again only moves up.

        With ``safe_mode`` it is why that is on, and is logged as it is written: a mistake a line.
        """
        line = " ".join(text.split())
        with self._errors_lock:
            kept = [error for error in self._errors if error[0] != line]
            self._errors_told += 1
            kept.append((line, self._errors_told, self.clock.now_ns()))
            self._errors = tuple(kept[-ERRORS_KEPT:])
        self._safe_mode = self._safe_mode or safe_mode
        if safe_mode:
            log.error("%s", text)
        else:
            log.warning("%s", line)
        if self._crashes is not None and line.startswith(WORTH_A_REPORT):
            self._crashes.write(line)

    def _report_folder(self) -> Path:
        folder = self.config.log.folder
        return Path(folder).expanduser() if folder else paths.log_dir()

    def _on_sent(self, thread: SendThread, outgoing: Outgoing) -> None:
        """A picture left; its way from the input is the latency that people feel."""
        if outgoing.timed and thread.config.role == "generated":
            age_ns = self.clock.now_ns() - outgoing.frame.received_at_ns
            self.output.latency.add(age_ns / 1e6)

    def _on_change(self, change: Change) -> None:
        """In the setter's thread, so nothing here may wait."""
        if "panic" in change.triggers:
            self.output.cut()
            self.engine.reset("soft")  # what is in its queues is not to be seen any more
            self._panicked.set()  # black is set at the next tick: no writes while being told
        if "hold.image" in change.values:
            self.textures.hold_image.choose(str(change.values["hold.image"]))
        self.engine.change(change)
