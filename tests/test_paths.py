"""Paths as people give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbridge.paths import typed_path


@pytest.mark.parametrize(
    "text",
    [
        "/my models/ïnk.safetensors",
        "  /my models/ïnk.safetensors\n",
        '"/my models/ïnk.safetensors"',
        " '/my models/ïnk.safetensors' ",
        "file:///my%20models/%C3%AFnk.safetensors",
    ],
)
def test_a_path_is_taken_as_it_was_pasted(text: str) -> None:
    assert typed_path(text) == Path("/my models/ïnk.safetensors")


def test_the_home_folder_and_single_quotes_inside_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert typed_path("~/a.png") == tmp_path / "a.png"
    assert typed_path("/it's/here") == Path("/it's/here")
    assert typed_path('"') == Path('"')
