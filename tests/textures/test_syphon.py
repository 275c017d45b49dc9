"""Syphon's client and server against a fake that has the names and keywords of syphon-python 0.2.0 only."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import main_thread, syphon
from sdbridge.textures.syphon import METAL_BGRA8, METAL_RGBA8, Receiver, Sender


class Texture:
    """A Metal texture: methods, not properties, as PyObjC gives them."""

    def __init__(self, width: int, height: int, pixel_format: int = METAL_RGBA8) -> None:
        self.content = np.zeros((height, width, 4), np.uint8)
        self._format = pixel_format

    def pixelFormat(self) -> int:  # noqa: N802
        return self._format


@dataclass
class Description:
    uuid: str
    name: str
    app_name: str


class Stage:
    """One Mac: which servers there are and what they showed last."""

    def __init__(self) -> None:
        self.servers: dict[str, Description] = {}
        self.shown: dict[str, Texture] = {}
        self.frames: dict[str, int] = {}
        self.pumped: list[float] = []
        self.flips: list[bool] = []
        self.metal = True
        self.clients = 0

    def show(self, name: str, app: str, texture: Texture) -> None:
        self.servers[name] = Description(f"uuid-{name}", name, app)
        self.shown[name] = texture
        self.frames[name] = self.frames.get(name, 0) + 1


def fake_syphon(stage: Stage) -> dict[str, ModuleType]:
    class SyphonServerDirectory:
        def __init__(self) -> None:
            self.run_loop_interval = 1.0

        @property
        def servers(self):
            return list(stage.servers.values())

        def update_run_loop(self) -> None:
            stage.pumped.append(self.run_loop_interval)

    class SyphonMetalClient:
        def __init__(self, description, device=None, *, new_frame_handler=None, callback_loop=None) -> None:
            self._name, self._taken = description.name, 0
            stage.clients += 1

        @property
        def is_valid(self) -> bool:
            return self._name in stage.servers

        @property
        def has_new_frame(self) -> bool:
            return self._taken < stage.frames[self._name]

        @property
        def new_frame_image(self):
            self._taken = stage.frames[self._name]
            return stage.shown[self._name]

        def stop(self) -> None:
            stage.clients -= 1

    class SyphonMetalServer:
        def __init__(self, name, device=None, command_queue=None, *, is_private=False) -> None:
            if not stage.metal:
                raise RuntimeError("No Metal device is available")
            self.device = object()
            self._name = name
            stage.servers[name] = Description(f"uuid-{name}", name, "Python")

        @property
        def name(self) -> str:
            return self._name

        @name.setter
        def name(self, value: str) -> None:
            stage.servers[value] = stage.servers.pop(self._name)
            self._name = value

        def publish_frame_texture(
            self, texture, region=None, size=None, is_flipped=False, command_buffer=None, auto_commit=True
        ) -> None:
            stage.flips.append(is_flipped)
            stage.show(self._name, "Python", texture)

        @property
        def has_clients(self) -> bool:
            return stage.clients > 0

        def stop(self) -> None:
            del stage.servers[self._name]

    def create_mtl_texture(device, width, height, pixel_format=METAL_RGBA8):
        return Texture(width, height, pixel_format)

    def copy_image_to_mtl_texture(image, texture) -> None:
        assert image.shape == texture.content.shape
        texture.content = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)

    def copy_mtl_texture_to_image(texture):
        return np.frombuffer(texture.content.tobytes(), np.uint8).reshape(texture.content.shape)

    main, raw, arrays = ModuleType("syphon"), ModuleType("syphon.utils.raw"), ModuleType("syphon.utils.numpy")
    main.SyphonServerDirectory = SyphonServerDirectory
    main.SyphonMetalClient = SyphonMetalClient
    main.SyphonMetalServer = SyphonMetalServer
    raw.create_mtl_texture = create_mtl_texture
    arrays.copy_image_to_mtl_texture = copy_image_to_mtl_texture
    arrays.copy_mtl_texture_to_image = copy_mtl_texture_to_image
    return {
        "syphon": main,
        "syphon.utils": ModuleType("syphon.utils"),
        "syphon.utils.raw": raw,
        "syphon.utils.numpy": arrays,
    }


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()
    for name, module in fake_syphon(stage).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(syphon, "_availability", lambda platform="darwin": (True, "a fake Mac"))
    monkeypatch.setattr(syphon, "_POLL_S", 0.0001)
    monkeypatch.setattr(syphon, "_LOOK_EVERY_S", 0.0)
    yield stage
    assert stage.clients == 0, "every client was stopped"


def texture(seed: int = 1, pixel_format: int = METAL_RGBA8) -> Texture:
    made = Texture(4, 3, pixel_format)
    made.content = np.random.default_rng(seed).integers(0, 255, (3, 4, 4), dtype=np.uint8)
    return made


def test_frames_of_a_server_arrive_upright_once_each(stage: Stage) -> None:
    with Receiver("Resolume: Main", {}) as receiver:
        assert receiver.receive(0.001) is None and "waiting" in receiver.describe()
        stage.show("Main", "Resolume", texture())
        assert (receiver.receive(1.0) == texture().content[::-1]).all(), "Syphon's first row is the lowest"
        assert receiver.connected and "Resolume: Main, 4x3" in receiver.describe()
        assert receiver.receive(0.001) is None


@pytest.mark.parametrize("name", ["Resolume: Main", "Main", "Resolume", ""])
def test_a_server_is_found_by_app_name_both_or_none(stage: Stage, name: str) -> None:
    stage.show("Main", "Resolume", texture())
    with Receiver(name, {"bottom_up": False}) as receiver:
        assert (receiver.receive(1.0) == texture().content).all()


def test_bgra_becomes_rgba_and_other_formats_are_left_out(stage: Stage, caplog) -> None:
    stage.show("Main", "App", texture(pixel_format=METAL_BGRA8))
    with Receiver("Main", {"bottom_up": False}) as receiver:
        assert (receiver.receive(1.0) == texture().content[..., [2, 1, 0, 3]]).all()
        for _ in range(3):
            stage.show("Main", "App", texture(pixel_format=115))
            assert receiver.receive(0.001) is None
    assert sum("format 115" in record.message for record in caplog.records) == 1


def test_a_server_that_ends_is_met_again(stage: Stage) -> None:
    stage.show("Main", "App", texture())
    with Receiver("Main", {}) as receiver:
        receiver.receive(1.0)
        del stage.servers["Main"]
        assert receiver.receive(0.001) is None and not receiver.connected
        stage.show("Main", "App", texture(2))
        assert (receiver.receive(1.0) == texture(2).content[::-1]).all()


def test_frames_are_published_in_three_alternating_textures_with_their_row_order(stage: Stage) -> None:
    with Sender("show", {}) as sender:
        published = []
        for seed in range(6):
            pixels = texture(seed).content
            sender.send(Frame(pixels, seed, 0), {})
            assert (stage.shown["show"].content == pixels).all()
            published.append(stage.shown["show"])
        assert len({id(one) for one in published}) == 3 and published[0] is published[3]
        assert stage.flips == [True] * 6
        sender.send(Frame(np.zeros((513, 511, 4), np.uint8), 7, 0), {})
        assert stage.shown["show"].content.shape == (513, 511, 4)
        assert "511x513" in sender.describe() and sender.receivers == 0
    assert "show" not in stage.servers


def test_without_a_name_our_own_server_is_never_received(stage: Stage) -> None:
    with Sender("ours", {}) as sender, Receiver("", {}) as receiver:
        sender.send(Frame(texture().content, 1, 0), {})
        assert receiver.receive(0.001) is None


def test_a_live_rename_keeps_the_server(stage: Stage) -> None:
    with Sender("before", {}) as sender:
        sender.rename("after")
        assert list(stage.servers) == ["after"] and "after" in sender.describe()


def test_a_mac_without_metal_is_an_error(stage: Stage) -> None:
    stage.metal = False
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
        Sender("show", {}).open()


class SleepClock:
    """Remembers how long was slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_ns(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_on_a_mac_the_main_thread_turns_the_run_loop_while_it_rests(stage: Stage) -> None:
    main_thread._has_syphon.cache_clear()
    clock = SleepClock()
    for _ in range(3):
        main_thread.rest(clock, 0.01, platform="darwin")
    main_thread._has_syphon.cache_clear()
    assert stage.pumped == [0.01] * 3 and clock.slept == []


def test_elsewhere_the_main_thread_just_sleeps() -> None:
    clock = SleepClock()
    main_thread.rest(clock, 0.01, platform="linux")
    assert clock.slept == [0.01]
    assert syphon._availability("linux") == (False, "Syphon exists on macOS only, this is linux")
