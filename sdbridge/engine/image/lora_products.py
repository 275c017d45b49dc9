"""What one layer of a LoRA file adds to its tensor: LoRA, LoCon, LoHa, LoKr, whole differences, DoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Of a norm, so that rows of zeros stay zeros.
_LEAST_NORM = 1e-12


def make_products(pieces: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """What a layer adds at weight 1, in float32: ``{"weight": ...}`` and perhaps ``{"bias": ...}``.

    alpha / rank scales it; a file without alpha means alpha = rank. Empty if pieces are missing.
    DoRA's magnitudes are not in it: see ``renormalised``.
    """
    made: dict[str, Tensor] = {}
    if "alpha" in pieces:
        alpha = float(pieces["alpha"].float().item())
    for make in (_lora_product, _loha_product, _lokr_product):
        found = make({key: piece.float() for key, piece in pieces.items()})
        if found is not None:
            product, rank = found
            made["weight"] = product * (alpha / rank if alpha is not None and rank else 1.0)
    if "diff" in pieces:
        made["weight"] = pieces["diff"].float()
    if "diff_b" in pieces:
        made["bias"] = pieces["diff_b"].float()
    return made


def renormalised(base: Tensor, product: Tensor, pieces: Mapping[str, Tensor]) -> Tensor | None:
    """DoRA (Liu et al. 2024, eq. 5): what ``m (W + BA) / |W + BA|`` adds to W, at weight 1.

    The norm is over each output row, as PEFT trains it and kohya's ``wd_on_output``, or over each input
    column where ``dora_scale`` has their number (LyCORIS' first form). ``base`` is W in float32; without
    magnitudes among ``pieces`` the product itself comes back. None: magnitudes of another size.
    """
    magnitude = pieces.get("magnitude", pieces.get("dora_scale"))
    if magnitude is None:
        return product
    merged = base + product.reshape(base.shape)
    rows, columns = int(base.shape[0]), int(base.shape[1])
    on_rows = "magnitude" in pieces or magnitude.shape[0] == rows
    if magnitude.numel() != (rows if on_rows else columns):
        return None
    axis = 0 if on_rows else 1
    others = [other for other in range(base.dim()) if other != axis]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True).clamp_min(_LEAST_NORM)
    return merged * (magnitude.float().reshape(norm.shape) / norm) - base


def _lora_product(piece: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """LoRA and LoCon: up times down, with a CP-decomposed kernel between them where there is one."""
    if "down" not in piece or "up" not in piece:
        return None
    down, up = piece["down"], piece["up"]
    rank = int(down.shape[0])
    if "mid" in piece:
        return torch.einsum("or,rskl,si->oikl", up.flatten(1), piece["mid"], down.flatten(1)), rank
    product = up.flatten(1) @ down.flatten(1)
    return product.reshape(up.shape[0], *down.shape[1:]), rank


def _loha_product(piece: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """LoHa: the elementwise product of two low-rank matrices (Hyeon-Woo et al., FedPara, 2021)."""
    if not {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= piece.keys():
        return None
    rank = int(piece["hada_w1_b"].shape[0])
    if "hada_t1" in piece and "hada_t2" in piece:
        halves = [_tucker(piece[f"hada_t{n}"], piece[f"hada_w{n}_a"], piece[f"hada_w{n}_b"]) for n in (1, 2)]
        return halves[0] * halves[1], rank
    one = piece["hada_w1_a"] @ piece["hada_w1_b"]
    return one * (piece["hada_w2_a"] @ piece["hada_w2_b"]), rank


def _lokr_product(piece: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """LoKr: the Kronecker product of a small matrix with a large one, either of them perhaps low-rank."""
    rank = 0
    factors: list[Tensor] = []
    for n in (1, 2):
        if f"lokr_w{n}" in piece:
            factors.append(piece[f"lokr_w{n}"])
        elif f"lokr_w{n}_a" in piece and f"lokr_w{n}_b" in piece:
            low, high = piece[f"lokr_w{n}_a"], piece[f"lokr_w{n}_b"]
            rank = int(high.shape[0])
            if f"lokr_t{n}" in piece:
                factors.append(_tucker(piece[f"lokr_t{n}"], low, high))
            else:
                factors.append((low @ high.flatten(1)).reshape(low.shape[0], *high.shape[1:]))
        else:
            return None
    one, other = factors
    while one.dim() < other.dim():
        one = one.unsqueeze(-1)
    return torch.kron(one.contiguous(), other.contiguous()), rank


def _tucker(core: Tensor, outs: Tensor, ins: Tensor) -> Tensor:
    """A convolution ``[out, in, k, k]`` from a core ``[r, s, k, k]``, ``[r, out]`` and ``[s, in]``."""
    return torch.einsum("rskl,ro,si->oikl", core, outs, ins)
