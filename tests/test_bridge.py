"""The whole spine: fake textures around a real engine process."""

import subprocess
import sys
import textwrap

import pytest

from sdbridge.bridge import Bridge
from sdbridge.config import Config
from sdbridge.testing import FakeReceiver, FakeSender, FakeTextures, number_of, numbered_picture
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
        assert status.frames_in >= 11 and status.frames_out >= 11
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
        assert number_of(sender.wait_for(new).pixels) == 7
