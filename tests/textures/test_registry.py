"""Names become classes, wrong names are told the near one, and auto says why."""

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.textures import stub
from sdbridge.textures.auto import choose_receiver, choose_sender
from sdbridge.textures.registry import RECEIVERS, SENDERS, receiver_class, sender_class


@pytest.mark.parametrize("backend", RECEIVERS)
def test_every_receiver_can_be_imported_here_and_says_whether_it_runs(backend: str) -> None:
    kind = receiver_class(backend)
    assert issubclass(kind, stub.Receiver)
    able, why = kind.available()
    assert isinstance(able, bool) and why


@pytest.mark.parametrize("backend", SENDERS)
def test_every_sender_can_be_imported_here_and_says_whether_it_runs(backend: str) -> None:
    kind = sender_class(backend)
    assert issubclass(kind, stub.Sender)
    able, why = kind.available()
    assert isinstance(able, bool) and why


def test_an_unknown_backend_names_the_near_one_and_a_one_way_backend_says_so() -> None:
    with pytest.raises(SdbridgeError, match="did you mean test_pattern"):
        receiver_class("test_patern")
    with pytest.raises(SdbridgeError, match="mjpeg cannot receive"):
        receiver_class("mjpeg")
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNKNOWN"):
        sender_class("")


def fake(able: bool, sources: tuple[str, ...] = ()) -> type:
    class Fake(stub.Receiver):
        @classmethod
        def available(cls):
            return able, "it is so" if able else "the wheel is missing"

        @classmethod
        def list_sources(cls):
            return tuple(stub.Source(name) for name in sources)

    return Fake


def test_auto_takes_a_file_or_an_address_by_its_name() -> None:
    assert choose_receiver("rtsp://camera/1")[0] == "video_file"
    assert choose_receiver("C:/clips/loop.MP4")[0] == "video_file"
    assert choose_receiver("still.png")[0] == "image_file"


def test_auto_without_any_shared_texture_shows_the_test_pattern_and_says_why() -> None:
    backend, why = choose_receiver("", platform="plan9", class_of=lambda name: fake(False))
    assert backend == "test_pattern"
    assert "wheel is missing" in why or "can be received" in why


def test_auto_gives_a_sender_on_every_system() -> None:
    for platform in ("linux", "win32", "darwin", "plan9"):
        backend, why = choose_sender(platform=platform, class_of=lambda name: fake(False))
        assert backend == "mjpeg" and "browser" in why


def test_an_unnamed_input_with_nothing_to_receive_waits_behind_the_test_pattern(monkeypatch) -> None:
    from sdbridge.config import TextureConfig
    from sdbridge.textures import auto, first_source, supply, test_pattern

    monkeypatch.setattr(auto, "choose_receiver", lambda name: ("test_pattern", "nothing is seen"))
    backend, receiver = supply.Textures().receiver(TextureConfig())
    assert backend == "auto" and isinstance(receiver, first_source.Receiver)
    backend, receiver = supply.Textures().receiver(TextureConfig(backend="test_pattern"))
    assert backend == "test_pattern" and isinstance(receiver, test_pattern.Receiver)
