"""How pictures go through SdBridge: which operator sends and receives, fitted and flipped how."""

from __future__ import annotations

from typing import Any

import pytest

from tests.td.conftest import Desk
from tests.td.fake_td import Host

SENDERS = ("spout", "ndi", "sharedmem")


def value(desk: Desk, op: str, par: str) -> Any:
    return desk.comp.op(op).par[par].eval()


def wired(desk: Desk, *inputs: int) -> None:
    for index in inputs:
        desk.comp.inputConnectors[index].connect(desk.host.root.create("constantTOP", f"picture{index}"))
    desk.host.step()


@pytest.mark.parametrize(
    ("transport", "kind"), [("spoutsyphon", "spout"), ("ndi", "ndi"), ("sharedmem", "sharedmem")]
)
def test_one_kind_sends_and_receives(desk: Desk, transport: str, kind: str) -> None:
    desk.par.Transport = transport
    wired(desk, 0)
    for sender in SENDERS:
        assert value(desk, f"{sender}_image_out", "active") is (sender == kind)
        assert value(desk, f"{sender}_control_out", "active") is False  # nothing is wired there
    name = "sendername" if kind == "spout" else "name"
    assert value(desk, f"{kind}_image_out", name) == "TD image"
    assert value(desk, f"{kind}_generated_in", name) == "sdbridge"
    assert value(desk, f"{kind}_processed_in", name) == "sdbridge control"
    assert value(desk, "generated_transport", "index") == value(desk, "processed_transport", "index")
    receiver = desk.comp.op("generated_transport").inputs[int(value(desk, "generated_transport", "index"))]
    assert receiver.name == f"{kind}_generated_in"


def test_an_image_goes_through_fit_and_flip_to_the_sender_and_comes_back_to_the_output(desk: Desk) -> None:
    def upstream(op: str) -> list[str]:
        """The first input, and its first input, to the end."""
        names, at = [op], desk.comp.op(op)
        while at.inputs:
            at = at.inputs[0]
            names.append(at.name)
        return names

    assert upstream("spout_image_out") == ["spout_image_out", "flip_image", "fit_image", "in1"]
    assert upstream("ndi_control_out") == ["ndi_control_out", "flip_control", "fit_control", "in2"]
    assert upstream("out1") == [
        "out1", "fade", "hold", "flip_generated", "generated_transport", "spout_generated_in",
    ]  # fmt: skip
    assert upstream("out2") == ["out2", "flip_processed", "processed_transport", "spout_processed_in"]
    assert [op.name for op in desk.comp.op("fallback").inputs] == ["black", "fallback_image", "fit_image"]


@pytest.mark.parametrize(
    ("fit", "td"), [("fill", "fitoutside"), ("fit", "fitbest"), ("stretch", "fill"), ("native", "nativeres")]
)
def test_fit_brings_the_image_to_the_engines_size(desk: Desk, fit: str, td: str) -> None:
    desk.par.Fitmode, desk.par.Width, desk.par.Height = fit, 768, 448
    wired(desk, 0, 1)
    for op in ("fit_image", "fit_control"):
        assert value(desk, op, "fit") == td
        assert value(desk, op, "outputresolution") == ("useinput" if fit == "native" else "custom")
        if fit != "native":
            assert (value(desk, op, "resolutionw"), value(desk, op, "resolutionh")) == (768, 448)


def test_flips_go_one_way_each(desk: Desk) -> None:
    desk.par.Flipinput = True
    desk.host.step()
    assert [value(desk, f"flip_{p}", "flipy") for p in ("image", "control", "generated", "processed")] == [
        True, True, False, False,
    ]  # fmt: skip
    desk.par.Flipinput, desk.par.Flipoutput = False, True
    desk.host.step()
    assert [value(desk, f"flip_{p}", "flipy") for p in ("image", "control", "generated", "processed")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_nothing_is_sent_without_input_name_or_when_off(desk: Desk) -> None:
    assert not any(value(desk, f"{s}_image_out", "active") for s in SENDERS)
    wired(desk, 0)
    assert value(desk, "spout_image_out", "active")
    desk.par.Inputname = ""
    desk.host.step()
    assert not value(desk, "spout_image_out", "active")
    desk.par.Inputname = "mine"
    desk.host.step()
    assert value(desk, "spout_image_out", "active")
    desk.par.Active = False
    desk.host.step()
    assert not value(desk, "spout_image_out", "active") and not value(desk, "ndi_generated_in", "active")


def test_what_somebody_turns_off_inside_is_put_right_within_a_second(desk: Desk) -> None:
    wired(desk, 0)
    desk.comp.op("spout_image_out").par.active = False
    desk.later_s += 1.1
    desk.host.step()
    assert value(desk, "spout_image_out", "active") is True


def test_two_components_keep_to_themselves(host: Host) -> None:
    one = Desk(host)
    from sdbridge_td.build import boot_text, code_texts, install
    from tests.td.conftest import COMPONENTS

    two: Any = install(
        host.root, "SdBridge", code_texts(COMPONENTS, "SdBridge"), boot_text(COMPONENTS), "second"
    )
    two.par.Outputname = "sdbridge 2"
    two.par.Strength = 0.1
    host.step()
    assert two.op("spout_generated_in").par.sendername.eval() == "sdbridge 2"
    assert value(one, "spout_generated_in", "sendername") == "sdbridge"
    assert one.par.Strength.eval() != 0.1
    assert one.ext is not two.ext.Sdbridge
    assert type(one.ext) is type(two.ext.Sdbridge)  # one version, one package
    assert one.ext.link is not two.ext.Sdbridge.link
