"""The whole spine: fake textures around a real engine process."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from sdbridge.bridge import Bridge
from sdbridge.config import Config, OutputConfig, TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.preview import PreviewRelay
from sdbridge.slot import SharedSlot
from sdbridge.testing import FakeClock, FakeReceiver, FakeSender, FakeTextures, number_of, numbered_picture
from sdbridge.textures.served_paths import ServedPaths
from sdbridge.textures.supply import Textures
from sdbridge.textures.test_card import read_number


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))


def config(kind: str = "passthrough", **engine: object) -> Config:
    return Config.model_validate(
        {
            "port": 0,
            "engine": {"kind": kind, "width": 64, "height": 64, **engine},
            "input": {"main": {"name": "main", "fit": "stretch"}},
        }
    )


def parts(**options: object) -> tuple[FakeReceiver, FakeSender, FakeTextures]:
    receiver, sender = FakeReceiver("main", options), FakeSender()
    return receiver, sender, FakeTextures({"main": receiver}, [sender])


def wait_until(wanted, timeout_s=90.0):
    deadline = time.monotonic() + timeout_s
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted()


def new(frame, about) -> bool:
    return about["new"] == "1"


@pytest.mark.parametrize("in_process", [False, True])
def test_a_frame_goes_through_the_engine_to_the_sender(in_process):
    receiver, sender, textures = parts(fps=60.0)
    with Bridge(config(in_process=in_process), textures=textures, control=False) as bridge:
        bridge.start()
        first = sender.wait_for(new)
        later = sender.wait_for(lambda f, a: new(f, a) and number_of(f.pixels) > number_of(first.pixels) + 10)
        assert later.pixels.shape == (64, 64, 4)
        status = bridge.status()
        assert (status.state, status.output) == ("streaming", "live")
        assert status.frames_in >= 11
        wait_until(lambda: bridge.status().frames_out >= 11)  # a loaded machine shows fewer than come in
    assert not sender.is_open and not receiver.is_open


def test_run_ends_by_itself_after_so_many_output_frames():
    _receiver, _sender, textures = parts(fps=60.0)
    with Bridge(config(), textures=textures, control=False) as bridge:
        bridge.start()
        status = bridge.run(frames=30)
    assert status.frames_out >= 30


def test_the_bridge_never_imports_torch():
    code = textwrap.dedent("""
        import sys
        from sdbridge.bridge import Bridge
        from sdbridge.config import Config
        from sdbridge.testing import FakeReceiver, FakeSender, FakeTextures
        if __name__ == "__main__":
            textures = FakeTextures({"main": FakeReceiver("main")}, [FakeSender()])
            config = Config.model_validate({"port": 0, "engine": {"kind": "passthrough", "width": 64,
                "height": 64}, "input": {"main": {"name": "main"}}})
            with Bridge(config, textures=textures) as bridge:
                bridge.start()
                status = bridge.run(frames=20)
            assert status.frames_out >= 20
            heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
            print("heavy:", sorted(heavy))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "heavy: []", done.stderr


def test_outputs_show_the_test_card_until_the_first_picture_is_made():
    receiver, sender, textures = parts(fps=0.0)
    with Bridge(config(in_process=True), textures=textures, control=False) as bridge:
        bridge.start()
        card = sender.wait_for(lambda frame, about: about["source_frame"] == "")
        assert read_number(card.pixels) is not None
        receiver.push(numbered_picture(7))
        sender.wait_for(lambda frame, about: number_of(frame.pixels) == 7)


class Show:
    """A bridge around fakes, in-process so that it is quick, with what tests ask of it."""

    def __init__(self, kind="passthrough", fps=60.0, **parameters):
        self.receiver, self.sender, self.textures = parts(fps=fps)
        values = {"output.fps": 60, **parameters}
        settings = config(kind, in_process=True).model_copy(update={"parameters": values})
        self.bridge = Bridge(settings, textures=self.textures, control=False)

    def __enter__(self):
        self.bridge.__enter__()
        self.bridge.start()
        if self.receiver.fps <= 0:
            self.receiver.push(numbered_picture(1))
        wait_until(lambda: self.bridge.output.frames_made > 0)
        return self

    def __exit__(self, *exc):
        self.bridge.__exit__(*exc)

    def set(self, name, value):
        self.bridge.store.set(name, value)

    def until(self, wanted, timeout_s=30.0):
        return self.sender.wait_for(wanted, timeout_s)

    def until_state(self, *states):
        return self.until(lambda frame, about: about["state"] in states)


def is_black(frame):
    return not frame.pixels[..., :3].any() and (frame.pixels[..., 3] == 255).all()


def test_black_and_freeze_win_and_are_released():
    with Show() as show:
        show.set("output.black", True)
        assert is_black(show.until_state("black"))
        show.set("output.black", False)
        show.until_state("live")
        show.set("output.freeze", True)
        first = show.until_state("frozen")
        later = show.until(lambda f, a: f.frame_id > first.frame_id + 10)
        assert later.pixels is first.pixels
        show.set("output.freeze", False)
        assert number_of(show.until_state("live").pixels) > number_of(first.pixels)


def test_panic_cuts_to_black_until_released_by_hand():
    with Show() as show:
        show.set("panic", True)
        assert is_black(show.until_state("black"))
        show.until(lambda f, a: show.bridge.store.get("output.black") is True)
        assert is_black(show.until(lambda f, a: a["state"] == "black"))
        show.set("output.black", False)
        show.until_state("live")


@pytest.mark.parametrize("action", ["black", "input", "image"])
def test_when_the_input_stops_the_hold_action_sets_in_and_a_crossfade_brings_it_back(action, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "still.png")
    settings = {"hold.action": action, "hold.after": 0.3, "hold.fade": 0.5, "hold.recover": 3}
    with Show("fake", **settings, **{"hold.image": str(tmp_path / "still.png")}) as show:
        show.receiver.present = False
        show.until_state("fading")
        fallen = show.until_state("fallback").pixels[8, 8].tolist()
        newest = show.bridge.input_frame().pixels[8, 8].tolist()
        assert fallen == {"black": [0, 0, 0, 255], "input": newest, "image": [200, 100, 50, 255]}[action]
        show.receiver.present = True
        show.until_state("fading")
        show.until_state("live")


def test_a_slider_moved_without_input_shows_but_does_not_pretend_that_the_source_is_back():
    with Show("fake", fps=0.0, **{"hold.action": "black", "hold.after": 0.3, "hold.fade": 0}) as show:
        show.until_state("fallback")
        latency = show.bridge.status().latency_ms
        client = show.bridge.engine.client
        made = client.frames_made
        for step in range(10):  # frames of the input that was there, painted again
            client.offer("main", Frame(numbered_picture(1), 1, 0))
            wait_until(lambda step=step: client.frames_made > made + step)
        assert show.until_state("fallback")
        assert show.bridge.status().latency_ms == latency


def test_an_image_that_cannot_be_read_is_one_line_and_black():
    with Show(**{"hold.action": "image", "hold.after": 0.2, "hold.fade": 0}) as show:
        show.set("hold.image", "/no/such/picture.png")
        show.receiver.present = False
        assert is_black(show.until_state("fallback"))
        wait_until(lambda: any("SDB-HOLD-IMAGE" in line for line in show.bridge.status().errors))


def test_garbage_from_a_source_is_one_line_and_the_show_goes_on():
    with Show(fps=60.0) as show:
        for wrong in (np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros((4, 4, 4))):
            show.receiver.push(wrong)
        number = number_of(show.until(new).pixels)
        show.until(lambda f, a: new(f, a) and number_of(f.pixels) > number + 5)
        errors = [line for line in show.bridge.status().errors if "SDB-FRAME-FORMAT" in line]
        assert 1 <= len(errors) <= 3


@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (4320, 7680)], ids=["1x1", "odd", "8K"])
def test_frames_of_any_size_are_fitted_before_they_enter_a_slot(shape):
    with Show(fps=0.0 + 60.0) as show:
        show.receiver.present = False
        show.receiver.push(np.full((*shape, 4), 77, np.uint8))
        frame = show.until(lambda f, a: f.pixels[30, 30, 0] == 77)
        assert frame.pixels.shape == (64, 64, 4)
        capacity = max(slot.capacity for slot in show.bridge.engine.client._slots.values())
        assert capacity == 64 * 64 * 4  # an 8K source takes no more shared memory than any other


def test_a_source_that_breaks_is_opened_again():
    with Show() as show:
        show.receiver.broken = OSError("the cable was pulled")
        wait_until(lambda: any("the cable was pulled" in line for line in show.bridge.status().errors))
        show.receiver.broken = None
        number = show.receiver.number
        show.until(lambda f, a: new(f, a) and number_of(f.pixels) > number)


def test_a_sender_that_breaks_is_opened_again_under_the_same_name():
    with Show() as show:
        show.sender.broken = OSError("no receiver")
        wait_until(lambda: any("no receiver" in line for line in show.bridge.status().errors))
        show.sender.broken = None
        show.until(new)
        assert show.sender.opened >= 2 and show.sender.name == "fake"


def test_an_input_is_chosen_live_and_a_bad_choice_leaves_the_old_one():
    with Show() as show:
        other = FakeReceiver("other", {"fps": 60})
        other.number = 10_000
        show.textures.receivers["other"] = other
        show.bridge.choose_input("main", "fake", "other")
        show.until(lambda f, a: number_of(f.pixels) > 10_000)
        assert not show.receiver.is_open

        class Broken(FakeReceiver):
            def open(self):
                raise SdbridgeError("SDB-TEXTURE-FAULT", "it cannot be opened")

        show.textures.receivers["broken"] = Broken("broken")
        with pytest.raises(SdbridgeError, match="it cannot be opened"):
            show.bridge.choose_input("main", "fake", "broken")
        number = number_of(show.until(new).pixels)
        show.until(lambda f, a: number_of(f.pixels) > number)
        assert show.bridge.status().frames_in >= 4  # of both, the one that is gone included


def test_several_senders_at_once_and_one_chosen_live():
    receiver, first, second = FakeReceiver("main"), FakeSender("first"), FakeSender("second")
    third = FakeSender("third")
    textures = FakeTextures({"main": receiver}, [first, second, third])
    settings = config(in_process=True).model_copy(
        update={"output": (OutputConfig(name="first"), OutputConfig(name="second", width=32, height=16))}
    )
    with Bridge(settings, textures=textures, control=False) as bridge:
        bridge.start()
        assert first.wait_for(new).pixels.shape == (64, 64, 4)
        assert second.wait_for(new).pixels.shape == (16, 32, 4)
        bridge.choose_output(1, "fake", "third")
        assert third.wait_for(new).pixels.shape == (16, 32, 4)
        wait_until(lambda: not second.is_open)
        assert first.is_open
        with pytest.raises(SdbridgeError, match="there is no output 9"):
            bridge.choose_output(9, "fake", "third")


def test_a_second_input_is_switched_on_and_off_and_a_second_output_too():
    main, control = FakeReceiver("main"), FakeReceiver("control", {"fps": 0})
    picture, map_ = FakeSender("picture"), FakeSender("map")
    textures = FakeTextures({"main": main, "control": control}, [picture, map_])
    settings = config(in_process=True).model_copy(update={"output": (OutputConfig(name="picture"),)})
    with Bridge(settings, textures=textures, control=False) as bridge:
        bridge.start()
        picture.wait_for(new)
        bridge.choose_input("control", "fake", "control")
        bridge.choose_output(1, "fake", "map", "control")
        control.push(numbered_picture(200))
        assert number_of(map_.wait_for(lambda f, a: True).pixels) == 200
        assert [each.role for each in bridge.status().outputs] == ["generated", "control"]
        bridge.drop_input("control")
        assert not control.is_open and [each.role for each in bridge.status().inputs] == ["main"]
        assert bridge.input_frame("control") is None
        made = bridge.status().frames_in
        wait_until(lambda: bridge.status().frames_in > made + 5)
        bridge.drop_input("control")  # which is off
        with pytest.raises(SdbridgeError, match="main input cannot be switched off"):
            bridge.drop_input("main")
        bridge.drop_output(0)
        wait_until(lambda: not picture.is_open)
        assert map_.is_open and [each.role for each in bridge.status().outputs] == ["control"]
        with pytest.raises(SdbridgeError, match="there is no output 1; there are 1"):
            bridge.drop_output(1)


def test_outputs_served_on_our_own_port_each_have_their_path():
    main = FakeReceiver("main")
    twice = OutputConfig(backend="mjpeg", role="control")
    settings = config(in_process=True).model_copy(
        update={"output": (OutputConfig(backend="mjpeg"), twice, twice.model_copy())}
    )
    with Bridge(settings, textures=FakeTextures({"main": main}, []), control=False) as bridge:
        bridge.textures._textures.sender = Textures().sender
        bridge.start()

        def served() -> list[str]:
            return sorted(bridge.mounts())

        wait_until(lambda: served() == ["/control.mjpeg", "/output-2.mjpeg", "/output.mjpeg"])
        bridge.choose_output(3, "mjpeg", "Wall <2>")
        assert "/wall-2.mjpeg" in served()
        bridge.choose_output(0, "mjpeg", "another name")  # stays where it was
        assert "/another-name.mjpeg" not in served() and "/output.mjpeg" in served()
        bridge.choose_output(3, "mjpeg", "hall")  # and so does one of its own name
        assert "/wall-2.mjpeg" in served() and "/hall.mjpeg" not in served()
        with pytest.raises(SdbridgeError):
            bridge.choose_output(0, "spout", "not here")
        assert "/output.mjpeg" in served()
        bridge.drop_output(0)
        wait_until(lambda: served() == ["/control.mjpeg", "/output-2.mjpeg", "/wall-2.mjpeg"])
        bridge.choose_output(3, "mjpeg", "again")
        assert "/output.mjpeg" in served(), "it is free again"


def test_two_outputs_that_name_the_same_path_are_told():
    paths = ServedPaths()
    first = OutputConfig(backend="mjpeg", options={"path": "/wall"})
    second = first.model_copy()
    assert paths.take(first, "mjpeg") == paths.take(first, "mjpeg") == "/wall"
    with pytest.raises(SdbridgeError, match="another output is served at /wall already"):
        paths.take(second, "mjpeg")
    assert paths.take(second, "ndi") == ""
    paths.hand_over(first, second)
    assert paths.take(second, "webrtc") == "/wall"
    other = OutputConfig(backend="webrtc", name="Side")
    assert paths.take(other, "webrtc") == "/whep"
    assert paths.take(other.model_copy(), "webrtc") == "/whep-side"
    paths.release(second)
    assert paths.take(first, "mjpeg") == "/wall"


def test_an_output_sent_again_stays_unless_it_had_ended():
    receiver, first, second = FakeReceiver("main"), FakeSender("sdbridge"), FakeSender("sdbridge")
    textures = FakeTextures({"main": receiver}, [first])
    with Bridge(config(in_process=True), textures=textures, control=False) as bridge:
        bridge.start()
        first.wait_for(new)
        textures.senders = [second]
        bridge.choose_output(0, "fake", "sdbridge")  # as the page has it, though the config names none
        assert first.is_open and not second.is_open
        first.fault = SdbridgeError("SDB-RECORDING-ENDED", "the film ended")
        bridge.choose_output(0, "fake", "sdbridge")
        second.wait_for(new)


def test_two_inputs_give_two_outputs():
    with Show("fake") as show:
        a = show.until(new).pixels
        b = show.until(lambda f, about: new(f, about) and number_of(f.pixels) != number_of(a)).pixels
        assert not np.array_equal(a, b)


def test_previews_are_at_most_ten_a_second_and_the_same_picture_in_between():
    clock = FakeClock()
    relay = PreviewRelay(clock)
    assert relay.look() is None
    first, second = (Frame(numbered_picture(number), number, 0) for number in (1, 2))
    clock.advance(1)
    relay.show(first)
    assert relay.look() is first
    relay.show(second)
    clock.advance(0.05)
    assert relay.look() is first
    clock.advance(0.06)
    assert relay.look() is second


def test_a_preview_of_a_lent_picture_is_a_copy_and_one_that_is_gone_leaves_the_old_one():
    clock = FakeClock()
    relay = PreviewRelay(clock)
    with SharedSlot.create(64 * 64 * 4) as slot, SharedSlot.attach(slot.name, counting=False) as onlooker:
        slot.write(Frame(numbered_picture(1), 1, 0))
        relay.show(onlooker.lend())
        clock.advance(1)
        seen = relay.look()
        for number in (2, 3, 4):
            slot.write(Frame(numbered_picture(number), number, 0))
        assert seen.loan is None and number_of(seen.pixels) == 1
        relay.show(onlooker.lend())
        for number in (5, 6, 7):
            slot.write(Frame(numbered_picture(number), number, 0))
        clock.advance(1)
        assert relay.look() is seen
        relay.show(onlooker.lend())
        assert number_of(relay.look().pixels) == 7
        relay.show(None)


def test_every_revision_is_applied_in_the_end_whatever_it_changed():
    """Who sets something may wait for it: also if it concerns the bridge only, or fires a trigger."""
    with Show("fake") as show:
        for name, value in (
            ("strength", 0.3),
            ("hold.fade", 0.5),
            ("engine.reset", True),
            ("model", "other"),
        ):
            revision = show.bridge.store.set(name, value).revision
            wait_until(lambda revision=revision: show.bridge.status().applied_revision >= revision)
        assert show.bridge.engine.client.config.model == "other"


def test_status_says_what_is_going_on():
    with Show("fake") as show:
        wait_until(lambda: show.bridge.status().unused == ("clip_skip",) and show.bridge.status().fps > 0)
        status = show.bridge.status()
        assert status.engine_line.startswith("fake on cpu in uint8")
        assert status.device == "cpu" and status.inputs[0].connected and status.outputs[0].role == "generated"
        assert status.latency_ms.p50 > 0 and status.fps > 0
        wait_until(lambda: 0 < show.bridge.status().fps_new <= show.bridge.status().fps + 1)
        assert json.loads(json.dumps(status.as_json()))["state"] == "streaming"


def test_the_same_error_again_is_one_line_with_a_new_number_and_young_again():
    clock = FakeClock()
    with Bridge(Config(), clock, control=False) as bridge:
        for line in ("SDB-A: one.", "SDB-B: two.", "SDB-A: one."):
            bridge.note_error(line)
            clock.advance(10)
        status = bridge.status()
    assert status.errors == ("SDB-B: two.", "SDB-A: one.")
    assert [(told.number, told.age_s) for told in status.errors_told] == [(2, 20.0), (3, 10.0)]


def test_a_taken_port_is_one_clear_line_and_nothing_is_left_running():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        _receiver, sender, textures = parts()
        settings = config().model_copy(update={"port": port})
        with (
            pytest.raises(SdbridgeError, match=rf"SDB-WEB-PORT: .*{port}"),
            Bridge(settings, textures=textures) as bridge,
        ):
            bridge.start()
        assert not sender.is_open


def test_a_second_bridge_on_the_port_is_told_of_the_first():
    _receiver, _sender, textures = parts()
    with Bridge(config(in_process=True), textures=textures) as first:
        first.start()
        _receiver, _sender, others = parts()
        with (
            pytest.raises(SdbridgeError, match="SDB-INSTANCE-RUNNING"),
            Bridge(first.config, textures=others) as second,
        ):
            second.start()
        assert first.status().output in ("live", "holding")


def test_stop_may_come_from_a_signal_handler_at_any_moment():
    """The handler runs in the thread that waits in ``run``; a lock taken there would never be let go."""
    _receiver, _sender, textures = parts()
    with Bridge(config(in_process=True), textures=textures, control=False) as bridge:
        bridge.start()
        before = signal.signal(signal.SIGALRM, lambda number, frame: bridge.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            bridge.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert bridge.stopping


def test_a_first_cue_is_gone_to_at_the_start_and_a_wrong_one_is_told():
    for first, prompt, told in (("Ice", "ice", False), ("Icy", "", True)):
        _receiver, _sender, textures = parts()
        given = config(in_process=True).model_dump()
        given |= {"first_cue": first, "cues": [{"name": "Ice", "values": {"prompt": "ice"}}]}
        with Bridge(Config.model_validate(given), textures=textures, control=False) as bridge:
            bridge.start()
            assert bridge.store.get("prompt") == prompt
            assert any("SDB-CUE-UNKNOWN" in error for error in bridge.status().errors) == told


def test_the_control_input_reaches_the_control_output():
    main, control = FakeReceiver("main"), FakeReceiver("control", {"fps": 0})
    picture, map_ = FakeSender("picture"), FakeSender("map")
    textures = FakeTextures({"main": main, "control": control}, [picture, map_])
    settings = config(in_process=True)
    settings = settings.model_copy(
        update={
            "input": settings.input.model_copy(update={"control": TextureConfig(name="control")}),
            "output": (OutputConfig(name="picture"), OutputConfig(name="map", role="control")),
        }
    )
    with Bridge(settings, textures=textures, control=False) as bridge:
        bridge.start()
        control.push(numbered_picture(200))
        assert number_of(map_.wait_for(lambda f, a: True).pixels) == 200
        picture.wait_for(lambda f, a: new(f, a) and number_of(f.pixels) != 200)
        wait_until(lambda: bridge.output_frame("control") is not None)
        assert bridge.input_frame("control") is not None and bridge.input_frame("mask") is None
        assert [each.role for each in bridge.status().inputs] == ["main", "control"]
        control.push(numbered_picture(60))
        bridge.store.set("control_output", 2)  # this engine sends it all the same, but anew
        map_.wait_for(lambda f, a: number_of(f.pixels) == 60)
