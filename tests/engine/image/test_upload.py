"""Weights on their way to the device: the same values in one allocation, in pieces; broken files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdbridge.engine.image.loading import LoadingThread
from sdbridge.engine.image.stored import BrokenFileError, in_memory, look_into, split_rows
from sdbridge.engine.image.upload import Arena, Upload, upload_to, uploading

CPU = torch.device("cpu")


def weights() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "conv": torch.randn(6, 5, 3, 3, generator=made),
        "half": torch.randn(7, 11, generator=made).half(),
        "brain": torch.randn(40, 3, generator=made).bfloat16(),
        "one": torch.tensor(3.5),
        "ids": torch.arange(9).reshape(1, 9),
        "none": torch.zeros(0, 4),
        "q": torch.randn(4, 8, generator=made),
        "k": torch.randn(4, 8, generator=made),
        "v": torch.randn(3, 8, generator=made),
        "large": torch.randn(300, 17, generator=made),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(weights(), path, {"made": "here"})
    return path


@pytest.mark.parametrize("piece", [1, 64, 1000, 1 << 20])
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("stored", [True, False])
def test_what_is_brought_by_pieces_is_what_was_given(
    file: Path, piece: int, readers: int, stored: bool
) -> None:
    sources = look_into(file).tensors if stored else weights()
    upload = Upload(CPU, piece, readers, staged=True)
    brought = upload.bring(
        sources, torch.float16, channels_last=True, side_by_side=[("k", "q", "v"), ("q", "nowhere")]
    )
    assert brought.keys() == weights().keys()
    for name, wanted in weights().items():
        wanted = wanted.half() if wanted.is_floating_point() else wanted
        assert brought[name].dtype == wanted.dtype and torch.equal(brought[name], wanted), name
    assert brought["conv"].is_contiguous(memory_format=torch.channels_last)
    assert len({tensor.untyped_storage().data_ptr() for tensor in brought.values()}) == 1
    assert brought["q"].data_ptr() == brought["k"].data_ptr() + brought["k"].nbytes
    assert brought["v"].data_ptr() == brought["q"].data_ptr() + brought["q"].nbytes


def test_a_second_network_does_not_touch_the_first(file: Path) -> None:
    upload = Upload(CPU, 500, 2, staged=True)
    first = upload.bring(look_into(file).tensors, torch.float32)
    second = upload.bring({"large": torch.zeros(300, 17)}, torch.float32)
    assert torch.equal(first["large"], weights()["large"]) and not second["large"].any()


def test_without_pieces_it_is_the_same_and_never_the_givers_memory() -> None:
    given = weights()
    brought = Upload(CPU).bring(given, torch.float32, channels_last=True)
    for name, tensor in brought.items():
        assert torch.equal(tensor, given[name].float() if given[name].is_floating_point() else given[name])
        assert not tensor.numel() or tensor.data_ptr() != given[name].data_ptr()
    assert brought["conv"].is_contiguous(memory_format=torch.channels_last)


def test_parts_of_a_tensor_in_a_file_are_found_without_reading_it(file: Path) -> None:
    stored, tensor = look_into(file).tensors["large"], weights()["large"]
    for given in (stored, tensor):
        parts = [in_memory(part) for part in split_rows(given, 3)]
        assert torch.equal(torch.cat(parts), tensor) and {part.shape[0] for part in parts} == {100}


def test_an_arena_gives_room_with_the_layout_of_what_it_is_for() -> None:
    arena = Arena(Upload(CPU))
    like = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert arena.like(like).stride() == like.stride()


# --- files that are not whole ---


def header_of(path: Path) -> tuple[dict, bytes]:
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def write(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_every_fault_of_a_header_is_told(file: Path) -> None:
    header, data = header_of(file)
    whole = file.read_bytes()

    def said() -> str:
        with pytest.raises(BrokenFileError) as caught:
            look_into(file)
        return str(caught.value)

    for size in (0, 5, 9):
        file.write_bytes(whole[:size])
        assert f"only {size} bytes" in said()
    file.write_bytes(whole[:60])
    assert "its header alone has" in said()
    file.write_bytes(whole[:-3])
    assert f"{len(whole) - 3} of {len(whole)} bytes" in said()
    file.write_bytes(whole + b"xy")
    assert "2 bytes more" in said()
    file.write_bytes(b"hello, this is a text and no file of weights")
    assert "no safetensors file" in said()
    for change in (
        {"dtype": "Q4"},
        {"shape": [1]},
        {"shape": "ab"},
        {"data_offsets": [0]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [16, 16 + 300 * 17 * 4]},
    ):
        write(file, {**header, "large": {**header["large"], **change}}, data)
        assert "damaged safetensors header" in said(), change
    for text in (b"{not json}", b"{}x", b"[1, 2]", b'{"a": 3}'):
        write(file, text, data)
        said()
    file.write_bytes(whole)
    assert look_into(file).metadata == {"made": "here"}


@pytest.mark.parametrize("staged", [True, False])
def test_a_file_that_is_replaced_or_cut_while_it_is_read_is_told(file: Path, staged: bool) -> None:
    stored = look_into(file).tensors
    upload = Upload(CPU, 200, 2, staged=staged)
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)
    with pytest.raises(BrokenFileError, match="replaced"):
        upload.bring(stored, torch.float32)
    file.unlink()
    with pytest.raises(OSError):
        upload.bring(stored, torch.float32)


# --- the thread ---


def test_the_loading_thread_leaves_the_interpreter_to_the_frames_and_ends_with_the_engine() -> None:
    loading = LoadingThread(CPU)
    upload = loading.submit(lambda: upload_to(CPU)).result()
    assert upload.gentle and loading.submit(lambda: upload_to(CPU)).result() is upload
    assert torch.equal(loading.submit(lambda: torch.ones(2)).result(), torch.ones(2))
    fault = loading.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fault.result()
    loading.close()


def test_beside_the_frames_every_step_ends_with_a_pause_and_at_a_start_none(file: Path, monkeypatch) -> None:
    from diffusers import ControlNetModel

    from sdbridge.engine.image import skeleton as making
    from sdbridge.engine.image import upload as moving

    paused: list[float] = []
    for module in (making, moving):
        monkeypatch.setattr(module.time, "sleep", paused.append)

    def load() -> int:
        paused.clear()
        here = upload_to(CPU)
        with making.skeleton(here.gentle):
            ControlNetModel(block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2)
        made = len(paused)
        here.bring(look_into(file).tensors, torch.float32)
        assert (len(paused) > made) == here.gentle
        return made

    assert load() == 0
    loading = LoadingThread(CPU)
    assert loading.submit(load).result() > 50  # one for each tensor that the network makes
    loading.close()


def test_elsewhere_each_asks_for_its_own_way() -> None:
    mine = Upload(CPU)
    with uploading(mine):
        assert upload_to(CPU) is mine
        assert upload_to(torch.device("meta")) is not mine
    assert upload_to(CPU) is not mine and not upload_to(CPU).gentle
