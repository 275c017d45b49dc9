"""``sdbridge bench``: run cases one after another and print their figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil

from sdbridge import __version__
from sdbridge.bench import registry
from sdbridge.commands.say import ERR, OUT, print_json, print_table
from sdbridge.config import load_config
from sdbridge.doctor.machine import nvidia_driver
from sdbridge.errors import SdbridgeError


def run_bench(
    config: Path | None,
    names: tuple[str, ...],
    weights: str,
    seconds: float | None,
    faults: bool,
    as_json: bool,
    acceleration: str = "",
) -> int:
    """Exit 2 for an unknown case or a configuration that is none, 1 when a case could not be measured."""
    if names == ("list",):
        print_table(("case", "group", "measures"), [(c.name, c.group, c.summary) for c in registry.CASES])
        return 0
    unknown = [name for name in names if registry.find(name) is None]
    if unknown:
        ERR.print(str(SdbridgeError("SDB-BENCH-UNKNOWN", f"no case {', '.join(unknown)}")), soft_wrap=True)
        return 2
    if config is not None:
        load_config(config)  # once, and before any case: raises, which is exit 2
    if config is not None and not names and not faults:
        names = registry.OF_A_CONFIG
    group = "faults" if faults else "true-size" if weights == "random" else "default"
    cases = [c for c in registry.CASES if (c.name in names if names else c.group == group)]
    length = {} if seconds is None else {"seconds": seconds}  # each case knows how long it wants
    results: dict[str, Mapping[str, object]] = {}
    failed = False
    for case in cases:
        ERR.print(f"measuring {case.name}: {case.summary} ...", soft_wrap=True)
        try:
            results[case.name] = case.load()(
                **length, config=config, weights=weights, acceleration=acceleration
            )
        except SdbridgeError as error:
            results[case.name] = {"error": str(error)}
        failed = failed or "error" in results[case.name]
    if as_json:
        print_json({"machine": machine_facts(), "cases": results})
    else:
        OUT.print("  ".join(f"{key} {value}" for key, value in machine_facts().items()))
        print_table(
            ("case", "figure", "value"),
            [
                (name, key, _number(value))
                for name, figures in results.items()
                for key, value in figures.items()
            ],
        )
    return 1 if failed else 0


def machine_facts() -> dict[str, str]:
    """What a figure means nothing without."""
    facts = {
        "sdbridge": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "diffusers", "tensorrt")},
        "gpu": nvidia_driver(),
        "system": platform.platform(),
        "cores": str(psutil.cpu_count()),
    }
    return {name: value for name, value in facts.items() if value}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
