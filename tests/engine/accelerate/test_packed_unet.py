"""The packed forward pass is the diffusers UNet: same numbers for every family, with residuals or not."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdbridge.engine.accelerate.packed_unet import PackedUnet, obstacle
from sdbridge.engine.accelerate.packed_weights import together
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.image.upload import Upload

SMALL = {
    "block_out_channels": (32, 64, 64),
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "sample_size": 8,
}
KINDS = {
    "sd15": SMALL,
    "sd21": {**SMALL, "use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
    "sdxl": {
        **SMALL,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 1),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "guided": {**SMALL, "time_cond_proj_dim": 12, "layers_per_block": 1},
}


def build(kind: str) -> UNet2DConditionModel:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**KINDS[kind]).double().eval().requires_grad_(False)
    for parameter in unet.parameters():
        if parameter.ndim == 1:
            parameter.copy_(torch.rand_like(parameter))
    return unet


def make_call(kind: str, unet: UNet2DConditionModel, batch: int = 2, size: int = 16) -> UnetCall:
    torch.manual_seed(5)
    added = {}
    if kind == "sdxl":
        added = {
            "text_embeds": torch.randn(batch, 16).double(),
            "time_ids": torch.rand(batch, 6).double() * 64,
        }
    return UnetCall(
        sample=torch.randn(batch, 4, size, size).double(),
        timesteps=torch.tensor([359, 741][:batch]),
        encoder_hidden_states=torch.randn(batch, 7, 24).double(),
        added_cond=added,
        timestep_cond=torch.randn(batch, 12).double() if kind == "guided" else None,
    )


def plainly(unet: UNet2DConditionModel, call: UnetCall) -> torch.Tensor:
    return unet(
        call.sample,
        call.timesteps,
        encoder_hidden_states=call.encoder_hidden_states,
        timestep_cond=call.timestep_cond,
        added_cond_kwargs=dict(call.added_cond) or None,
        down_block_additional_residuals=call.down_residuals,
        mid_block_additional_residual=call.mid_residual,
        return_dict=False,
    )[0]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_packed_pass_gives_what_the_module_gives(kind: str) -> None:
    unet = build(kind)
    call = make_call(kind, unet)
    wanted = plainly(unet, call)
    packed = PackedUnet(unet, PlainOps())
    assert error(packed.run(call), wanted) < 1e-12
    assert error(plainly(unet, call), wanted) < 1e-12  # the module itself goes on working


@torch.no_grad()
def test_control_residuals_are_added_to_the_skips_and_the_middle() -> None:
    unet = build("sd21")
    call = make_call("sd21", unet)
    taken: list[torch.Tensor] = []

    def shapes(module, given, out) -> None:
        taken.append(out)

    hooks = [unet.conv_in.register_forward_hook(shapes)]
    for block in unet.down_blocks:
        for layer in block.attentions if hasattr(block, "attentions") else block.resnets:
            hooks.append(layer.register_forward_hook(lambda m, g, o: taken.append(getattr(o, "sample", o))))
        for sampler in block.downsamplers or ():
            hooks.append(sampler.register_forward_hook(shapes))
    plainly(unet, call)
    for hook in hooks:
        hook.remove()
    sizes = [out[0].shape if isinstance(out, tuple) else out.shape for out in taken]
    from dataclasses import replace

    down = tuple(torch.randn(shape).double() for shape in sizes)
    call = replace(call, down_residuals=down, mid_residual=torch.randn(sizes[-1]).double())
    wanted = plainly(unet, call)
    assert error(wanted, plainly(unet, make_call("sd21", unet))) > 0.01
    assert error(PackedUnet(unet, PlainOps()).run(call), wanted) < 1e-12


@torch.no_grad()
def test_a_weight_written_in_place_is_a_weight_of_the_packed_pass() -> None:
    unet = build("sd21")
    packed = PackedUnet(unet, PlainOps())
    call = make_call("sd21", unet)
    before = packed.run(call)
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn1.to_k.weight", "attn2.to_v.weight", "time_emb_proj.weight", "conv1.weight")):
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    assert error(packed.run(call), before) > 0.01
    assert error(packed.run(call), plainly(unet, call)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_were_loaded_side_by_side_are_packed_without_a_copy(kind: str) -> None:
    unet = build(kind)
    call, state = make_call(kind, unet), {name: t.clone() for name, t in unet.state_dict().items()}
    wanted = plainly(unet, call)
    upload = Upload(torch.device("cpu"), 4096, staged=True)
    brought = upload.bring(state, unet.dtype, channels_last=True, side_by_side=together(unet))
    unet.load_state_dict(brought, assign=True)
    places = {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}
    with torch.no_grad():
        packed = PackedUnet(unet, PlainOps())
        assert places == {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}
        assert error(packed.run(call), wanted) < 1e-12
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(2)
        assert error(packed.run(call), wanted) > 1e-6  # still the weights that it reads


def test_an_unusual_unet_is_refused_with_the_reason() -> None:
    torch.manual_seed(0)
    odd = UNet2DConditionModel(**{**SMALL, "resnet_time_scale_shift": "scale_shift"})
    assert "ResnetBlock2D" in obstacle(odd)
    with pytest.raises(ValueError, match="ResnetBlock2D"):
        PackedUnet(odd, PlainOps())
    assert obstacle(build("sd15")) == ""
    assert PackedUnet.fits(make_call("sd15", odd)) == ""
