"""Memory counted from headers: right to the byte for weights, sane for pictures, clear for broken files."""

import json
import struct

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.models.footprint import CONTEXT_BYTES, footprint, tensor_shapes


def safetensors(file, shapes):
    offset, header = 0, {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return file


def test_shapes_come_from_the_header(tmp_path):
    file = safetensors(tmp_path / "a.safetensors", {"w": (3, 4), "b": (4,)})
    assert tensor_shapes(file) == {"w": (3, 4), "b": (4,)}


def test_a_folder_is_counted_part_by_part_and_twins_once(tmp_path):
    safetensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {"conv_in.weight": (320, 4, 3, 3)})
    safetensors(
        tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"conv_in.weight": (320, 4, 3, 3)}
    )
    safetensors(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"w": (10, 10)})
    counted = footprint(tmp_path, 512, 512)
    assert dict(counted.weights) == {"unet": 320 * 4 * 9 * 2, "vae": 200}
    assert counted.total == 320 * 4 * 9 * 2 + 200 + counted.activations + CONTEXT_BYTES


def test_more_rows_and_larger_pictures_take_more(tmp_path):
    file = safetensors(
        tmp_path / "m.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
    )
    small, rows, large = (footprint(file, *size) for size in ((512, 512, 1), (512, 512, 4), (1024, 1024, 1)))
    assert small.activations < rows.activations < 4 * small.activations
    assert large.activations == 4 * small.activations
    assert "checkpoint" in small.describe() and small.describe().endswith("GB")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["empty", "short", "huge header", "no json", "a list"],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(SdbridgeError, match="SDB-MODEL-CORRUPT") as caught:
        tensor_shapes(file)
    assert "broken.safetensors" in str(caught.value)
