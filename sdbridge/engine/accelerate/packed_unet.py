"""The UNet's forward pass over its own modules, arranged for few and large kernels.

Same arithmetic as diffusers' ``UNet2DConditionModel`` (SD 1.5, 2.1, SDXL and their kin), other order of
work: pictures stay channels-last rows ``[B * h * w, C]`` all the way; what reads the same is one product
(``packed_weights.py``), and what hangs on the text or the timesteps alone need not be made in every frame
(``hoisted.py``); a layer's bias, residual and skip connection are added where the next normalisation reads
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sdbridge.engine.accelerate.cuda_graph import may_cut
from sdbridge.engine.accelerate.packed_weights import ADDED, Known, Packed
from sdbridge.engine.accelerate.unet_ops import Pending, Picture, UnetOps
from sdbridge.engine.image.seams import UnetCall

#: Kernels that one of each takes, about: where a capture may be cut.
_RESNET_KERNELS, _BLOCK_KERNELS = 8, 12
_DOWN = {"CrossAttnDownBlock2D", "DownBlock2D"}
_UP = {"CrossAttnUpBlock2D", "UpBlock2D"}
_MID = {"UNetMidBlock2DCrossAttn"}


def obstacle(unet: Any) -> str:
    """Why this UNet cannot run packed, or ''. Looks at structure, never at names of models."""
    if type(unet.conv_act).__name__ != "SiLU" or unet.time_embed_act is not None:
        return "another activation than SiLU"
    return unusual_parts(unet, (*unet.down_blocks, unet.mid_block, *unet.up_blocks))


def unusual_parts(network: Any, blocks: Sequence[Any]) -> str:
    """What in a network built like a UNet, of these blocks, cannot run packed, or ''."""
    for block in blocks:
        if type(block).__name__ not in _DOWN | _UP | _MID:
            return f"a {type(block).__name__}"
    if network.config.addition_embed_type not in (None, "text_time"):
        return f"addition_embed_type {network.config.addition_embed_type}"
    if network.class_embedding is not None or network.encoder_hid_proj is not None:
        return "a class embedding or a projection of the text"
    for module in network.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D" and (
            module.time_embedding_norm != "default"
            or module.output_scale_factor != 1.0
            or module.upsample is not None
            or module.downsample is not None
            or type(module.nonlinearity).__name__ != "SiLU"
            or module.time_emb_proj is None
        ):
            return "an unusual ResnetBlock2D"
        if kind == "BasicTransformerBlock":
            problem = _unusual_transformer(module)
            if problem:
                return problem
        if kind == "Transformer2DModel" and not module.is_input_continuous:
            return "a discrete transformer"
    return ""


def _unusual_transformer(block: Any) -> str:
    if block.norm_type != "layer_norm" or block.pos_embed is not None or block.only_cross_attention:
        return "an unusual transformer block"
    if block.attn2 is None or type(block.ff.net[0]).__name__ != "GEGLU":
        return "a transformer without cross-attention or GEGLU"
    for attention in (block.attn1, block.attn2):
        if attention.group_norm is not None or attention.norm_q is not None or attention.norm_cross:
            return "normalised attention"
        if attention.to_q.bias is not None or attention.residual_connection:
            return "attention with biases"
        if attention.rescale_output_factor != 1.0 or attention.spatial_norm is not None:
            return "rescaled attention"
    return ""


class Walk:
    """Where the pass stands: what is pending, and the pictures that the way up will want."""

    def __init__(self, ops: UnetOps, first: Pending, residuals: Iterator[Tensor]) -> None:
        self._ops = ops
        self._residuals = residuals
        self.pending = first
        self.owed = True  # the pending picture goes to the skips once it is settled
        self.skips: list[tuple[Picture, Tensor | None]] = []

    def settle(self, norm: Any | None = None, silu: bool = False) -> tuple[Picture, Picture]:
        """The pending picture complete, and normalised (the same again without a norm)."""
        here, normed = self._ops.settle(self.pending, norm, silu)
        if self.owed:
            self.skips.append((here, next(self._residuals, None)))
            self.owed = False
        return here, normed

    def settle_beside_skip(self, norm: Any) -> tuple[Picture, Picture]:
        skip, more = self.skips.pop()
        extra = None if more is None else Picture.of(more)
        return self._ops.settle(self.pending, norm, True, skip, extra)


class PackedUnet:
    """``run`` gives what ``unet(...)`` gives. Packs the modules' parameters in place when made.

    Make it before anything keeps references to the parameters' data (``WeightStore``): their
    addresses change once here and never again. Plain attention only: no processors of others, no
    arguments for them, no T2I-Adapter features (``fits`` tells).
    """

    def __init__(self, unet: Any, ops: UnetOps) -> None:
        why = obstacle(unet)
        if why:
            raise ValueError(f"this UNet has {why}")
        self._ops = ops
        self.packed = Packed(unet)

    @staticmethod
    def fits(call: UnetCall) -> str:
        """Why this call cannot run packed, or ''."""
        if call.cross_attention:
            return "attention processors take arguments"
        if call.intrablock_residuals is not None:
            return "a T2I-Adapter adds inside the blocks"
        if not call.added_cond.keys() <= set(ADDED):
            return "attention layers look at a style too"  # ``StyleImages`` marks its calls so
        return ""

    # --- running ---

    def run(self, call: UnetCall, ops: UnetOps | None = None, known: Known | None = None) -> Tensor:
        """The UNet's answer ``[B, C, h, w]``, in the call's dtype; by other operations if some are given.

        ``known`` is what depends on this call's timesteps and text alone, where somebody keeps it: of the
        call itself, sample and residuals are read then and nothing more.
        """
        known = known or self.packed.known(call)
        return Pass(self.packed, self._ops if ops is None else ops, call, known).run()


class Pass:
    """One forward pass: the packed weights, the operations, and what this call was given."""

    def __init__(self, packed: Packed, ops: UnetOps, call: UnetCall, known: Known) -> None:
        self._unet = packed.network
        self._packed = packed
        self._ops = ops
        self._call = call
        self._known = known
        self._batch = int(call.sample.shape[0])

    def begin(self) -> Walk:
        """The first convolution done."""
        call = self._call
        self._ops.begin(self._batch, call.sample.device)
        first = self._convolved(Picture.of(call.sample), self._unet.conv_in)
        return Walk(self._ops, first, iter(call.down_residuals or ()))

    def descend(self, walk: Walk) -> None:
        """The way down and the middle."""
        unet, batch, times = self._unet, self._batch, self._known.times
        for block in unet.down_blocks:
            attentions: Sequence[Any] = getattr(block, "attentions", ())
            for index, resnet in enumerate(block.resnets):
                walk.pending = self._resnet(*walk.settle(resnet.norm1, True), resnet, times)
                if attentions:
                    attention = attentions[index]
                    here, normed = walk.settle(attention.norm, False)
                    walk.pending = self._transformer(here, normed, attention, batch)
                walk.owed = True
            if block.downsamplers:
                here, _ = walk.settle()
                walk.pending = self._convolved(here, block.downsamplers[0].conv)
                walk.owed = True

        mid = unet.mid_block
        walk.pending = self._resnet(*walk.settle(mid.resnets[0].norm1, True), mid.resnets[0], times)
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            here, normed = walk.settle(attention.norm, False)
            walk.pending = self._transformer(here, normed, attention, batch)
            walk.pending = self._resnet(*walk.settle(resnet.norm1, True), resnet, times)

    def run(self) -> Tensor:
        unet, ops, call, batch, times = self._unet, self._ops, self._call, self._batch, self._known.times
        walk = self.begin()
        self.descend(walk)
        if call.mid_residual is not None:
            walk.pending = walk.pending.plus(Picture.of(call.mid_residual))

        for block in unet.up_blocks:
            attentions = getattr(block, "attentions", ())
            for index, resnet in enumerate(block.resnets):
                here, normed = walk.settle_beside_skip(resnet.norm1)
                walk.pending = self._resnet(here, normed, resnet, times)
                if attentions:
                    attention = attentions[index]
                    here, normed = walk.settle(attention.norm, False)
                    walk.pending = self._transformer(here, normed, attention, batch)
            if block.upsamplers:
                here, _ = walk.settle()
                to = walk.skips[-1][0]
                walk.pending = self._enlarged(here, to, block.upsamplers[0].conv)
        _, normed = walk.settle(unet.conv_norm_out, True)
        done, _ = ops.settle(self._convolved(normed, unet.conv_out), None)
        return done.tensor()

    def _enlarged(self, picture: Picture, to: Picture, conv: Any) -> Pending:
        doubled = (to.height, to.width) == (2 * picture.height, 2 * picture.width)
        if not doubled:  # an odd size on the way down
            picture = self._ops.upsample(picture, to.height, to.width)
        return Pending(self._ops.conv(picture, conv, doubled), conv.bias)

    def _convolved(self, picture: Picture, conv: Any) -> Pending:
        return Pending(self._ops.conv(picture, conv), conv.bias)

    def _resnet(self, here: Picture, normed: Picture, resnet: Any, times: Tensor) -> Pending:
        ops = self._ops
        hidden = ops.conv(normed, resnet.conv1)
        shift = times[:, self._packed.time_of[resnet]]
        hidden = ops.group_norm_shifted(hidden, resnet.conv1.bias, shift, resnet.norm2)
        hidden = ops.conv(hidden, resnet.conv2)
        residual = here
        if resnet.conv_shortcut is not None:
            shortcut = resnet.conv_shortcut
            residual = here.like(ops.linear(here.rows, shortcut.weight[:, :, 0, 0], shortcut.bias))
        may_cut(_RESNET_KERNELS)
        return Pending(hidden, resnet.conv2.bias, (residual,))

    def _transformer(self, here: Picture, normed: Picture, model: Any, batch: int) -> Pending:
        ops = self._ops
        hidden = ops.linear(normed.rows, matrix(model.proj_in.weight), model.proj_in.bias)
        blocks = list(model.transformer_blocks)
        even = ops.layer_norm(hidden, blocks[0].norm1)
        for index, block in enumerate(blocks):
            packed, heads = self._packed.heads[block], block.attn1.heads
            product = ops.linear(even, packed.qkv)
            query, key, value = product.chunk(3, dim=-1)
            out = block.attn1.to_out[0]
            layer = None if self._call.bank is None else self._call.bank.layers[block.attn1]
            if layer is not None:  # earlier frames' keys and values beside the frame's own
                fresh = product[:, query.shape[1] :].unflatten(0, (batch, -1))
                key, value = (tensor.flatten(0, 1) for tensor in layer.extend(fresh))
            seen = ops.attention(query, key, value, batch, heads)
            if layer is not None and layer.fuses:
                plain = ops.linear(seen, out.weight, out.bias)
                hidden.add_(layer.blend(plain.unflatten(0, (batch, -1))).flatten(0, 1))
                even = ops.layer_norm(hidden, block.norm2)
            else:
                even = ops.residual_norm(hidden, seen, out.weight, out.bias, block.norm2)
            query = ops.linear(even, block.attn2.to_q.weight)
            key, value = self._packed.read_text(self._known, block)
            seen = ops.attention(query, key, value, batch, block.attn2.heads)
            out = block.attn2.to_out[0]
            wide, narrow = block.ff.net[0].proj, block.ff.net[2]
            even = ops.residual_norm(hidden, seen, out.weight, out.bias, block.norm3, narrow.bias)
            gated = ops.geglu(even, wide.weight, wide.bias)
            following = blocks[index + 1].norm1 if index + 1 < len(blocks) else None
            even = ops.residual_norm(hidden, gated, narrow.weight, None, following)
            may_cut(_BLOCK_KERNELS)
        raw = ops.linear(hidden, matrix(model.proj_out.weight))
        return Pending(here.like(raw), model.proj_out.bias, (here,))


def matrix(weight: Tensor) -> Tensor:
    """A linear layer's weight, or that of a 1x1 convolution, as ``[out, in]``."""
    return weight if weight.ndim == 2 else weight[:, :, 0, 0]
