"""Kernels measured on this card: what is asked is timed once, with time left, and the next start takes it."""

from __future__ import annotations

import itertools

import pytest
import torch

from sdbridge.engine.accelerate import measured
from sdbridge.engine.accelerate.kernels.linear import Problem, default_way
from sdbridge.engine.accelerate.kernels.tuning import Timing, Tuner
from sdbridge.engine.accelerate.kernels.unet_conv import ConvProblem
from sdbridge.engine.accelerate.measured import MeasuredKernels, measured_on
from sdbridge.engine.interface import Progress

CPU = torch.device("cpu")
LINEAR, CONV = Problem(256, 320, 320, bias=True), ConvProblem(1, 16, 16, 320, 320)


def last_is_fastest(problem, device) -> list[Timing]:
    return [Timing(problem.candidates()[-1], 1.0), Timing("library", 2.0)]


def kernels(file, identity="a card") -> MeasuredKernels:
    return MeasuredKernels(Tuner(file, {"card": identity}, last_is_fastest))


def test_what_was_asked_is_measured_once_and_taken_by_the_next_start(tmp_path) -> None:
    ours = kernels(tmp_path / "m.json")
    assert ours.linear(LINEAR) == default_way(LINEAR) and ours.conv(CONV) == "library"
    assert ours.digest == "" and len(ours.missing()) == 2
    told: list[Progress] = []
    ticks = itertools.count(0.0, 10.0)
    assert ours.measure(CPU, told.append, lambda: next(ticks)) == 2
    assert [(event.done, event.total, event.left_s) for event in told] == [
        (0, 2, None),
        (1, 2, 10.0),
        (2, 2, 0.0),
    ]
    assert {event.stage for event in told} == {"measure"}
    assert ours.measure(CPU, told.append) == 0 and len(told) == 3

    again = kernels(tmp_path / "m.json")
    assert again.linear(LINEAR) == ours.linear(LINEAR) != default_way(LINEAR)
    assert again.conv(CONV) == ours.conv(CONV) != "library"
    assert again.digest == ours.digest != "" and not again.missing()
    assert kernels(tmp_path / "m.json", "another card").digest == ""


def test_who_breaks_off_keeps_what_was_measured(tmp_path) -> None:
    ours = kernels(tmp_path / "m.json")
    ours.linear(LINEAR)
    ours.conv(CONV)

    def stop(event: Progress) -> None:
        if event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.measure(CPU, stop)
    again = kernels(tmp_path / "m.json")
    again.linear(LINEAR)
    again.conv(CONV)
    assert len(again.missing()) == 1


@pytest.mark.parametrize(
    ("capability", "ours"), [((9, 0), False), ((8, 9), True), ((8, 0), True), ((10, 0), True)]
)
def test_hopper_has_its_shipped_table(tmp_path, monkeypatch, capability, ours: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(measured, "identity_of", lambda device: {"card": str(capability)})
    found = measured_on(torch.device("cuda"), tmp_path)
    assert (found is not None) == ours
    assert measured_on(CPU, tmp_path) is None


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_card_is_measured_in_earnest(tmp_path) -> None:
    """Small problems, all candidates: whatever wins is right (the tuner looks) and is kept."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    ours = MeasuredKernels(Tuner(tmp_path / "m.json", {"card": "here"}))
    ours.linear(Problem(256, 320, 320, geglu=True))
    ours.conv(ConvProblem(1, 8, 8, 320, 320))
    told: list[Progress] = []
    assert ours.measure(device, told.append) == 2 and told[-1].left_s == 0.0
    assert not ours.missing() and ours.digest
