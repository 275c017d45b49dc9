"""``sdbridge run``: read the config, start the bridge, say where everything is, stop cleanly."""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from sdbridge import __version__, paths
from sdbridge.bridge import Bridge
from sdbridge.commands.say import ERR
from sdbridge.config import Config, load_config
from sdbridge.demo import demo_config_path
from sdbridge.errors import SdbridgeError
from sdbridge.log import Logging
from sdbridge.status import Status

log = logging.getLogger(__name__)
SUMMARY_KEYS = (
    "state",
    "frames_in",
    "frames_out",
    "dropped",
    "held",
    "fps",
    "latency_ms",
    "applied_revision",
    "errors",
)


def run_bridge(
    path: Path | None,
    overrides: Mapping[str, object],
    frames: int | None,
    summary: Path | None,
    browser: bool,
    quiet: bool = False,
) -> int:
    """Run until stopped or ``frames`` are out. Returns the exit code.

    ``quiet`` leaves the console to what ends the run: for a service whose console is a file nobody rotates.
    """
    config, mistakes = config_or_safe_mode(path, overrides)
    folder = Path(config.log.folder).expanduser() if config.log.folder else paths.log_dir()
    with (
        Logging(config.log.level, folder, console=not quiet) as logging_,
        Bridge(config, log_lines=logging_.lines) as bridge,
    ):
        if mistakes is not None:
            bridge.note_error(str(mistakes), safe_mode=True)
        with _signals_stop(bridge):
            bridge.start()
            gc.enable()  # asleep since __main__
            for line in _where_everything_is(config, bridge, logging_.file):
                if quiet:
                    log.info("%s", line)
                else:
                    ERR.print(line, soft_wrap=True)
            if browser:
                import webbrowser

                webbrowser.open(f"http://127.0.0.1:{bridge.port}/")
            status = bridge.run(frames=frames)
    if summary is not None:
        write_summary(summary, status)
    return 0


def config_or_safe_mode(
    path: Path | None, overrides: Mapping[str, object]
) -> tuple[Config, SdbridgeError | None]:
    """The config, or the demo's with the mistakes to report: a typo must not keep a show from starting.

    A path that does not exist and flags that make no sense are refused: those are mistakes in the
    command itself, and whoever typed it is there to read of them.
    """
    try:
        return load_config(path or demo_config_path(), overrides), None
    except SdbridgeError as error:
        if error.code != "SDB-CONFIG-INVALID":
            raise
        mistakes = error
    try:
        return load_config(demo_config_path(), overrides), mistakes
    except SdbridgeError:
        raise SdbridgeError(mistakes.code, mistakes.what, output="Nothing was started.") from None


@contextmanager
def _signals_stop(bridge: Bridge) -> Iterator[None]:
    """SIGINT and SIGTERM stop in good order; a second one stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if bridge.stopping:
            _say_at_once("sdbridge: stopping at once")
            bridge.kill()
            os._exit(130)
        _say_at_once("sdbridge: stopping (again to stop at once)")
        bridge.stop()

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    before = {
        n: signal.signal(n, stop) for n in (getattr(signal, name, None) for name in names) if n is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_at_once(line: str) -> None:
    """From a signal handler, which may have interrupted anything, the console in mid-line included."""
    with suppress(OSError):  # a terminal that is gone
        os.write(2, f"{line}\n".encode())


def _where_everything_is(config: Config, bridge: Bridge, log_file: Path | None) -> Sequence[str]:
    """The first lines a person sees: each names the thing to type elsewhere."""
    status = bridge.status()
    model = bridge.store.get("model") or config.engine.model or status.model or config.engine.kind
    host = "this machine and the network" if config.lan else "this machine only"
    size = "×".join(str(bridge.store.get(side)) for side in ("width", "height"))
    lines = [
        f"sdbridge {__version__} · Python {platform.python_version()} · torch {_torch_version()} · "
        f"{platform.system()} {platform.machine()}",
        f"Model   {model if config.engine.kind == 'image' else config.engine.kind} · {size}",
    ]
    lines += [f"Input   {texture.role}: {texture.line}" for texture in status.inputs]
    lines += [f"Output  {texture.role}: {texture.line}" for texture in status.outputs]
    lines += [
        f"OSC     udp {bridge.port} on {host} · addresses: sdbridge osc",
        f"Page    http://127.0.0.1:{bridge.port}/",
    ]
    if log_file is not None:
        lines.append(f"Log     {log_file}")
    return [*lines, "Ctrl+C stops (twice: at once)"]


def _torch_version() -> str:
    """Read from the package's metadata: the bridge never imports torch."""
    from importlib import metadata  # which takes a while to import, and the page is up by now

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"


def write_summary(path: Path, status: Status) -> None:
    """Write the keys that status and summary share. A path that cannot be written is told, not raised."""
    values = status.as_json()
    text = json.dumps({key: values[key] for key in SUMMARY_KEYS}, indent=2)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"SDB-SUMMARY-WRITE: {path} cannot be written ({error}); here it is:\n{text}\n")
