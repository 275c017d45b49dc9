"""``sdbridge service``: start by itself at log-on, on each system's own terms."""

from __future__ import annotations

from pathlib import Path

from sdbridge import service
from sdbridge.commands.say import ERR, OUT
from sdbridge.config import load_config
from sdbridge.demo import demo_config_path


def run_service(action: str, config: Path | None) -> int:
    """install | remove | status | show. Exit 2 for anything else, 1 when the system refused."""
    if action == "install":
        load_config(
            config or demo_config_path()
        )  # a file that is missing or wrong is refused now, not at log-on
    plan = service.plan_for_this_system(config)
    if action == "show":
        OUT.print(f"{plan.file}\n\n{plan.text}", markup=False, soft_wrap=True)
        return 0
    if action not in ("install", "remove", "status"):
        ERR.print("Usage: sdbridge service [install | remove | status | show] [CONFIG]")
        return 2
    good, text = getattr(service, action)(plan)
    (OUT if good else ERR).print(text, markup=False, soft_wrap=True)
    return 0 if good else 1
