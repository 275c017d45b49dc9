"""The engine as the bridge knows it: one that runs, whichever process that is at the moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sdbridge.clock import Clock
from sdbridge.config import EngineSection
from sdbridge.engine.client import EngineClient
from sdbridge.engine.gpu_output import GpuState
from sdbridge.engine.interface import EngineState, ResetKind
from sdbridge.engine.making import PASSED_ON
from sdbridge.engine.pipe import Wake
from sdbridge.engine.preparation import Prepare
from sdbridge.engine.succession import Succession
from sdbridge.engine.supervisor import Supervisor
from sdbridge.engine.watcher import OWN_SOURCES, EngineWatcher, Note
from sdbridge.frame import Frame, Role
from sdbridge.parameters.store import Change, ParameterStore
from sdbridge.status import ProgressStatus


@dataclass(frozen=True)
class GpuOutput:
    """A sender in the engine's process at one moment. ``engine`` takes orders; None while none streams."""

    engine: EngineClient | None
    state: GpuState
    why: str = ""


class RunningEngine:
    """Feeds, tells and asks the engine that runs. Methods may be called from any thread.

    ``offer``, ``take`` and ``change`` never wait; the watcher starts, replaces and ends engines in a
    thread of its own. A ``reload`` or a restart by hand starts a second engine beside the first,
    which takes over at a frame edge, with its first picture.
    """

    def __init__(
        self,
        section: EngineSection,
        store: ParameterStore,
        clock: Clock,
        ready: Wake,
        note: Note,
        stall_s: float = 10.0,
        restarts_a_minute: int = 5,
        prepare: Prepare = lambda config: config,
    ) -> None:
        self._store = store
        self._succession = Succession()
        self._supervisor = Supervisor(stall_s, restarts_a_minute)
        self._watcher = EngineWatcher(
            section, store, clock, ready, note, self._succession, self._supervisor, prepare
        )
        self._heard = 0  # newest revision that we were told of

    # --- life ---

    def start(self) -> None:
        """Begin to watch and to load the first engine; returns at once."""
        self._heard = self._store.revision
        self._watcher.start()

    def rest(self) -> None:
        """Start no more engines: the end is near."""
        self._watcher.rest()

    def stop(self) -> None:
        """End every engine and remove what they shared; waits for that."""
        self._watcher.stop()
        self._succession.stop()

    def kill(self) -> None:
        """End every engine at once; for the second Ctrl+C."""
        self._watcher.rest()
        self._succession.kill()

    # --- how it stands ---

    @property
    def client(self) -> EngineClient | None:
        """The engine that runs."""
        return self._succession.client

    @property
    def incoming(self) -> EngineClient | None:
        """The engine that gets ready to take over, if there is one."""
        return self._succession.incoming

    @property
    def state(self) -> EngineState:
        return self._watcher.state

    @property
    def given_up(self) -> bool:
        return self._watcher.given_up

    @property
    def safe_mode(self) -> bool:
        return self._watcher.maker.safe_mode

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def applied_revision(self) -> int:
        """The newest revision that is in force: all that concerns the engine has reached its frames."""
        client = self.client
        if client is None:
            return 0
        caught_up = client.applied_revision >= client.sent_revision and client.state is EngineState.STREAMING
        if caught_up and self.incoming is None and not self._watcher.reloading:
            return max(self._heard, client.applied_revision)
        return client.applied_revision

    @property
    def line(self) -> str:
        """What runs and why, for people."""
        client = self.client
        if client is None:
            return "given up" if self.given_up else "stopped"
        report = client.report
        if report is None:
            return f"{client.config.kind} {client.state}"
        return (
            f"{client.config.kind} on {report.device} in {report.dtype}, {report.acceleration}: {report.why}"
        )

    @property
    def dropped(self) -> int:
        """Input frames that were replaced before any engine took them."""
        return self._succession.dropped

    def progress(self) -> tuple[ProgressStatus, ...]:
        """Long work under way, in the running engine and in the one that gets ready."""
        under_way = [client.progress for client in self._succession.clients]
        return tuple(ProgressStatus(**asdict(each)) for each in under_way if each is not None)

    # --- frames ---

    @property
    def size(self) -> tuple[int, int]:
        """The size that frames must be fitted to now."""
        client = self.client
        if client is not None:
            return client.size
        return int(self._store.get("width")), int(self._store.get("height"))

    def offer(self, role: Role, frame: Frame) -> None:
        """Put an input frame before the engine, and before the one that gets ready."""
        self._succession.offer(role, frame)

    def withdraw(self, role: Role) -> None:
        """The input ``role`` was switched off, after its last ``offer``."""
        self._succession.withdraw(role)

    def take(self, role: Role) -> Frame | None:
        """The newest finished frame, once. Its pixels are lent until the next ``take``."""
        return self._succession.take(role)

    # --- a sender in the engine's process ---

    def look_at_gpu_output(self, name: str) -> GpuOutput:
        """The engine that runs, and how its own sender called ``name`` stands."""
        client = self.client
        paced = float(self._store.get("output.fps")) > 0  # the bridge alone keeps a beat
        if client is None or client.state is not EngineState.STREAMING or paced:
            return GpuOutput(None, GpuState.NONE)
        return GpuOutput(client, *client.gpu_outputs.get(name, (GpuState.NONE, "")))

    def end_deaf(self, engine: EngineClient) -> None:
        """Replace an engine that keeps a sender's name although it was told to give it up."""
        self._watcher.order("deaf", engine)

    # --- parameters and commands ---

    def change(self, change: Change) -> None:
        """Pass on what concerns the engine: live values at once, reloads and commands to the watcher."""
        rows = self._store.table.rows
        fired = {name: True for name in change.triggers if rows[name].effect != "bridge"}
        live = {
            name: value
            for name, value in change.values.items()
            if name in PASSED_ON or rows[name].effect in ("live", "reencode")
        }
        if live:
            self._supervisor.unsettle()
        if live or fired:
            for client in self._succession.clients:
                client.change({**live, **fired}, change.revision)
            for again in _repeats(change.triggers, rows.keys() & fired.keys()):
                for client in self._succession.clients:
                    client.change({again: True}, change.revision)
        own = change.source in OWN_SOURCES
        if not own and any(rows[name].effect == "reload" for name in change.values):
            self._watcher.order("reload")
        for name in change.triggers:
            if name in ("engine.start", "engine.stop", "engine.restart", "engine.reset"):
                self._watcher.order(name.removeprefix("engine."), "hard")
        self._heard = change.revision

    def reset(self, how: ResetKind) -> None:
        self._succession.reset(how)


def _repeats(triggers: tuple[str, ...], names: set[str]) -> list[str]:
    """The triggers that fired again after their first time, once for each further time."""
    seen: set[str] = set()
    again: list[str] = []
    for name in triggers:
        if name in names and name in seen:
            again.append(name)
        seen.add(name)
    return again
