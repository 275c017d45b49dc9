"""What the compositor paints for each decision of the hold policy."""

import numpy as np

from sdbridge.compose import Compositor, blend
from sdbridge.hold import OutputState, Shown


def plain(value, size=4):
    pixels = np.full((size, size, 4), value, np.uint8)
    pixels[..., 3] = 255
    return pixels


def test_a_blend_is_exact_at_its_ends_and_in_between():
    a, b = plain(10), plain(210)
    assert blend(a, b, 0.0) is a and blend(a, b, 1.0) is b
    assert set(np.unique(blend(a, b, 0.5)[..., :3])) == {110}
    for share in np.linspace(0, 1, 41):
        expected = 10 * (1 - share) + 210 * share
        assert abs(int(blend(a, b, share)[0, 0, 0]) - expected) <= 1
        assert (blend(a, b, share)[..., 3] == 255).all()


def test_live_frames_pass_uncopied():
    picture = plain(7)
    assert Compositor().paint(Shown(OutputState.LIVE), picture, None, 1, 1) is picture


def test_before_the_first_frame_there_is_opaque_black_of_the_engines_size():
    painted = Compositor().paint(Shown(OutputState.HOLDING), None, None, 6, 3)
    assert painted.shape == (3, 6, 4)
    assert not painted[..., :3].any() and (painted[..., 3] == 255).all()


def test_freeze_keeps_what_was_shown_until_released():
    compositor = Compositor()
    first = compositor.paint(Shown(OutputState.LIVE), plain(1), None, 4, 4)
    frozen = Shown(OutputState.FROZEN)
    assert compositor.paint(frozen, plain(2), None, 4, 4) is first
    assert compositor.paint(frozen, plain(3), None, 4, 4) is first
    assert compositor.paint(Shown(OutputState.LIVE), plain(4), None, 4, 4)[0, 0, 0] == 4
    assert compositor.paint(frozen, plain(5), None, 4, 4)[0, 0, 0] == 4


class Lent:
    """The loan of a picture that is written over when told."""

    def __init__(self, pixels):
        self.pixels, self.kept = pixels, pixels.copy()
        self.gone = False

    def write_over(self):
        self.gone = True
        self.pixels[:] = 99

    def whole(self):
        return not self.gone

    def copy(self):
        return None if self.gone else self.kept


def test_freeze_keeps_a_lent_picture_as_it_was():
    compositor = Compositor()
    lent = Lent(plain(1))
    compositor.paint(Shown(OutputState.LIVE), lent.pixels, None, 4, 4, lent)
    frozen = Shown(OutputState.FROZEN)
    assert compositor.paint(frozen, lent.pixels, None, 4, 4, lent)[0, 0, 0] == 1
    lent.write_over()
    assert compositor.paint(frozen, plain(3), None, 4, 4, Lent(plain(3)))[0, 0, 0] == 1


def test_freeze_that_comes_too_late_for_a_lent_picture_keeps_the_next():
    compositor = Compositor()
    first, second = Lent(plain(1)), Lent(plain(2))
    compositor.paint(Shown(OutputState.LIVE), first.pixels, None, 4, 4, first)
    first.write_over()
    frozen = Shown(OutputState.FROZEN)
    assert compositor.paint(frozen, second.pixels, None, 4, 4, second)[0, 0, 0] == 2
    second.write_over()
    assert compositor.paint(frozen, plain(3), None, 4, 4)[0, 0, 0] == 2


def test_freeze_after_black_holds_the_black():
    compositor = Compositor()
    compositor.paint(Shown(OutputState.BLACK), plain(9), None, 4, 4)
    assert not compositor.paint(Shown(OutputState.FROZEN), plain(9), None, 4, 4)[..., :3].any()


def test_fading_mixes_and_the_fallback_stands_alone():
    compositor = Compositor()
    half = compositor.paint(Shown(OutputState.FADING, 0.5), plain(200), None, 4, 4)
    assert half[0, 0, 0] == 100
    other = plain(50)
    assert compositor.paint(Shown(OutputState.FALLBACK, 1.0), plain(200), other, 4, 4) is other
