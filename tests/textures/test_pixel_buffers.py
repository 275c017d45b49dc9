"""Pixel buffers on software OpenGL: bit-exact both ways, in every size, turn after turn."""

import numpy as np
import pytest

from sdbridge.textures import pixel_buffers
from sdbridge.textures.pixel_buffers import Download, Upload, usable

moderngl = pytest.importorskip("moderngl")


@pytest.fixture
def context():
    try:
        made = moderngl.create_context(standalone=True, backend="egl")
    except Exception as error:
        pytest.skip(f"no OpenGL over EGL here: {error}")
    yield made
    made.release()


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def test_what_is_written_is_in_the_texture_at_once(context) -> None:
    upload = Upload(context)
    for seed, size in enumerate([(4, 8), (4, 8), (4, 8), (1, 1), (511, 513), (4, 8)]):
        pixels = picture(*size, seed)
        upload.write(pixels)
        assert upload.name > 0 and upload.texture.read() == pixels.tobytes()
    upload.close()
    upload.close()


def test_rows_that_lie_upside_down_in_memory_are_written_as_they_look(context) -> None:
    upload = Upload(context)
    upload.write(picture(4, 8, 0)[::-1])
    assert upload.texture.read() == picture(4, 8, 0)[::-1].tobytes()
    upload.close()


def test_what_is_in_the_texture_is_read_now_and_belongs_to_the_reader(context) -> None:
    download = Download(context)
    assert download.name == 0
    got = []
    for seed, (height, width) in enumerate([(4, 8), (4, 8), (4, 8), (3, 1), (511, 513)]):
        download.make_room(width, height)
        download.texture.write(picture(height, width, seed).tobytes())
        got.append(download.read())
        assert (got[-1] == picture(height, width, seed)).all()
    assert (got[0] == picture(4, 8, 0)).all(), "later pictures did not touch it"
    download.close()


def test_a_context_that_works_is_usable_and_one_that_lies_is_not(context, monkeypatch) -> None:
    monkeypatch.setattr(moderngl, "create_context", lambda: context)
    assert usable() == (context, "")
    monkeypatch.setattr(Download, "read", lambda self: np.zeros((3, 5, 4), np.uint8))
    assert usable() == (None, "this OpenGL gives back other pixels than it was given")


def test_without_context_or_moderngl_it_says_so(monkeypatch) -> None:
    def none_here():
        raise Exception("cannot detect a context")

    monkeypatch.setattr(moderngl, "create_context", none_here)
    assert "cannot detect a context" in usable()[1]
    monkeypatch.setattr(pixel_buffers.importlib.util, "find_spec", lambda name: None)
    assert usable() == (None, "moderngl is not installed")
