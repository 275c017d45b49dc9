"""The benchmark of live changes runs every change it lists, on a small model."""

import pytest

from sdbridge.bench.live import CHANGES, live_changes
from sdbridge.models.small import build_small_checkpoint
from sdbridge.parameters.table import TABLE


def test_every_change_is_a_parameter_of_the_table() -> None:
    names = {row.name for row in TABLE}
    assert {name for _, values in CHANGES for name in values} <= names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_change_gets_its_figures(tmp_path) -> None:
    model = build_small_checkpoint(tmp_path / "small", "sd15")
    found = live_changes(seconds=300, model=str(model), side=64, frames=4)
    assert list(found) == [name for name, _ in CHANGES]
    for figures in found.values():
        assert figures["worst_of_usual"] > 0 and 0 <= figures["frames_until_even"] <= 8
        assert figures["waited_frames"] == 0, "the CPU is always ready"
