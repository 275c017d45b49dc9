"""The command line: ``sdbridge run``, ``doctor``, ``pull`` ... The work of each is in ``commands/``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from sdbridge import __version__
from sdbridge.errors import SdbridgeError

app = typer.Typer(
    name="sdbridge",
    help="Live textures in, generated frames out, steered over OSC.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ConfigFile = Annotated[
    Path | None,
    typer.Argument(help="Configuration file, such as configs/sd-turbo.yaml. Without one: the offline demo."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdbridge {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Live textures in, generated frames out, steered over OSC."""


@app.command()
def run(
    config: ConfigFile = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Stop by itself after this many output frames.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Write the run's numbers to this JSON file at the end.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="OSC (UDP) and page (TCP) port; 0 takes a free one. Default 9000."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder, .safetensors file, catalog id or Hugging Face id.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda, mps or cpu.")] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="Let other machines reach page and OSC. Asks for a token.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the web browser.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing on the console but what ends it: all is in the log.")
    ] = False,
) -> None:
    """Run the bridge until Ctrl+C. The output never stops, whatever the input or the engine does."""
    from sdbridge.commands.run import run_bridge

    overrides = {"port": port, "engine.model": model, "engine.device": device, "lan": lan or None}
    raise typer.Exit(run_bridge(config, overrides, frames, summary, browser, quiet))


@app.command()
def doctor(
    config: ConfigFile = None,
    json: AsJson = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write the report to this file, without names and tokens.")
    ] = None,
) -> None:
    """Check this machine: Python, GPU, textures, ports, disk, models. Exits with 1 if something is wrong."""
    from sdbridge.commands.doctor import run_doctor

    raise typer.Exit(run_doctor(config, json, report))


@app.command()
def pull(
    model: Annotated[
        str | None, typer.Argument(help="Catalog id or Hugging Face id. Without one: lists the catalog.")
    ] = None,
    json: AsJson = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before downloading.")] = False,
) -> None:
    """Download a model: size shown first, resumable, checked at the end."""
    from sdbridge.commands.pull import run_pull

    raise typer.Exit(run_pull(model, json, yes))


@app.command()
def sources(
    backend: Annotated[str | None, typer.Argument(help="spout, syphon, ndi, ...; without one: all.")] = None,
    json: AsJson = False,
) -> None:
    """List what can be received now (Spout senders, NDI sources, screens) and which backends work."""
    from sdbridge.commands.sources import run_sources

    raise typer.Exit(run_sources(backend, json))


@app.command()
def osc(
    json: AsJson = False,
    find: Annotated[str, typer.Option(help="Show only addresses that contain this.")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as it stands in docs/osc.md.")
    ] = False,
) -> None:
    """Print every OSC address with its type, range, default and meaning."""
    from sdbridge.commands.osc import run_osc

    raise typer.Exit(run_osc(json, find, markdown))


@app.command()
def bench(
    config: ConfigFile = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Measure this case only; may be given several times. 'list' names them."),
    ] = None,
    weights: Annotated[str, typer.Option(help="'random' measures at true size without a download.")] = "",
    seconds: Annotated[
        float | None, typer.Option(min=1, help="How long each case measures; 10 for most, 1800 for soak.")
    ] = None,
    acceleration: Annotated[
        str, typer.Option(help="eager, compile or tensorrt, whatever the configuration says.")
    ] = "",
    faults: Annotated[
        bool, typer.Option("--faults", help="Break things on purpose and time the gaps.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Measure speed on this machine: a configuration's engine, or bridge, demo and control."""
    from sdbridge.commands.bench import run_bench

    raise typer.Exit(run_bench(config, tuple(case or ()), weights, seconds, faults, json, acceleration))


@app.command()
def build(
    config: ConfigFile = None,
    acceleration: Annotated[
        str, typer.Option(help="eager, compile or tensorrt, whatever the configuration says.")
    ] = "",
    measure: Annotated[
        bool, typer.Option(help="Time kernels on a card that was never timed, which takes minutes, once.")
    ] = True,
    json: AsJson = False,
) -> None:
    """Make what a start would make for itself, before doors open: compiled kernels, TensorRT engines."""
    from sdbridge.commands.build import run_build

    raise typer.Exit(run_build(config, acceleration, json, measure))


@app.command()
def presets(
    action: Annotated[str, typer.Argument(help="list, show, delete or rename.")] = "list",
    name: Annotated[str, typer.Argument(help="The preset's name.")] = "",
    new_name: Annotated[str, typer.Argument(help="For rename: the new name.")] = "",
    json: AsJson = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration whose presets_dir is meant; without one the usual place."),
    ] = None,
) -> None:
    """Look at and tidy the saved presets, with or without a running bridge."""
    from sdbridge.commands.presets import run_presets

    raise typer.Exit(run_presets(action, name, new_name, json, config))


@app.command()
def service(
    action: Annotated[str, typer.Argument(help="install, remove, status or show.")] = "status",
    config: ConfigFile = None,
) -> None:
    """Start sdbridge by itself at log-on (Task Scheduler, LaunchAgent or systemd --user)."""
    from sdbridge.commands.service import run_service

    raise typer.Exit(run_service(action, config))


def main() -> None:
    """Entry point. Exit 0 good, 1 fault, 2 usage or config; faults are one line, traces go to the log."""
    try:
        app()
    except SdbridgeError as error:
        typer.echo(str(error), err=True)
        sys.exit(2 if error.code.startswith("SDB-CONFIG") else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # edge: a trace for us, a sentence for people
        logging.getLogger(__name__).exception("unexpected fault in the command line")
        typer.echo(
            f"SDB-CLI-FAULT: {type(error).__name__}: {error}. This is a bug; the trace is above.", err=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
