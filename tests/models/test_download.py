"""Pulling: size first, resumed, verified, one progress, and every fault has its code. Against a fake hub."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, download

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub

WEIGHTS = bytes(range(256)) * 8000  # 2 MB
TINY = bytes(reversed(range(256))) * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    made = FakeHub()
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    made.repos["latent-consistency/lcm-lora-sdv1-5"] = {
        "README.md": b"# text that nobody needs",
        "pytorch_lora_weights.safetensors": WEIGHTS,
    }
    made.repos["madebyollin/taesd"] = {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors": TINY,
        "diffusion_pytorch_model.bin": b"a pickle",
    }
    yield made
    made.close()


def test_the_plan_states_the_exact_size_before_anything_is_fetched(hub: FakeHub) -> None:
    planned = download.plan("lcm-lora-sd15")
    assert planned.total_bytes == planned.missing_bytes == len(WEIGHTS)
    assert planned.licence and not planned.folder.exists()
    assert all(method == "GET" and path.startswith("/api/") for method, path, _ in hub.requests)


def test_a_pull_brings_the_files_counts_bytes_up_and_is_not_repeated(hub: FakeHub) -> None:
    told: list[Progress] = []
    path = download.pull("lcm-lora-sd15", told.append)
    assert path.read_bytes() == WEIGHTS and path == catalog.local_path("lcm-lora-sd15")
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert told[-1].stage == "done" and told[-1].done == told[-1].total == len(WEIGHTS)
    assert not (path.parent / "README.md").exists()
    before = len(hub.requests)
    assert download.plan("lcm-lora-sd15").missing_bytes == 0
    assert download.pull("lcm-lora-sd15") == path
    assert len(hub.requests) == before, "a pulled model asks the network nothing"


def test_pickles_are_never_fetched_and_a_folder_is_what_the_engine_gets(hub: FakeHub) -> None:
    folder = download.pull("taesd")
    assert folder == catalog.local_folder(catalog.find("taesd"))
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        catalog.MARK,
    }


def pickled(content: object) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


def test_a_pickle_that_the_catalog_names_becomes_safetensors_weights_only(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    weights = {"norm": torch.arange(3.0).view(1, 3, 1, 1), "block1.projection.bias": torch.ones(1)}
    hub.repos["lllyasviel/Annotators"] = {
        "ControlNetHED.pth": pickled(weights),
        "other.pth": b"never asked for",
    }
    path = download.pull("hed")
    found = load_file(path)
    assert path.name == "ControlNetHED.safetensors" and path == catalog.local_path("hed")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, catalog.MARK}
    shutil.rmtree(path.parent)
    monkeypatch.chdir(tmp_path)
    hub.repos["lllyasviel/Annotators"] = {"ControlNetHED.pth": pickled({"norm": Evil()})}
    with pytest.raises(SdbridgeError) as caught:
        download.pull("hed")
    assert caught.value.code == "SDB-PULL-DAMAGED" and "ControlNetHED.pth" in str(caught.value)
    assert not (tmp_path / "was-run").exists() and catalog.local_path("hed") is None


def test_an_interrupted_pull_goes_on_where_it_stopped(hub: FakeHub, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # its 10 MB, scaled to this file
    name = "pytorch_lora_weights.safetensors"
    hub.cut_after[name] = 1_200_000
    path = download.pull("lcm-lora-sd15")
    assert path.read_bytes() == WEIGHTS
    starts = [span for method, file, span in hub.requests if method == "GET" and file.endswith(name)]
    assert len(starts) == 2 and starts[1] not in ("", "bytes=0-"), starts


def test_a_damaged_file_is_deleted_and_named(hub: FakeHub) -> None:
    name = "pytorch_lora_weights.safetensors"
    hub.lie[name] = bytes([1]) + WEIGHTS[1:]
    with pytest.raises(SdbridgeError) as caught:
        download.pull("lcm-lora-sd15")
    assert caught.value.code == "SDB-PULL-DAMAGED" and name in str(caught.value)
    assert catalog.local_path("lcm-lora-sd15") is None
    hub.lie.clear()
    assert download.pull("lcm-lora-sd15").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("no-such-thing", "SDB-PULL-UNKNOWN"),
        ("nobody/nothing", "SDB-PULL-UNKNOWN"),
        ("../../etc/passwd", "SDB-PULL-UNKNOWN"),
        ("locked/model", "SDB-PULL-GATED"),
        ("empty/model", "SDB-PULL-UNKNOWN"),
    ],
)
def test_what_cannot_be_pulled_says_why(hub: FakeHub, model: str, code: str) -> None:
    hub.gated.add("locked/model")
    hub.repos["empty/model"] = {"weights.bin": b"pickle"}
    with pytest.raises(SdbridgeError) as caught:
        download.pull(model)
    assert caught.value.code == code


def test_no_network_and_no_disk_have_their_codes(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    with monkeypatch.context() as patched:
        patched.setattr(download.shutil, "disk_usage", lambda place: Usage)
        with pytest.raises(SdbridgeError) as caught:
            download.pull("taesd")
        assert caught.value.code == "SDB-PULL-DISK"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SdbridgeError) as caught:
        download.plan("taesd")
    assert caught.value.code == "SDB-PULL-NETWORK"


def test_an_unlisted_repository_gives_one_set_of_half_precision_weights(hub: FakeHub) -> None:
    hub.repos["someone/model"] = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
        "unet/diffusion_pytorch_model.fp16.safetensors": TINY,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": TINY,
        "safety_checker/model.safetensors": WEIGHTS,
        "v1-5-pruned.safetensors": WEIGHTS,
        "../escape.json": b"{}",
    }
    names = {file.name for file in download.plan("someone/model").files}
    assert names == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_what_an_interrupted_pull_left_is_checked_as_well(hub: FakeHub) -> None:
    folder = catalog.folder_of(catalog.find("taesd"))
    folder.mkdir(parents=True)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(bytes(len(TINY)))  # right size, wrong bytes
    with pytest.raises(SdbridgeError, match="SDB-PULL-DAMAGED"):
        download.pull("taesd")
    assert (download.pull("taesd") / "diffusion_pytorch_model.safetensors").read_bytes() == TINY
