"""The attention choice: PyTorch's own, or xFormers' through the names its documentation has and no others."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.config import load_config
from sdbridge.engine.accelerate import attention
from sdbridge.engine.accelerate.attention import XformersAttention, choose_attention, pytorch_attention
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.making import engine_config
from tests.engine.accelerate.test_packed_unet import KINDS, build, error, make_call
from tests.engine.image.rig import Rig, frame, relative


class FakeOps:
    """``xformers.ops`` as documented: one function, its arguments, its layout. Everything else raises."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.refuses = refuses

    def memory_efficient_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
        *,
        op: object | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        batch, _, heads, width = query.shape  # [B, M, H, K]
        assert key.shape == value.shape and key.shape[::2] == (batch, heads) and key.shape[3] == width
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert attn_bias is None and p == 0.0 and scale is None
        if self.refuses is not None:
            raise self.refuses
        self.calls.append(tuple(query.shape))
        weights = torch.einsum("bmhk,bnhk->bhmn", query, key).mul(width**-0.5).softmax(-1)
        return torch.einsum("bhmn,bnhk->bmhk", weights, value)


@pytest.fixture
def ops(monkeypatch) -> FakeOps:
    fake = FakeOps()
    package = SimpleNamespace(__version__="0.0.33", ops=fake)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", fake)
    monkeypatch.setattr(attention, "_blank", lambda device: torch.zeros(1, 16, 1, 64))
    return fake


def test_pytorchs_own_is_what_auto_takes(ops) -> None:
    for choice in ("auto", "pytorch"):
        assert choose_attention(choice, torch.device("cuda")) == (pytorch_attention, "")
    query, key = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8)
    given = [tensor.transpose(1, 2) for tensor in (query, key, key)]
    wanted = functional.scaled_dot_product_attention(*given).transpose(1, 2)
    assert torch.equal(pytorch_attention(query, key, key), wanted) and not ops.calls


def test_xformers_is_taken_where_it_is_asked_for_and_here(ops) -> None:
    attend, why = choose_attention("xformers", torch.device("cuda"))
    assert isinstance(attend, XformersAttention) and "0.0.33" in why


@pytest.mark.parametrize("missing", ["package", "kernels", "function", "card", "operators"])
def test_where_it_cannot_be_used_one_line_says_so(ops, monkeypatch, caplog, missing: str) -> None:
    device = torch.device("cpu" if missing == "card" else "cuda")
    if missing == "package":
        monkeypatch.setitem(sys.modules, "xformers.ops", None)
    elif missing == "kernels":

        def broken(name: str):
            raise OSError("libcudart.so.12: cannot open shared object file")

        monkeypatch.setattr(attention.importlib, "import_module", broken)
    elif missing == "function":
        monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace())
    elif missing == "operators":  # built for another torch, as seen on an H200: it imports all the same
        ops.refuses = NotImplementedError("No operator found for `memory_efficient_attention_forward`\nmore")
    attend, why = choose_attention("xformers", device)
    assert attend is pytorch_attention and "PyTorch's attention runs instead" in why
    assert len(caplog.records) == 1 and "more" not in why


def test_a_refused_shape_runs_by_pytorchs_and_is_said_once(caplog) -> None:
    fake = FakeOps(NotImplementedError("No operator found for `memory_efficient_attention_forward`\nmore"))
    attend = XformersAttention(fake)
    query = torch.randn(1, 5, 2, 8)
    for _ in range(3):
        assert torch.equal(attend(query, query, query), pytorch_attention(query, query, query))
    assert len(caplog.records) == 1 and "No operator found" in caplog.text and "more" not in caplog.text
    fake.refuses = None
    wide = torch.randn(1, 6, 2, 8)
    assert error(attend(wide, wide, wide), pytorch_attention(wide, wide, wide)) < 1e-5
    assert fake.calls == [(1, 6, 2, 8)]  # the other shape; the refused one is not asked again


def test_no_memory_is_no_refusal() -> None:
    attend = XformersAttention(FakeOps(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        attend(*[torch.zeros(1, 2, 1, 8)] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_unet_attends_by_it(kind: str) -> None:
    unet, fake = build(kind), FakeOps()
    call = make_call(kind, unet)
    with torch.inference_mode():
        wanted = PackedUnet(unet, PlainOps()).run(call)
        found = PackedUnet(unet, PlainOps(XformersAttention(fake))).run(call)
    assert fake.calls and error(found, wanted) < 1e-10


@pytest.mark.parametrize("values", [{}, {"feature_bank.enabled": True}])
def test_eager_and_the_feature_bank_attend_by_it(checkpoint, monkeypatch, values) -> None:
    fake = FakeOps()
    found = {}
    for choice in ("pytorch", "xformers"):
        attend = pytorch_attention if choice == "pytorch" else XformersAttention(fake)
        monkeypatch.setattr(
            "sdbridge.engine.image.painter.choose_attention", lambda *given, a=attend: (a, "as the test says")
        )
        rig = Rig(checkpoint(), {"scheduler": "lcm", **values}, dtype="float64")
        found[choice] = [rig.latent_of(frame(k)).clone() for k in range(3)]
        assert "as the test says" in rig.engine.warm_up(64, 64).why
        rig.engine.unload()
    layers = {shape[1] for shape in fake.calls}
    assert len(layers) > 1
    for ours, theirs in zip(found["xformers"], found["pytorch"], strict=True):
        assert relative(ours, theirs) < 1e-9


def test_the_choice_travels_from_the_file_to_the_engine(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("engine: {attention: xformers}")
    assert engine_config(load_config(tmp_path / "c.yaml").engine, {}).attention == "xformers"
    assert engine_config(load_config(None).engine, {}).attention == "auto"
