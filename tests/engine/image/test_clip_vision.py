"""Our CLIP image encoder against transformers' own, and the published shapes of its two large forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdbridge.engine.image import parts
from sdbridge.engine.image.clip_vision import ClipVision, ClipVisionStates
from sdbridge.engine.image.skeleton import shapes_of, skeleton
from sdbridge.errors import SdbridgeError
from sdbridge.models.embedded_model import EMBEDDED_DIR

SMALL: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "projection_dim": 20, "num_hidden_layers": 4,
    "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
}  # fmt: skip
#: As the config.json of the published image_encoder folders say it (h94/IP-Adapter).
VIT_H: dict[str, Any] = {
    "hidden_act": "gelu", "hidden_size": 1280, "image_size": 224, "intermediate_size": 5120,
    "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3,
    "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024,
}  # fmt: skip
BIG_G: dict[str, Any] = {
    **VIT_H, "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "projection_dim": 1280,
}  # fmt: skip


def theirs(config: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    made = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    with torch.no_grad():  # as transformers fills them, attention looks nowhere in particular
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def pixels(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def assert_same(got: ClipVisionStates, wanted: Any, most: float) -> None:
    assert len(got.hidden_states) == len(wanted.hidden_states)
    pairs = [*zip(got.hidden_states, wanted.hidden_states, strict=True)]
    pairs += [(got.last_hidden_state, wanted.last_hidden_state), (got.image_embeds, wanted.image_embeds)]
    for mine, other in pairs:
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert float((mine - other).abs().max()) <= most * float(other.abs().max())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
@torch.inference_mode()
def test_it_gives_what_transformers_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, dtype: torch.dtype, most: float
) -> None:
    monkeypatch.setattr(parts, "_read_by_library", None)  # not asked
    other = theirs({**SMALL, "hidden_act": act}).to(dtype)
    other.save_pretrained(tmp_path)
    ours = parts.read_part(ClipVision, tmp_path, dtype, False)
    assert ours.config.image_size == 32 and next(ours.parameters()).dtype == dtype
    given = pixels(32).to(dtype)
    assert_same(ours(given), other(given, output_hidden_states=True), most)


@torch.inference_mode()
def test_the_embedded_encoder_is_read_alike() -> None:
    from transformers import CLIPVisionModelWithProjection

    folder = EMBEDDED_DIR / "ip_adapter" / "image_encoder"
    other = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
    ours = parts.read_part(ClipVision, folder, torch.float32, False)
    assert_same(ours(pixels(64)), other(pixels(64), output_hidden_states=True), 1e-6)


@pytest.mark.parametrize("config", [VIT_H, BIG_G], ids=["ViT-H", "bigG"])
def test_the_published_sizes_have_the_published_weights(config: dict[str, Any]) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with skeleton():
        ours, other = (
            ClipVision.from_config(config),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**config)),
        )
    assert shapes_of(ours) == shapes_of(other)


@torch.inference_mode()
def test_the_vision_half_of_a_whole_clip_is_taken(tmp_path: Path) -> None:
    other = theirs(SMALL)
    whole = {
        "model_type": "clip",
        "projection_dim": 20,
        "hidden_act": "gelu",
        "text_config": {"hidden_size": 9},
    }
    (tmp_path / "config.json").write_text(json.dumps({**whole, "vision_config": SMALL}))
    state = {
        key: value.contiguous() for key, value in other.state_dict().items() if "position_ids" not in key
    }
    state |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(9)}
    save_file(state, tmp_path / "model.safetensors")
    ours = parts.read_part(ClipVision, tmp_path, torch.float32, False)
    assert ours.config.hidden_size == 48
    assert_same(ours(pixels(32)), other(pixels(32), output_hidden_states=True), 1e-6)


@torch.inference_mode()
def test_a_pickle_goes_through_transformers(tmp_path: Path) -> None:
    other = theirs(SMALL)
    other.config.save_pretrained(tmp_path)
    torch.save(other.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SdbridgeError, match="SDB-MODEL-PICKLE"):
        parts.read_part(ClipVision, tmp_path, torch.float32, False)
    ours = parts.read_part(ClipVision, tmp_path, torch.float32, True)
    assert isinstance(ours, ClipVision)
    assert_same(ours(pixels(32)), other(pixels(32), output_hidden_states=True), 1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"hidden_act": "swish"}, "swish"), ({"num_attention_heads": 5}, "48")]
)
def test_what_we_do_not_compute_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SdbridgeError, match=f"SDB-MODEL-PARTS.*image encoder.*{said}"):
        ClipVision.from_config({**SMALL, **wrong})
