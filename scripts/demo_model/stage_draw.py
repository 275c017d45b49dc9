"""Stage: draw the pictures."""

from __future__ import annotations

from scripts.demo_model.settings import Settings
from scripts.demo_model.shards import draw_all


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    return draw_all(s, deadline)
