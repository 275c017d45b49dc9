"""SdBridge in the fake TouchDesigner against the daemon's real OSC server, over real UDP."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.td.conftest import Desk
from tests.td.fake_td import ParMode, export_to, say
from tests.td.small_daemon import SmallDaemon, end, start_process


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[SmallDaemon]:
    daemon = SmallDaemon(tmp_path / "presets")
    yield daemon
    daemon.close()


def online(desk: Desk, port: int) -> None:
    desk.connect(port)
    desk.until(lambda: desk.status.startswith("online"), "the daemon is heard")
    desk.later_s += 1.0
    desk.until(lambda: desk.ext._sync_ends is not None, "everything is asked for")
    desk.frames(20)
    desk.later_s += 2.0
    desk.until(lambda: desk.ext._sync_ends is None, "everything has come")
    desk.until(lambda: desk.status.startswith("online"), "and it is still there")


def test_a_parameter_moves_the_daemon(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.par.Strength = 0.25
    desk.until(lambda: daemon.store.get("strength") == pytest.approx(0.25), "strength arrives")
    desk.par.Prompt0text = "ein Wald im Nebel, 森"
    desk.until(lambda: daemon.store.get("prompt.1.text") == "ein Wald im Nebel, 森", "slot 1 is block 0")
    desk.par.Guidancemode = "full"
    desk.par.Addnoise = False
    desk.until(lambda: daemon.store.get("guidance_mode") == "full", "a menu arrives by name")
    assert daemon.store.get("add_noise") is False


def test_the_daemons_echo_moves_the_parameter(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    daemon.store.set_many({"strength": 0.75, "guidance_mode": "initialize", "steps": 3}, "someone")
    desk.until(lambda: desk.par.Strength.eval() == 0.75, "strength comes back")
    assert desk.par.Guidancemode.eval() == "initialize"
    assert desk.par.Steps.eval() == 3


def test_slots_from_one_are_blocks_from_zero_and_appear_when_used(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    assert desk.comp.seq.Prompt.numBlocks == 1
    daemon.store.set_many({"prompt.3.text": "sea", "prompt.3.weight": 0.5}, "someone")
    desk.until(
        lambda: desk.par["Prompt2text"] is not None and desk.par.Prompt2text.eval() == "sea", "slot 3 shows"
    )
    assert desk.comp.seq.Prompt.numBlocks == 3
    assert desk.par.Prompt2weight.eval() == 0.5
    assert desk.par.Prompt1weight.eval() == 0.0  # as the daemon has it: later slots start without weight
    desk.comp.seq.Prompt.numBlocks = 2
    desk.until(lambda: daemon.store.get("prompt.3.text") == "", "a block taken away empties its slot")
    assert daemon.store.get("prompt.3.weight") == 0.0


def test_a_block_that_is_added_shows_what_the_daemon_has_there(desk: Desk, daemon: SmallDaemon) -> None:
    daemon.store.set("lora.3.weight", -0.5, "someone")
    online(desk, daemon.port)
    assert desk.comp.seq.Lora.numBlocks == 3  # not its default, so it shows
    desk.comp.seq.Lora.numBlocks = 1
    desk.until(lambda: daemon.store.get("lora.3.weight") == 1.0, "emptied")
    daemon.store.set("prompt.2.weight", 0.0, "someone")  # the default of a later slot: not shown
    desk.frames(5)
    assert desk.comp.seq.Prompt.numBlocks == 1
    desk.comp.seq.Prompt.numBlocks = 2
    desk.par.Prompt1weight.val = 0.9  # wrong on purpose, before the daemon was asked
    desk.host.changes.clear()
    desk.until(lambda: desk.par.Prompt1weight.eval() == 0.0, "the daemon's weight")


def test_sixty_parameters_of_one_frame_leave_as_one_bundle(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    names = desk.ext.names
    desk.comp.seq.Controlnet.numBlocks = 8
    desk.frames(150)
    before_sent, before_revision = desk.ext.link.datagrams_sent, daemon.store.revision
    changed = {}
    for name, row in names.rows.items():
        par = desk.par[names.par(name)]
        if par is None or row.kind not in ("float", "bool") or len(changed) == 60:
            continue
        target = (not par.eval()) if row.kind == "bool" else (row.minimum + row.maximum) / 2 + 0.01
        if par.eval() != target:
            par.val = target
            changed[name] = target
    assert len(changed) == 60
    desk.ext.link._renew_at = desk.now() + 60  # the subscription's own datagram must not be counted
    desk.host.step()
    assert desk.ext.link.datagrams_sent - before_sent == 1
    last = next(iter(reversed(changed)))
    desk.until(lambda: daemon.store.get(last) == pytest.approx(changed[last]), "all arrive")
    assert daemon.store.revision == before_revision + 1
    for name, value in changed.items():
        assert daemon.store.get(name) == pytest.approx(value), name


def test_no_feedback_loop(desk: Desk, daemon: SmallDaemon) -> None:
    """What the daemon says is not said back, however long one listens, and neither is our own."""
    online(desk, daemon.port)
    daemon.store.set_many({"strength": 0.1, "delta": 0.7, "seed_walk_speed": 1 / 3}, "someone")
    desk.par.Guidancescale = 1.1
    desk.until(lambda: desk.par.Strength.eval() == 0.1, "the echo is here")
    desk.frames(5)
    revision = daemon.store.revision
    desk.ext.link._renew_at = desk.now() + 60  # the subscription's own datagrams must not be counted
    sent = desk.ext.link.datagrams_sent
    daemon.store.set_many({"strength": 0.15, "delta": 0.75, "prompt.1.text": "said to it"}, "someone")
    desk.until(lambda: desk.par.Strength.eval() == 0.15, "another echo")
    desk.frames(100)
    assert desk.ext.link.datagrams_sent == sent  # not one of them was said back
    assert daemon.store.revision == revision + 1
    assert desk.par.Guidancescale.eval() == 1.1
    assert desk.par.Seedwalkspeed.eval() == pytest.approx(1 / 3, rel=1e-6)


def test_an_old_value_that_comes_in_the_frame_of_a_change_does_not_undo_it(
    desk: Desk, daemon: SmallDaemon
) -> None:
    """A refresh brings what the daemon had; what was typed in that very frame is still to be sent."""
    online(desk, daemon.port)
    desk.par.Prompt0text = "just typed"
    desk.ext._hear([("/sdbridge/prompt/1/text", ("",)), ("/sdbridge/strength", (0.6,))], desk.now())
    assert desk.par.Prompt0text.eval() == "just typed"
    desk.until(lambda: daemon.store.get("prompt.1.text") == "just typed", "it arrives")


def test_an_echo_that_crosses_a_change_is_set_aside_and_asked_for_again(
    desk: Desk, daemon: SmallDaemon
) -> None:
    """The daemon heard us after what it echoes: it will not tell us again, so the echo must not win."""
    online(desk, daemon.port)
    desk.par.Strength = 0.2
    desk.host.step()  # sent
    desk.ext._hear([("/sdbridge/strength", (0.9,))], desk.now())
    assert desk.par.Strength.eval() == 0.2
    assert "strength" in desk.ext._doubted
    desk.until(lambda: desk.ext._doubted == {}, "asked again")
    desk.frames(30)
    assert desk.par.Strength.eval() == 0.2 == pytest.approx(daemon.store.get("strength"))
    desk.par.Strength = 0.3
    desk.host.step()
    desk.until(lambda: daemon.store.get("strength") == pytest.approx(0.3), "ours arrives")
    daemon.store.set("strength", 0.8, "someone")  # and this time the other one is later
    desk.until(
        lambda: desk.par.Strength.eval() == pytest.approx(daemon.store.get("strength")), "the later one"
    )


def test_two_components_and_a_fader_agree_in_the_end(desk: Desk, daemon: SmallDaemon) -> None:
    """Changes that cross on the wire: whoever the daemon heard last is right, and everybody shows it."""
    from sdbridge_td.build import boot_text, code_texts, install
    from tests.td.conftest import COMPONENTS

    online(desk, daemon.port)
    second = install(
        desk.host.root, "SdBridge", code_texts(COMPONENTS, "SdBridge"), boot_text(COMPONENTS), "SdBridge2"
    )
    second.par.Connection, second.par.Oscport = "manual", daemon.port
    desk.until(lambda: second.par.Status.eval().startswith("online"), "both are online")
    desk.frames(20)
    for turn in range(10):
        desk.par.Strength = turn / 20
        second.par.Strength = 0.5 + turn / 20
        daemon.store.set("strength", 0.33 + turn / 100, "fader")
        desk.host.step()
    desk.until(
        lambda: (
            desk.par.Strength.eval()
            == second.par.Strength.eval()
            == pytest.approx(daemon.store.get("strength"))
        ),
        "all three show the same",
    )


@pytest.mark.parametrize("how", ["expression", "export", "bind"])
def test_a_driven_parameter_is_never_overwritten(desk: Desk, daemon: SmallDaemon, how: str) -> None:
    online(desk, daemon.port)
    par = desk.par.Strength
    if how == "expression":
        par.expr = "0.4"
    elif how == "bind":
        desk.par.Delta = 0.4
        par.bindExpr = "me.par.Delta"
    else:
        export_to(par, 0.4)
    mode = par.mode
    desk.frames(20)
    daemon.store.set("strength", 0.9, "someone")
    desk.until(lambda: "Strength is driven" in desk.status, "Status says so")
    assert par.mode is mode and par.mode is not ParMode.CONSTANT
    assert par.eval() == 0.4
    assert desk.status.startswith("online")


def test_an_expression_goes_out_as_it_changes(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.par.Strength.expr = "0.42"
    desk.until(lambda: daemon.store.get("strength") == pytest.approx(0.42), "its value arrives")


def test_an_expression_that_fails_stops_nothing(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.par.Strength.expr = "1 / 0"
    desk.par.Holdafter.expr = "op('nowhere').par.x"
    desk.until(lambda: "cannot be evaluated" in desk.status, "Status says so")
    desk.par.Delta = 0.5
    desk.until(lambda: daemon.store.get("delta") == 0.5, "the rest goes on")
    assert "internal fault" not in desk.status


def test_what_the_daemon_rounds_we_round(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.par.Width = 517
    desk.until(lambda: daemon.store.get("width") == 520, "a multiple of 8")
    assert desk.par.Width.eval() == 520


def test_triggers_fire_once_each(desk: Desk, daemon: SmallDaemon) -> None:
    fired: list[str] = []
    daemon.store.subscribe(lambda change: fired.extend(change.triggers))
    online(desk, daemon.port)
    desk.par.Enginereset.pulse()
    desk.par.Enginereset.pulse()
    desk.until(lambda: fired == ["engine.reset"] * 2, "both arrive")
    desk.par.Panic.pulse()
    desk.until(lambda: "panic" in fired, "panic arrives")
    assert desk.par.Outputblack.eval() is True
    assert desk.comp.op("fade").par.cross.eval() == 1.0


def test_texts_wait_for_apply(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.par.Liveprompt = False
    desk.par.Prompt0text = "later"
    desk.until(lambda: "wait for Apply" in desk.status, "Status says so")
    assert daemon.store.get("prompt.1.text") == ""
    desk.par.Applyprompt.pulse()
    desk.until(lambda: daemon.store.get("prompt.1.text") == "later", "now it is there")


def test_stats_come_from_the_daemons_topics(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.until(lambda: desk.par.Daemonfps.eval() == 30.0, "fps")
    assert desk.par.Daemonstate.eval() == "streaming"
    assert desk.par.Daemonlatency.eval() == 12.0
    assert desk.par.Daemonschema.eval() == desk.par.Schema.eval()


def test_another_schema_is_said_and_unknown_parameters_are_greyed(desk: Desk, tmp_path: Path) -> None:
    daemon = SmallDaemon(tmp_path, schema="0123456789ab")
    try:
        desk.connect(daemon.port)
        desk.until(lambda: "parameters differ (0123456789ab" in desk.status, "Status says so")
        assert desk.status.startswith("online")
        # A daemon that does not know delta: its refresh does not bring it.
        desk.until(lambda: desk.ext._sync_ends is not None and "delta" in desk.ext._seen, "the dump is here")
        desk.ext._seen.discard("delta")
        desk.later_s += 2.5
        desk.host.step()
        assert desk.par.Delta.enable is False
        assert desk.par.Strength.enable is True
        daemon.view.now = type(daemon.view.now)(schema=desk.par.Schema.eval())
        desk.until(lambda: "differ" not in desk.status, "the right daemon again")
    finally:
        daemon.close()


def test_on_connect_pulls_by_default_and_pushes_when_told(desk: Desk, daemon: SmallDaemon) -> None:
    daemon.store.set_many({"strength": 0.9, "prompt.2.text": "theirs"}, "someone")
    desk.par.Strength = 0.2
    desk.frames(3)
    online(desk, daemon.port)
    desk.until(lambda: desk.par.Strength.eval() == 0.9, "pulled")
    assert desk.par.Prompt1text.eval() == "theirs"
    desk.par.Active = False
    desk.until(lambda: desk.status == "off", "off")
    desk.par.Onconnect = "push"
    desk.par.Strength = 0.3
    desk.frames(3)
    desk.par.Active = True
    desk.until(lambda: daemon.store.get("strength") == pytest.approx(0.3), "pushed")
    assert daemon.store.get("prompt.2.text") == "theirs"


def test_killed_and_restarted(desk: Desk) -> None:
    """Status, hold, fallback and recovery, in this order, with a daemon process that is killed."""
    callbacks = desk.host.root.create("textDAT", "callbacks")
    callbacks.text = (
        "events = []\n"
        "def onDaemon(info): events.append(('daemon', info['online']))\n"
        "def onPicture(info): events.append(('picture', info['state']))\n"
        "def onStatus(info): events.append(('status', info['status'].split(':')[0]))\n"
    )
    desk.par.Callbackdat = callbacks
    process, port = start_process()
    try:
        desk.connect(port)
        desk.until(lambda: desk.status.startswith("online"), "online")
        desk.frames(60)
        desk.par.Holdaction, desk.par.Holdafter, desk.par.Holdfade, desk.par.Holdrecover = (
            "black",
            2.0,
            0.2,
            3,
        )
        desk.par.Prompt0text = "kept over the restart"
        desk.until(lambda: desk.ext.shown.state == "live", "live")
        hold, fade, fallback = (desk.comp.op(name).par for name in ("hold", "fade", "fallback"))
        assert hold.active.eval() is True and fade.cross.eval() == 0.0
        events: list[Any] = callbacks.module.events
        events.clear()

        end(process, signal.SIGKILL)
        desk.later_s += 3.1  # the heartbeat is more than two seconds late
        desk.until(lambda: desk.status.startswith("offline"), "offline")
        assert hold.active.eval() is False and fade.cross.eval() == 0.0  # held, not yet fading
        desk.later_s += 2.0
        desk.until(lambda: desk.ext.shown.state in ("fading", "fallback"), "the fallback sets in")
        assert fallback.index.eval() == 0
        desk.until(lambda: fade.cross.eval() == 1.0, "it is there")
        desk.par.Strength = 0.11  # while nobody listens

        process, _ = start_process(port)
        desk.until(lambda: desk.status.startswith("online"), "online again")
        desk.until(lambda: hold.active.eval() is True, "new pictures are let in")
        desk.until(lambda: desk.ext.shown.state == "live", "and shown")
        assert fade.cross.eval() == 0.0

        order = [e for i, e in enumerate(events) if i == 0 or e != events[i - 1]]
        wanted = [
            ("daemon", False), ("picture", "holding"), ("status", "offline"), ("picture", "fading"),
            ("picture", "fallback"), ("daemon", True), ("status", "online"), ("picture", "returning"),
            ("picture", "live"),
        ]  # fmt: skip
        at = -1
        for event in wanted:
            assert event in order[at + 1 :], f"{event} is not where it should be in {order}"
            at = order.index(event, at + 1)
        # A fresh daemon knows nothing: it was given all that this component has.
        values = asked(port, "/sdbridge/prompt/1/text", "/sdbridge/strength")
        assert values == {
            "/sdbridge/prompt/1/text": "kept over the restart",
            "/sdbridge/strength": pytest.approx(0.11),
        }
    finally:
        end(process, signal.SIGKILL)


def asked(port: int, *addresses: str) -> dict[str, object]:
    """What a daemon says when asked from another socket."""
    from sdbridge_td.osc_codec import decode, encode_message

    found: dict[str, object] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(5)
        line.bind(("127.0.0.1", 0))
        for address in addresses:
            line.sendto(encode_message("/sdbridge/refresh", (address,)), ("127.0.0.1", port))
            for name, args in decode(line.recv(65535)):
                found[name] = args[0]
    return found


def test_a_component_in_the_way_of_death_keeps_its_manners(desk: Desk, daemon: SmallDaemon) -> None:
    """After Active goes off the daemon sends nothing more."""
    online(desk, daemon.port)
    assert len(daemon.server.subscriptions) == 1
    desk.par.Active = False
    desk.until(lambda: len(daemon.server.subscriptions) == 0, "unsubscribed")


def test_every_parameter_goes_there_and_back(desk: Desk, daemon: SmallDaemon) -> None:
    """Parameter -> OSC -> the daemon's store, and the store -> echo -> parameter, for the whole table."""
    online(desk, daemon.port)
    names = desk.ext.names
    for sequence in names.sequences:
        desk.comp.seq[sequence].numBlocks = names.slots(sequence)
    desk.frames(60)
    there: dict[str, Any] = {}
    back: dict[str, Any] = {}
    for name, row in names.rows.items():
        if row.kind == "trigger":
            continue
        now = desk.par[names.par(name)].eval()
        if row.kind == "bool":
            there[name], back[name] = not now, now
        elif row.kind == "enum":
            others = [choice for choice in row.choices if choice != now]
            there[name], back[name] = others[0], others[-1] if len(others) > 1 else now
        elif row.kind == "str":
            there[name], back[name] = f"to {name}", f"from {name}"
        else:
            low, high = row.minimum or 0.0, min(row.maximum if row.maximum is not None else 10.0, 100.0)
            there[name], back[name] = low + (high - low) * 0.75, low + (high - low) * 0.5
            if row.kind == "int":
                step = row.multiple_of or 1
                there[name] = max(round(there[name] / step) * step, step)
                back[name] = there[name] - step if there[name] - step >= low else there[name]
    for name, value in there.items():
        desk.par[names.par(name)].val = value
    last = list(there)[-1]
    desk.until(
        lambda: daemon.store.get(last) == pytest.approx(there[last]) and desk.ext._doubted == {}, "there"
    )
    for name, value in there.items():
        assert daemon.store.get(name) == pytest.approx(value), name
    outcome = daemon.store.set_many(back, "someone")
    assert not outcome.rejected
    desk.until(
        lambda: all(desk.par[names.par(n)].eval() == pytest.approx(v) for n, v in back.items()), "and back"
    )


# --- bad input ---


def test_nothing_listens(desk: Desk) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    desk.connect(port)
    desk.until(lambda: f"nothing listens on 127.0.0.1:{port}" in desk.status, "Status says so")
    assert desk.status.startswith("offline")


def test_a_host_that_is_not_found(desk: Desk) -> None:
    def unknown(host: str) -> str:
        raise OSError("Name or service not known")

    desk.ext.link._resolver = unknown
    desk.par.Connection = "manual"
    desk.par.Host = "no-such-machine.invalid"
    desk.until(lambda: "no-such-machine.invalid is not found" in desk.status, "Status says so")
    desk.par.Host = ""
    desk.until(lambda: "no host is given" in desk.status, "an empty one too")


def test_a_host_that_cannot_be_reached(desk: Desk) -> None:
    desk.par.Connection = "manual"
    desk.par.Host = "255.255.255.255"  # refused by the system at once, as a network without a route is
    desk.until(lambda: "255.255.255.255:9000 cannot be reached" in desk.status, "Status says so")
    desk.frames(10)
    assert "internal fault" not in desk.status


def test_looking_a_host_up_stops_no_frame(desk: Desk) -> None:
    """A resolver that hangs hangs its own thread."""
    import threading

    hang = threading.Event()
    desk.ext.link._resolver = lambda host: (hang.wait(30), "127.0.0.1")[1]
    desk.par.Connection = "manual"
    desk.par.Host = "slow.example"
    frame = desk.host.frame
    desk.host.step(50)
    assert desk.host.frame == frame + 50
    assert "connecting" in desk.status
    hang.set()


def test_a_taken_feedback_port(desk: Desk, daemon: SmallDaemon) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        desk.par.Feedbackport = port
        online(desk, daemon.port)
        desk.until(lambda: f"feedback port {port} is taken" in desk.status, "Status says so")
        assert desk.ext.link.local_port not in (0, port)


def test_a_source_that_is_gone(desk: Desk, daemon: SmallDaemon) -> None:
    """TouchDesigner reports an error on the receiving operator: held at once, and Status names the source."""
    online(desk, daemon.port)
    desk.until(lambda: desk.ext.shown.state == "live", "live")
    say(desk.comp.op("spout_generated_in"), errors="Sender not found")
    desk.host.step()
    assert desk.comp.op("hold").par.active.eval() is False
    assert "source 'sdbridge': Sender not found" in desk.status
    say(desk.comp.op("spout_generated_in"), warnings="Resolution limited to 1280x1280")
    desk.until(lambda: desk.ext.shown.state == "live", "a warning is said but holds nothing")
    assert "Resolution limited" in desk.status


def test_garbage_from_the_port_is_counted_not_raised(desk: Desk) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rogue:
        rogue.bind(("127.0.0.1", 0))
        rogue.settimeout(5)
        desk.connect(rogue.getsockname()[1])
        desk.host.step()
        _, us = rogue.recvfrom(65535)
        for packet in (b"", b"\x00" * 40, b"#bundle\x00" + b"\xff" * 60, b"/a\x00\x00,f\x00\x00\x00"):
            rogue.sendto(packet, us)
        rogue.sendto(b"/sdbridge/strength\x00\x00,s\x00\x00abc\x00", us)
        desk.until(lambda: desk.ext.link.undecodable >= 3, "counted")
        assert "internal fault" not in desk.status
        assert desk.par.Strength.eval() == 0.6


def test_a_fault_of_ours_ends_on_status(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.ext.pictures.hold.step = None  # as broken as can be
    desk.host.step(5)
    assert "internal fault" in desk.status
    assert capsys.readouterr().out.count("Traceback") == 1


def test_auto_finds_the_daemon_by_its_discovery_file(desk: Desk, daemon: SmallDaemon, tmp_path: Path) -> None:
    import os

    folder = tmp_path / "home" / "run"
    folder.mkdir(parents=True)
    (folder / "junk.json").write_text("{")
    about = {"pid": os.getpid(), "port": daemon.port, "name": "sdbridge", "started": "now", "version": "0"}
    (folder / f"{daemon.port}.json").write_text(json.dumps(about))
    assert desk.par.Connection.eval() == "auto"
    desk.until(lambda: desk.status.startswith("online"), "found")
    assert f":{daemon.port}" in desk.status


def test_blocks_past_the_daemons_slots_do_nothing(desk: Desk, daemon: SmallDaemon) -> None:
    online(desk, daemon.port)
    desk.comp.seq.Lora.numBlocks = 12
    desk.par.Lora11weight = 0.5
    desk.until(lambda: "8 slots for Lora" in desk.status, "Status says so")
    assert desk.status.startswith("online")


def test_a_non_commercial_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.td.fake_td import Host

    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    with Host(licence="Non-Commercial") as host:
        desk = Desk(host)
        desk.host.step(2)
        assert "no shared memory with this licence" in desk.status
        desk.par.Transport = "sharedmem"
        desk.host.step(2)
        assert "internal fault" not in desk.status
        desk.par.Transport = "ndi"
        desk.host.step(2)
        assert desk.comp.op("generated_transport").par.index.eval() == 1
