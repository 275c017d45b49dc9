"""Names on the true architectures (without weights): what real LoRA and IP-Adapter files say is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdbridge.engine.image.lora_names import TensorNames
from sdbridge.engine.image.style_files import cross_attention_layers
from sdbridge.engine.image.style_layers import layer_factors
from sdbridge.engine.image.weights import WeightStore
from sdbridge.models.random_weights import SIZES


def hollow_unet(size: str) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**SIZES[size].unet)


@pytest.mark.parametrize(
    ("size", "key", "module"),
    [
        (
            "sd15",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("sd15", "lora_unet_up_blocks_3_resnets_2_conv_shortcut", "up_blocks.3.resnets.2.conv_shortcut"),
        (
            "sd15",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        ),
        (
            "sdxl-turbo",
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        ),
        ("sdxl-turbo", "lora_unet_input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        (
            "sdxl-turbo",
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        ),
        (
            "sdxl-turbo",
            "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_out_0",
            "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0",
        ),
        ("sdxl-turbo", "lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("sdxl-turbo", "lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("sdxl-turbo", "lora_unet_output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("sdxl-turbo", "lora_unet_input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
        ("sdxl-turbo", "lora_unet_label_emb_0_2", "add_embedding.linear_2"),
        ("sdxl-turbo", "lora_unet_out_2", "conv_out"),
    ],
)
def test_real_keys_find_their_layer(size: str, key: str, module: str) -> None:
    unet = hollow_unet(size)
    assert TensorNames(WeightStore({"unet": unet}), unet.config).find(key) == f"unet.{module}"


def test_adapter_layers_are_numbered_and_chosen_as_in_the_published_files() -> None:
    """SD 1.5 adapters have 16 layers, SDXL's 70; InstantStyle's two blocks of SDXL have ten layers each."""
    names = {
        size: [n for n, _ in cross_attention_layers(hollow_unet(size))] for size in ("sd15", "sdxl-turbo")
    }
    assert (len(names["sd15"]), len(names["sdxl-turbo"])) == (16, 70)
    order = [name.removesuffix(".processor") for name in hollow_unet("sd15").attn_processors]
    assert names["sd15"] == [name for name in order if name.endswith("attn2")]
    for kind, block in (
        ("style", "up_blocks.0.attentions.1."),
        ("composition", "down_blocks.2.attentions.1."),
    ):
        factors = layer_factors(names["sdxl-turbo"], "sdxl", kind)
        chosen = [name for name, factor in zip(names["sdxl-turbo"], factors, strict=True) if factor]
        assert len(chosen) == 10 and all(name.startswith(block) for name in chosen)
