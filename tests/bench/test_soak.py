"""The soak: its slope is a true regression, and a minute of it runs clean."""

import pytest

from sdbridge.bench.soak import slope, soak


def test_the_slope_is_that_of_the_best_line():
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (3.0, 0.0)]) == pytest.approx(-0.2)


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 9.0)]])
def test_no_line_through_too_few_points(points):
    assert slope(points) == 0.0


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_minute_of_the_embedded_model_runs_clean():
    figures = soak(seconds=60.0)
    assert figures["restarts"] == 0 and figures["errors"] == 0
    assert figures["frames_seen"] > 0 and figures["frames_missed"] <= figures["frames_out"] * 0.01
    assert figures["new_pictures_fps"] > 0
