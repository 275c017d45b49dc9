"""The conditioning benches run on a small model and give their figures; on a GPU they meet their targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbridge.bench import conditioning
from sdbridge.models.small import build_small_checkpoint


@pytest.mark.parametrize(
    ("case", "figures"),
    [
        (conditioning.lora_fader, {"move_median_ms", "tick_median_ms"}),
        (conditioning.controlnet_cost, {"with_median_ms", "without_median_ms", "more_ms", "canny_ms"}),
        (conditioning.controlnet_add, {"latest_over_median", "before_median_ms"}),
        (conditioning.controlnet_add_at_60, {"in_picture_s", "during_max_ms"}),
    ],
)
def test_each_case_gives_its_figures_on_a_small_model(tmp_path: Path, case, figures: set[str]) -> None:
    folder = build_small_checkpoint(tmp_path / "m", distilled="turbo")
    found = case(seconds=0.05, model=folder, side=64)
    assert figures <= found.keys() and all(value == value for value in found.values())


@pytest.mark.gpu
def test_on_a_gpu_the_targets_are_met() -> None:
    fader = conditioning.lora_fader(seconds=5, weights="random")
    assert fader["move_median_ms"] < 3
    cost = conditioning.controlnet_cost(seconds=5, weights="random")
    assert cost["share_of_unet"] <= 0.55
    assert conditioning.controlnet_add(seconds=5, weights="random")["latest_over_median"] <= 2
