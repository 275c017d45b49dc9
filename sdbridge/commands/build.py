"""``sdbridge build``: compile, tune and build what a configuration needs before doors open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sdbridge.commands.say import ERR, OUT, print_json
from sdbridge.config import load_config
from sdbridge.demo import demo_config_path
from sdbridge.engine.interface import Progress as ProgressEvent
from sdbridge.engine.making import engine_config
from sdbridge.models.resolve import resolve_model

Tell = Callable[[ProgressEvent], None]


def run_build(config: Path | None, acceleration: str, as_json: bool, measure: bool = True) -> int:
    """Exit 1 when something was asked for that could not be built; the show starts nevertheless."""
    given = load_config(config or demo_config_path())
    values = dict(given.parameters)
    engine = engine_config(given.engine, values)
    if engine.kind != "image":
        OUT.print(f"An engine of kind {engine.kind} has nothing to build.", soft_wrap=True)
        return 0
    if acceleration:
        engine = replace(engine, acceleration=acceleration)
    from sdbridge.engine.image.build import build_caches

    screen: AbstractContextManager[Tell] = nullcontext(lambda event: None) if as_json else _Bars()
    with screen as tell:
        engine = replace(engine, model=str(resolve_model(engine.model, tell)))
        report = build_caches(engine, values, given.engine.width, given.engine.height, tell, measure)
    wanting = engine.acceleration not in ("auto", report.acceleration)
    if as_json:
        print_json(asdict(report))
    else:
        OUT.print(
            f"{report.acceleration}, {given.engine.width}x{given.engine.height}: {report.why}", soft_wrap=True
        )
        for line in report.lines:
            OUT.print(f"  {line}", soft_wrap=True)
        for trouble in report.troubles:
            OUT.print("  [yellow]note[/]", end=" ", markup=True)
            OUT.print(trouble, soft_wrap=True)
        OUT.print(f"Ready in {report.seconds:.0f} s. sdbridge run starts from here.")
    return 1 if wanting or report.troubles else 0


class _Bars:
    """One bar for each stage, with the time that is left where the stage can tell."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=ERR,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Tell:
        self._bars.start()
        return self._show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _show(self, event: ProgressEvent) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=None, left="")
        text = f"{event.stage}: {event.message}" if event.message else event.stage
        self._bars.update(
            self._tasks[event.stage],
            completed=event.done,
            total=event.total or None,
            description=text,
            left=time_left(event.left_s),
        )


def time_left(seconds: float | None) -> str:
    """``3:05 left``; nothing where it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} left"
