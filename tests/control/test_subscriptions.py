"""Who hears what: everyone but the originator, one bundle every 33 ms, for as long as was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbridge.config import Config, OscSection
from sdbridge.control.subscriptions import GATHER_S, MOST_CLIENTS, under
from sdbridge.parameters.table import TABLE
from sdbridge.status import LatencyMs, Status
from tests.control.osc_rig import OTHER, PAD, Rig, read

PORT = 9001
HEARS = ("127.0.0.1", PORT)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def settle(rig: Rig) -> None:
    """Let the first status topics pass."""
    rig.wait(GATHER_S)
    rig.sent.clear()


def test_a_subscriber_hears_a_change_and_its_prefix_bounds_it(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/prompt", 10)
    settle(rig)
    rig.store.set_many({"strength": 0.25, "prompt.2.text": "fog", "prompt_blend": "linear"})
    rig.wait(GATHER_S)
    assert rig.heard_values(HEARS) == {"/sdbridge/prompt/2/text": "fog"}


def test_everyone_but_the_originator_hears_it(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", 0, "/sdbridge", 10, sender=PAD)
    rig.say("/sdbridge/subscribe", 0, "/sdbridge", 10, sender=OTHER)
    settle(rig)
    rig.say("/sdbridge/strength", 0.25, sender=PAD)
    rig.wait(GATHER_S)
    assert rig.heard_values(PAD) == {}
    assert rig.heard_values(OTHER) == {"/sdbridge/strength": 0.25}


def test_the_originator_is_known_by_the_socket_it_subscribed_from(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "", 10, sender=PAD)
    settle(rig)
    rig.say("/sdbridge/strength", 0.25, sender=PAD)
    rig.say("/sdbridge/steps", 3, sender=OTHER)
    rig.wait(GATHER_S)
    assert rig.heard_values(HEARS) == {"/sdbridge/steps": 3}


def test_whoever_wrote_last_is_the_originator(rig: Rig) -> None:
    for sender in (PAD, OTHER):
        rig.say("/sdbridge/subscribe", 0, "", 10, sender=sender)
    settle(rig)
    rig.say("/sdbridge/strength", 0.25, sender=PAD)
    rig.say("/sdbridge/strength", 0.5, sender=OTHER)
    rig.wait(GATHER_S)
    assert rig.heard_values(PAD) == {"/sdbridge/strength": 0.5}
    assert rig.heard_values(OTHER) == {}


def test_a_recall_is_heard_by_the_one_who_asked_for_it_too(rig: Rig) -> None:
    rig.store.set("strength", 0.25)
    rig.show.save("low")
    rig.store.set("strength", 0.75)
    rig.say("/sdbridge/subscribe", 0, "", 10)
    settle(rig)
    rig.say("/sdbridge/preset/recall", "low")
    rig.wait(GATHER_S)
    assert rig.heard_values(PAD)["/sdbridge/strength"] == 0.25


def test_changes_are_gathered_into_one_bundle_for_33_ms_and_the_last_value_goes(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge", 100)
    settle(rig)
    for n in range(50):
        rig.store.set_many({"strength": n / 50, "delta": n / 50})
    rig.wait(0.001)
    assert rig.sent == []
    rig.wait(GATHER_S)
    assert len(rig.sent) == 1 and rig.sent[0][0].startswith(b"#bundle")
    assert rig.heard_values(HEARS) == {
        "/sdbridge/strength": pytest.approx(0.98),
        "/sdbridge/delta": pytest.approx(0.98),
    }
    rig.wait(GATHER_S)
    assert rig.heard_values(HEARS) == {}


def test_a_subscription_ends_with_its_time_and_is_renewed_by_repeating(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "", 5)
    rig.wait(4.0)
    rig.say("/sdbridge/subscribe", PORT, "", 5)
    rig.wait(4.0)
    assert len(rig.subscriptions) == 1
    rig.wait(1.1)
    assert len(rig.subscriptions) == 0
    rig.sent.clear()
    rig.store.set("strength", 0.1)
    rig.wait(1.0)
    assert rig.sent == []


def test_ten_seconds_is_the_default_and_an_hour_the_most(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT)
    rig.wait(9.9)
    assert len(rig.subscriptions) == 1
    rig.wait(0.2)
    assert len(rig.subscriptions) == 0
    rig.say("/sdbridge/subscribe", PORT, "", 10**6)
    rig.wait(3601.0)
    assert len(rig.subscriptions) == 0


def test_unsubscribe_ends_one_port_or_all(rig: Rig) -> None:
    for port in (PORT, PORT + 1, PORT + 2):
        rig.say("/sdbridge/subscribe", port)
    rig.say("/sdbridge/unsubscribe", PORT)
    assert len(rig.subscriptions) == 2
    rig.say("/sdbridge/unsubscribe", sender=OTHER)
    assert len(rig.subscriptions) == 2
    rig.say("/sdbridge/unsubscribe")
    assert len(rig.subscriptions) == 0


def test_refresh_dumps_every_parameter_and_topic(rig: Rig) -> None:
    rig.store.set("strength", 0.25)
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/status/heartbeat", 100)
    settle(rig)
    rig.say("/sdbridge/refresh")
    rig.wait(GATHER_S)
    heard = dict(rig.heard(HEARS))
    settable = {row.address for row in TABLE if row.kind != "trigger"}
    assert settable <= set(heard)
    assert heard["/sdbridge/strength"] == 0.25 and heard["/sdbridge/status/state"] == "streaming"


def test_refresh_of_a_prefix_and_without_subscription_answers_the_sender(rig: Rig) -> None:
    rig.say("/sdbridge/refresh", "/sdbridge/seed", sender=OTHER)
    heard = dict(rig.heard(OTHER))
    assert heard["/sdbridge/seed/1/value"] == heard["/sdbridge/seed"] == 2
    assert all(address.startswith("/sdbridge/seed") for address in heard)


def test_status_topics_go_out_when_they_change_and_the_heartbeat_every_second(rig: Rig) -> None:
    rig.view.now = Status(
        state="loading", fps=29.94, latency_ms=LatencyMs(10.0, 12.0), vram_mb=900.4, preset="a", cue="b"
    )
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/status", 3600)
    rig.wait(GATHER_S)
    first = dict(rig.heard(HEARS))
    for topic, value in {
        "state": "loading",
        "fps": pytest.approx(29.9),
        "latency": 10.0,
        "vram": 900.0,
        "preset": "a",
        "cue": "b",
        "heartbeat": 1,
        "error": "",
        "queue": 0,
        "gpu": 0.0,
    }.items():
        assert first[f"/sdbridge/status/{topic}"] == value
    rig.view.now = Status(
        state="streaming",
        fps=29.93,
        latency_ms=LatencyMs(10.0, 12.0),
        vram_mb=900.4,
        preset="a",
        cue="b",
        errors=("old", "SDB-X: newest"),
    )
    rig.wait(0.2)
    assert dict(rig.heard(HEARS)) == {
        "/sdbridge/status/state": "streaming",
        "/sdbridge/status/error": "SDB-X: newest",
    }
    beats = []
    for _ in range(30):
        rig.wait(0.1)
        beats += [value for address, value in rig.heard(HEARS) if address == "/sdbridge/status/heartbeat"]
    assert beats == sorted(set(beats)) and len(beats) == 3


def test_a_refused_message_shows_in_the_error_topic(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/status/error", 100)
    rig.say("/sdbridge/strength", float("nan"))
    rig.wait(0.2)
    assert dict(rig.heard(HEARS))["/sdbridge/status/error"].startswith("SDB-PARAM-NAN")  # type: ignore[attr-defined]


@pytest.mark.parametrize("subscribed_first", [True, False])
def test_a_normalised_client_hears_0_to_1(rig: Rig, subscribed_first: bool) -> None:
    for subscribes in (subscribed_first, not subscribed_first):
        if subscribes:
            rig.say("/sdbridge/subscribe", 0, "/sdbridge", 100)
        else:
            rig.say("/sdbridge/normalized", 1)
    settle(rig)
    rig.store.set_many({"guidance_scale": 6.0, "guidance_mode": "initialize", "prompt": "text"})
    rig.wait(GATHER_S)
    heard = rig.heard_values(PAD)
    assert (heard["/sdbridge/guidance_scale"], heard["/sdbridge/guidance_mode"]) == (0.5, 1.0)
    assert heard["/sdbridge/prompt"] == "text"


def test_a_newcomer_is_not_told_what_was_meant_for_one_who_left(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge", 100)
    settle(rig)
    rig.store.set("strength", 0.25)
    rig.say("/sdbridge/unsubscribe")
    rig.store.set("strength", 0.75)
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge", 100)
    rig.wait(GATHER_S)
    assert rig.heard_values(HEARS) == {}


def test_a_prefix_alone_subscribes_the_port_that_sends(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", "/sdbridge/strength")
    settle(rig)
    rig.store.set_many({"strength": 0.25, "delta": 0.5})
    rig.wait(GATHER_S)
    assert rig.heard_values(PAD) == {"/sdbridge/strength": 0.25}


def test_clients_are_bounded(rig: Rig) -> None:
    for port in range(1, MOST_CLIENTS + 1):
        assert rig.say("/sdbridge/subscribe", port).verdict == "ok"
    entry = rig.say("/sdbridge/subscribe", 60_000)
    assert (entry.verdict, len(rig.subscriptions)) == ("invalid", MOST_CLIENTS)
    assert rig.say("/sdbridge/subscribe", 1).verdict == "ok", "renewing is always possible"


def test_prefixes_of_one_client_are_bounded(rig: Rig) -> None:
    verdicts = [rig.say("/sdbridge/subscribe", PORT, f"/sdbridge/{n}").verdict for n in range(40)]
    assert verdicts.count("ok") == 32


@pytest.mark.parametrize("sender", [("8.8.8.8", 53), ("1.2.3.4", 9)])
@pytest.mark.parametrize("address", ["subscribe", "refresh", "ping", "preset/list", "strength"])
def test_a_forged_sender_cannot_make_us_answer_the_internet(
    rig: Rig, sender: tuple[str, int], address: str
) -> None:
    assert rig.say(f"/sdbridge/{address}", sender=sender).verdict == "invalid"
    rig.wait(1.0)
    assert rig.sent == []


def test_a_surface_named_in_the_config_hears_everything_always(rig: Rig) -> None:
    rig.subscriptions.add_fixed(("192.168.1.20", 9001))
    settle(rig)
    rig.wait(10_000.0)
    rig.sent.clear()
    rig.say("/sdbridge/strength", 0.25, sender=("192.168.1.20", 51000))
    rig.say("/sdbridge/steps", 3, sender=PAD)
    rig.say("/sdbridge/unsubscribe", sender=("192.168.1.20", 9001))
    rig.wait(GATHER_S)
    assert rig.heard_values(("192.168.1.20", 9001)) == {"/sdbridge/steps": 3}


def test_through_a_network_datagrams_stay_whole(rig: Rig) -> None:
    rig.subscriptions.add_fixed(("192.168.1.20", 9001))
    rig.say("/sdbridge/refresh", sender=("192.168.1.20", 9001))
    rig.wait(GATHER_S)
    assert len(rig.sent) > 3 and all(len(packet) <= 1432 for packet, _ in rig.sent)


def test_nobody_listening_costs_nothing(rig: Rig) -> None:
    for n in range(1000):
        rig.store.set("strength", n / 1000)
    assert len(rig.subscriptions._changes) == 0
    assert rig.subscriptions.next_in_s() is None


def test_a_fade_is_heard_at_thirty_a_second(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/strength", 100)
    settle(rig)
    rig.store.set("strength", 0.0)
    rig.say("/sdbridge/fade", "strength", 1.0, 2.0)
    heard = []
    for _ in range(220):
        rig.wait(0.01)
        heard += [value for packet, _ in rig.sent for _, value in read(packet)]
        rig.sent.clear()
    assert 45 <= len(heard) <= 65
    assert heard == sorted(heard) and heard[-1] == 1.0


@pytest.mark.parametrize(
    ("address", "prefix", "wanted"),
    [
        ("/a/b", "", True),
        ("/a/b", "/", True),
        ("/a/b", "/a", True),
        ("/a/b", "/a/", True),
        ("/a/b", "/a/b", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
    ],
)
def test_prefixes_end_at_slashes(address: str, prefix: str, wanted: bool) -> None:
    assert under(address, prefix) is wanted


def test_the_config_checks_the_places_it_names() -> None:
    assert Config(osc=OscSection(feedback=("192.168.1.20:9001",))).osc.feedback
    for wrong in ("here", "10.0.0.1", "10.0.0.1:0", ":9001", "10.0.0.1:99999"):
        with pytest.raises(ValueError, match="must read address:port"):
            OscSection(feedback=(wrong,))


def test_answers_go_back_and_to_the_port_that_was_subscribed(rig: Rig) -> None:
    rig.say("/sdbridge/subscribe", PORT, "/sdbridge/status/heartbeat", 100)
    rig.say("/sdbridge/ping", 5)
    assert rig.heard(PAD) == [("/sdbridge/pong", 5)]
    assert ("/sdbridge/pong", 5) in rig.heard(HEARS)
