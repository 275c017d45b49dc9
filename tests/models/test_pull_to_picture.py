"""From a catalog id to a picture: pulled from a (fake) hub, loaded from the disk, painted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sdbridge.engine.image import Stream
from sdbridge.models import catalog, download
from sdbridge.models.small import build_small_checkpoint, build_small_single_file

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub


def served(folder: Path, *, half: bool) -> dict[str, bytes]:
    """A folder's files as a repository; ``half`` names the weights as half-precision variants are named."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name.replace(".safetensors", ".fp16.safetensors") if half else name] = path.read_bytes()
    return files


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = FakeHub()
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    small = build_small_checkpoint(tmp_path / "small", "sd21", distilled="turbo")
    made.repos["stabilityai/sd-turbo"] = served(small, half=True)
    made.repos["madebyollin/taesd"] = served(small / "vae_tiny", half=False)
    yield made
    made.close()


def test_a_catalog_id_becomes_a_picture(hub: FakeHub) -> None:
    folder = download.pull("sd-turbo")
    assert catalog.local_path("stabilityai/sd-turbo") == folder
    assert not list(folder.rglob("vae_tiny")), "only what the entry names is fetched"
    hub.close()  # from here on nothing can be fetched
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with Stream(folder, prompt="a fox", width=64, height=64, device="cpu") as stream:
        model = stream.engine.model
        assert (model.family, model.sampler, model.vae_is_tiny) == ("sd21", "turbo", True)
        painted = stream(picture)
    assert painted is not None and painted.shape == (64, 64, 3) and painted.std() > 0


def test_a_single_file_takes_its_tokenizer_from_the_pulled_parts(hub: FakeHub, tmp_path: Path) -> None:
    file = build_small_single_file(tmp_path / "files" / "community.safetensors", "sd21")
    parts = file.with_suffix(".parts")
    hub.repos["stabilityai/sd-turbo"] = served(parts, half=False)
    parts.rename(tmp_path / "elsewhere")
    download.pull("sd21-parts")
    with Stream(file, prompt="a fox", width=64, height=64, device="cpu", mode="txt2img") as stream:
        assert stream.engine.model.family == "sd21" and stream.engine.model.vae_is_tiny
        painted = stream()
    assert painted is not None and painted.shape == (64, 64, 3)
