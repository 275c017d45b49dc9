"""What messages change: types, bundles, triggers, patterns, normalised mode, commands, verdicts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sdbridge.config import Config, CueConfig
from sdbridge.control.osc_decode import Argument, encode_bundles, encode_message
from sdbridge.parameters.store import Change
from sdbridge.parameters.table import TABLE
from tests.control.osc_rig import OTHER, PAD, WALL_S, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def dated_bundle(ahead_s: float, *messages: bytes) -> bytes:
    tag = int((WALL_S + ahead_s + 2_208_988_800) * 2**32)
    return b"#bundle\x00" + struct.pack(">Q", tag) + b"".join(struct.pack(">i", len(m)) + m for m in messages)


@pytest.mark.parametrize(
    ("address", "arg", "name", "value"),
    [
        ("/sdbridge/strength", 0.25, "strength", 0.25),
        ("/sdbridge/strength", 1, "strength", 1.0),
        ("/sdbridge/strength", "0.5", "strength", 0.5),
        ("/sdbridge/strength", True, "strength", 1.0),
        ("/sdbridge/steps", 3.0, "steps", 3),
        ("/sdbridge/steps", 2**40, "steps", 8),
        ("/sdbridge/output/freeze", 1.0, "output.freeze", True),
        ("/sdbridge/output/freeze", True, "output.freeze", True),
        ("/sdbridge/output/freeze", "on", "output.freeze", True),
        ("/sdbridge/guidance_mode", 1, "guidance_mode", "full"),
        ("/sdbridge/guidance_mode", "FULL", "guidance_mode", "full"),
        ("/sdbridge/prompt", "ein Füchslein 夜", "prompt.1.text", "ein Füchslein 夜"),
        ("/sdbridge/prompt/2/text", "x", "prompt.2.text", "x"),
        ("/sdbridge/seed", 7, "seed.1.value", 7),
    ],
)
def test_a_value_of_any_fitting_type_is_taken(
    rig: Rig, address: str, arg: Argument, name: str, value: object
) -> None:
    assert rig.say(address, arg).verdict == "ok"
    assert rig.store.get(name) == value
    assert type(rig.store.get(name)) is type(value)


@pytest.mark.parametrize(
    ("address", "args", "code"),
    [
        ("/sdbridge/strength", (float("nan"),), "SDB-PARAM-NAN"),
        ("/sdbridge/strength", (float("inf"),), "SDB-PARAM-NAN"),
        ("/sdbridge/strength", ("much",), "SDB-PARAM-TYPE"),
        ("/sdbridge/strength", (b"blob",), "SDB-PARAM-TYPE"),
        ("/sdbridge/strength", (None,), "SDB-PARAM-TYPE"),
        ("/sdbridge/strength", (0.1, 0.2), "SDB-PARAM-TYPE"),
        ("/sdbridge/seed", (-1,), "SDB-PARAM-RANGE"),
        ("/sdbridge/guidance_mode", ("most",), "SDB-PARAM-RANGE"),
        ("/sdbridge/prompt", (b"blob",), "SDB-PARAM-TYPE"),
        ("/sdbridge/prompt", (True, b"blob"), "SDB-PARAM-TYPE"),
        ("/sdbridge/prompt", ("x" * 30_000,), "SDB-PARAM-RANGE"),
        ("/sdbridge/status/fps", (5.0,), "SDB-PARAM-READONLY"),
        ("/sdbridge/preset/recall", (), "SDB-OSC-USAGE"),
        ("/sdbridge/preset/recall", ("nothing",), "SDB-PRESET-UNKNOWN"),
        ("/sdbridge/preset/recall", (b"blob",), "SDB-OSC-USAGE"),
        ("/sdbridge/preset/recall", (float("nan"),), "SDB-PRESET-UNKNOWN"),
        ("/sdbridge/preset/save", ("a\nb",), "SDB-PRESET-NAME"),
        ("/sdbridge/preset/save", (), "SDB-OSC-USAGE"),
        ("/sdbridge/preset/rename", ("a",), "SDB-OSC-USAGE"),
        ("/sdbridge/preset/delete", ("a",), "SDB-PRESET-UNKNOWN"),
        ("/sdbridge/morph", (0.5,), "SDB-OSC-USAGE"),
        ("/sdbridge/morph", ("a", "b", 0.5), "SDB-PRESET-UNKNOWN"),
        ("/sdbridge/cue/go", ("a",), "SDB-CUE-UNKNOWN"),
        ("/sdbridge/cue/next", (), "SDB-CUE-UNKNOWN"),
        ("/sdbridge/fade", ("strength",), "SDB-OSC-USAGE"),
        ("/sdbridge/fade", ("strength", 1.0, -1.0), "SDB-FADE-SECONDS"),
        ("/sdbridge/fade", ("strength", 1.0, "soon"), "SDB-FADE-SECONDS"),
        ("/sdbridge/fade", ("strength", 1.0, 1.0, "bouncy"), "SDB-FADE-EASING"),
        ("/sdbridge/fade", ("nothing", 1.0, 1.0), "SDB-PARAM-UNKNOWN"),
        ("/sdbridge/subscribe", ("port",), "SDB-OSC-SUBSCRIBE"),
        ("/sdbridge/subscribe", (b"blob",), "SDB-OSC-USAGE"),
        ("/sdbridge/subscribe", (1, 2, 3), "SDB-OSC-USAGE"),
        ("/sdbridge/subscribe", (99999,), "SDB-OSC-SUBSCRIBE"),
        ("/sdbridge/subscribe", (9001, "prompt"), "SDB-OSC-SUBSCRIBE"),
        ("/sdbridge/subscribe", (9001, "/", 0), "SDB-OSC-SUBSCRIBE"),
        ("/sdbridge/subscribe", (9001, "/", float("nan")), "SDB-OSC-SUBSCRIBE"),
        ("/sdbridge/{prompt", ("x",), "SDB-OSC-PATTERN"),
        ("/sdbridge/nothing*", (1.0,), "SDB-OSC-PATTERN"),
        ("/sdbridge/normalized/nothing", (1.0,), "SDB-PARAM-UNKNOWN"),
    ],
)
def test_what_cannot_be_is_refused_with_code_reason_and_next_step(
    rig: Rig, address: str, args: tuple[Argument, ...], code: str
) -> None:
    entry = rig.say(address, *args)
    assert entry.verdict == "invalid"
    assert entry.reason.startswith(f"{code}: ")
    assert rig.store.revision == 0
    rig.say("/sdbridge/strength", 0.125)
    assert rig.store.get("strength") == 0.125, "the next message is handled"


def test_an_unknown_address_is_answered_with_the_nearest(rig: Rig) -> None:
    entry = rig.say("/sdbridge/strenght", 0.5)
    assert entry.verdict == "unknown"
    assert "nearest is /sdbridge/strength" in entry.reason


def test_looking_for_the_nearest_name_is_rationed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(type(TABLE), "nearest", lambda self, name: asked.append(name))
    for n in range(500):
        rig.say(f"/sdbridge/wrong/{n}", 1)
    assert len(asked) <= 40  # at most ten in each second that the loop may have taken


def test_out_of_range_is_clamped_and_said(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):  # a fader of another range
        entry = rig.say("/sdbridge/guidance_scale", 99.0)
    assert (entry.verdict, rig.store.get("guidance_scale")) == ("ok", 12.0)
    assert "was sent 99 and is set to 12, the range is 0 to 12" in entry.reason
    (line,) = caplog.messages
    assert "SDB-PARAM-RANGE" in line and "See `sdbridge osc`" in line
    rig.say("/sdbridge/steps", 2.4)
    assert len(caplog.messages) == 1, "what is only rounded is no fault"


def test_a_flood_of_refusals_is_counted_where_it_is_not_told_one_by_one(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbridge.control.osc_log.time.time", lambda: WALL_S)
    for _ in range(12):
        rig.say("/sdbridge/nonsense", 1)
    rig.input.log.flush()
    assert len(caplog.messages) == 5 and rig.input.log.held_back == 7
    monkeypatch.setattr("sdbridge.control.osc_log.time.time", lambda: WALL_S + 1)
    rig.input.log.flush()
    assert "7 more messages were refused" in caplog.messages[-1] and rig.input.log.held_back == 0


def test_a_bundle_is_one_revision(rig: Rig) -> None:
    changes: list[Change] = []
    rig.store.subscribe(changes.append)
    messages = [
        encode_message("/sdbridge/strength", (0.1,)),
        encode_message("/sdbridge/prompt", ("x",)),
        encode_message("/sdbridge/seed", (9,)),
    ]
    rig.packet(encode_bundles(messages, 60_000)[0])
    (change,) = changes
    assert change.values == {"strength": 0.1, "prompt.1.text": "x", "seed.1.value": 9} | {
        "strength": pytest.approx(0.1)
    }
    assert change.source == "osc:127.0.0.1:50001"


def test_in_a_burst_the_last_value_wins_and_no_trigger_is_lost(rig: Rig) -> None:
    changes: list[Change] = []
    rig.store.subscribe(changes.append)
    for n in range(10):
        rig.input.take(encode_message("/sdbridge/strength", (n / 10,)), PAD)
        rig.input.take(encode_message("/sdbridge/engine/reset", (1,)), PAD)
    rig.input.apply()
    (change,) = changes
    assert change.values == {"strength": pytest.approx(0.9)}
    assert change.triggers == ("engine.reset",) * 10


def test_values_of_two_senders_keep_their_order_and_their_source(rig: Rig) -> None:
    changes: list[Change] = []
    rig.store.subscribe(changes.append)
    for n, sender in enumerate((PAD, OTHER, PAD), 1):
        rig.input.take(encode_message("/sdbridge/steps", (n,)), sender)
    rig.input.apply()
    assert [(c.values["steps"], c.source[-5:]) for c in changes if "steps" in c.values] == [
        (2, "50002"),
        (3, "50001"),
    ]


@pytest.mark.parametrize("arg", [(), (1,), (1.0,), (True,), (None,)])
def test_a_trigger_fires_by_a_bang_or_a_pressed_button(rig: Rig, arg: tuple[Argument, ...]) -> None:
    changes: list[Change] = []
    rig.store.subscribe(changes.append)
    rig.say("/sdbridge/panic", *arg)
    assert [c.triggers for c in changes] == [("panic",)]


@pytest.mark.parametrize(
    "address", ["panic", "cue/next", "cue/go", "cue/stop", "preset/recall", "preset/recall/1"]
)
@pytest.mark.parametrize("arg", [0, 0.0, False])
def test_a_released_button_never_fires(tmp_path: Path, address: str, arg: Argument) -> None:
    rig = Rig(tmp_path, cues=(CueConfig(name="1", values={"strength": 0.1}),))
    rig.store.set("steps", 4)
    rig.show.save("one")
    before = rig.store.revision
    assert rig.say(f"/sdbridge/{address}", arg).verdict == "ignored"
    assert (rig.store.revision, rig.show.cue) == (before, "")


def test_touch_messages_of_touchosc_are_ignored(rig: Rig) -> None:
    assert rig.say("/sdbridge/strength/z", 1.0).verdict == "ignored"
    assert rig.store.revision == 0


def test_a_pattern_sets_every_match(rig: Rig) -> None:
    assert rig.say("/sdbridge/controlnet/*/scale", 0.5).reason == "8 addresses"
    assert {rig.store.get(f"controlnet.{n}.scale") for n in range(1, 9)} == {0.5}


def test_a_pattern_over_values_never_fires_a_trigger_among_them(rig: Rig) -> None:
    changes: list[Change] = []
    rig.store.subscribe(changes.append)
    rig.say("/sdbridge/*", 1)
    assert all(change.triggers == () for change in changes)
    rig.say("/sdbridge/style/*/grab", 1)
    assert changes[-1].triggers == tuple(f"style.{n}.grab" for n in range(1, 5))


def test_an_address_without_argument_is_answered_with_its_value(rig: Rig) -> None:
    rig.store.set("strength", 0.5)
    rig.say("/sdbridge/strength")
    rig.say("/sdbridge/status/state")
    assert rig.heard(PAD) == [("/sdbridge/strength", 0.5), ("/sdbridge/status/state", "streaming")]


def test_a_question_is_answered_with_what_was_said_just_before(rig: Rig) -> None:
    messages = [encode_message("/sdbridge/strength", (0.25,)), encode_message("/sdbridge/strength")]
    rig.packet(encode_bundles(messages, 60_000)[0])
    assert rig.heard(PAD) == [("/sdbridge/strength", 0.25)]


def test_texts_of_several_arguments_are_joined_as_max_and_pd_send_them(rig: Rig) -> None:
    rig.say("/sdbridge/prompt", "a", "red", "fox", 2.0)
    assert rig.store.get("prompt") == "a red fox 2"
    rig.say("/sdbridge/step_indices", 16, 32)
    assert rig.store.get("step_indices") == "16,32"


def test_a_prompt_as_long_as_a_datagram_allows_arrives_whole(rig: Rig) -> None:
    text = "夜" * 20_000
    packet = encode_message("/sdbridge/prompt", (text,))
    assert 60_000 < len(packet) <= 65_507
    rig.packet(packet)
    assert rig.store.get("prompt") == text


# --- normalised mode ---


def test_normalised_mode_is_per_client(rig: Rig) -> None:
    rig.say("/sdbridge/normalized", 1)
    rig.say("/sdbridge/guidance_scale", 0.5)
    assert rig.store.get("guidance_scale") == 6.0
    rig.say("/sdbridge/guidance_scale", 0.5, sender=OTHER)
    assert rig.store.get("guidance_scale") == 0.5
    rig.say("/sdbridge/guidance_mode", 1.0)
    assert rig.store.get("guidance_mode") == "initialize"
    rig.say("/sdbridge/steps", 0.5)
    assert rig.store.get("steps") == 5
    rig.say("/sdbridge/prompt", "still text")
    assert rig.store.get("prompt") == "still text"
    rig.say("/sdbridge/normalized", 0)
    rig.say("/sdbridge/guidance_scale", 0.25)
    assert rig.store.get("guidance_scale") == 0.25


def test_anyone_may_use_the_normalised_addresses(rig: Rig) -> None:
    rig.say("/sdbridge/normalized/lora/1/weight", 0.75)
    assert rig.store.get("lora.1.weight") == 1.0
    rig.say("/sdbridge/normalized/guidance_scale", 7.0)
    assert rig.store.get("guidance_scale") == 12.0


# --- dated bundles ---


def test_a_dated_bundle_is_applied_at_its_time_and_blocks_nothing(rig: Rig) -> None:
    rig.packet(dated_bundle(2.0, encode_message("/sdbridge/strength", (1.0,))))
    rig.say("/sdbridge/steps", 2)
    assert (rig.store.get("strength"), rig.store.get("steps")) == (0.6, 2)
    rig.wait(1.99)
    assert rig.store.get("strength") == 0.6
    rig.wait(0.02)
    assert rig.store.get("strength") == 1.0


def test_a_bundle_dated_an_hour_ahead_is_left_out_with_one_clear_line(rig: Rig) -> None:
    rig.packet(dated_bundle(3600.0, encode_message("/sdbridge/strength", (1.0,))))
    entry = rig.input.log.entries()[-1]
    assert entry.verdict == "invalid"
    assert "SDB-OSC-DATED" in entry.reason and "3600.0 s ahead" in entry.reason
    rig.wait(4000.0)
    assert rig.store.get("strength") == 0.6


def test_a_late_bundle_counts_now(rig: Rig) -> None:
    rig.packet(dated_bundle(-60.0, encode_message("/sdbridge/strength", (1.0,))))
    assert (rig.store.get("strength"), rig.input.schedule.late) == (1.0, 1)


# --- presets, cues, fades ---


def test_presets_over_osc_from_save_to_delete(rig: Rig) -> None:
    rig.say("/sdbridge/strength", 0.25)
    assert rig.say("/sdbridge/preset/save", "dark", "side").verdict == "ok"
    rig.say("/sdbridge/strength", 0.75)
    rig.say("/sdbridge/preset/save", "light")
    rig.say("/sdbridge/preset/recall", "Dark Side")
    assert rig.store.get("strength") == 0.25
    rig.say("/sdbridge/preset/recall", 2)
    assert rig.store.get("strength") == 0.75
    rig.say("/sdbridge/preset/recall", 1.0)
    assert rig.store.get("strength") == 0.25
    rig.say("/sdbridge/preset/rename", 2, "day")
    rig.say("/sdbridge/preset/list")
    assert rig.heard(PAD) == [
        ("/sdbridge/preset/list", (1, "dark side")),
        ("/sdbridge/preset/list", (2, "day")),
        ("/sdbridge/preset/count", 2),
    ]
    rig.say("/sdbridge/preset/delete", "day")
    assert [preset.name for preset in rig.show.list()] == ["dark side"]


def test_a_button_recalls_by_its_address(rig: Rig) -> None:
    rig.store.set("strength", 0.25)
    rig.show.save("low")
    rig.store.set("strength", 0.75)
    rig.say("/sdbridge/preset/recall/low", 1.0)
    assert rig.store.get("strength") == 0.25
    rig.store.set("strength", 0.75)
    rig.say("/sdbridge/preset/recall/1", 1, 2.0)
    rig.wait(1.0)
    assert rig.store.get("strength") == pytest.approx(0.5)


def test_a_recall_with_fade_and_easing(rig: Rig) -> None:
    rig.store.set("strength", 1.0)
    rig.show.save("up")
    rig.store.set("strength", 0.0)
    rig.say("/sdbridge/preset/recall", "up", 2.0, "ease_in")
    rig.wait(1.0)
    assert rig.store.get("strength") == pytest.approx(0.25)


def test_one_fader_morphs_between_two_presets(rig: Rig) -> None:
    for name, strength in (("a", 0.0), ("b", 1.0)):
        rig.store.set("strength", strength)
        rig.show.save(name)
    rig.say("/sdbridge/morph", "a", "b", 0.5)
    assert rig.store.get("strength") == 0.5
    rig.say("/sdbridge/morph", 0.25)
    assert rig.store.get("strength") == 0.25
    rig.say("/sdbridge/morph/b/a", 0.125)
    assert rig.store.get("strength") == 0.875


def test_cues_over_osc(tmp_path: Path) -> None:
    cues = tuple(CueConfig(name=f"c{n}", values={"steps": n}) for n in (1, 2, 3))
    rig = Rig(tmp_path, cues=cues)
    for address, args, cue in (
        ("/sdbridge/cue/go", (), "c1"),
        ("/sdbridge/cue/next", (1,), "c2"),
        ("/sdbridge/cue/go", ("c3",), "c3"),
        ("/sdbridge/cue/previous", (), "c2"),
        ("/sdbridge/cue/go/c1", (1.0,), "c1"),
        ("/sdbridge/cue/go", (3,), "c3"),
    ):
        assert rig.say(address, *args).verdict == "ok"
        assert (rig.show.cue, rig.store.get("steps")) == (cue, int(cue[1]))


def test_fade_and_stop_over_osc(rig: Rig) -> None:
    rig.store.set("strength", 0.0)
    rig.say("/sdbridge/fade", "strength", 1.0, 2.0)
    rig.wait(1.0)
    rig.say("/sdbridge/cue/stop")
    rig.wait(2.0)
    assert rig.store.get("strength") == pytest.approx(0.5)


def test_a_value_before_a_save_in_the_same_burst_is_saved(rig: Rig) -> None:
    messages = [
        encode_message("/sdbridge/strength", (0.5,)),
        encode_message("/sdbridge/preset/save", ("now",)),
        encode_message("/sdbridge/strength", (1.0,)),
    ]
    rig.packet(encode_bundles(messages, 60_000)[0])
    assert rig.show.presets.find("now").values["strength"] == 0.5
    assert rig.store.get("strength") == 1.0


def test_ping_is_answered_with_what_it_said(rig: Rig) -> None:
    rig.say("/sdbridge/ping", "hello", 3)
    assert rig.heard(PAD) == [("/sdbridge/pong", ("hello", 3))]


# --- the incumbent's addresses ---


@pytest.fixture
def compat(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Config(port=0, compat=("streamdiffusiontd",)))


def test_flat_addresses_and_json_of_streamdiffusiontd(compat: Rig) -> None:
    rig = compat
    for address, args in (
        ("/prompt", ("a fox",)),
        ("/negative_prompt", ("blur",)),
        ("/guidance_scale", (1.5,)),
        ("/delta", (0.5,)),
        ("/t_list", (12, 24)),
        ("/seed", (9,)),
        ("/pause", (1,)),
        ("/sdmode", ("txt2img",)),
        ("/controlnets", ('[{"conditioning_scale": 0.4, "enabled": false}, {"preprocessor": "canny"}]',)),
        ("/cached_attention", ('{"enabled": true, "cache_interval": 2}',)),
        ("/prompt_interpolation_method", ("linear",)),
    ):
        assert rig.say(address, *args).verdict == "ok", address
    wanted = {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "guidance_scale": 1.5,
        "delta": 0.5,
        "step_indices": "12,24",
        "steps": 2,
        "seed": 9,
        "output.freeze": True,
        "mode": "txt2img",
        "controlnet.1.scale": 0.4,
        "controlnet.1.enabled": False,
        "controlnet.2.preprocessor": "canny",
        "feature_bank.enabled": True,
        "feature_bank.interval": 2,
        "prompt_blend": "linear",
    }
    assert {name: rig.store.get(name) for name in wanted} == wanted
    rig.say("/play")
    assert rig.store.get("output.freeze") is False


def test_prompt_and_seed_lists_fill_the_slots_and_silence_the_rest(compat: Rig) -> None:
    compat.store.set("prompt.3.weight", 1.0)
    compat.say("/prompt_list", '[["ice", 0.25], ["fire", 0.75]]')
    compat.say("/seed_list", "[[1, 0.5], [2, 0.5]]")
    assert [compat.store.get(f"prompt.{n}.text") for n in (1, 2)] == ["ice", "fire"]
    assert [compat.store.get(f"prompt.{n}.weight") for n in (1, 2, 3)] == [0.25, 0.75, 0.0]
    assert [compat.store.get(f"seed.{n}.weight") for n in range(1, 5)] == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{} {}",
        '[["a"]]',
        "[" * 5000,
        '[["a", NaN]]',
        '[["a", 1e999]]',
        '[["a", "much"]]',
        '[["x", 1]]' * 2,
        "[null]",
    ],
)
@pytest.mark.parametrize(
    "address", ["/prompt_list", "/seed_list", "/controlnets", "/t_list", "/cached_attention"]
)
def test_bad_json_changes_nothing_at_all(compat: Rig, address: str, text: str) -> None:
    entry = compat.say(address, text)
    assert entry.verdict == "invalid" and entry.reason.startswith("SDB-PARAM-")
    assert compat.store.revision == 0


def test_whole_numbers_of_any_length_in_json_are_refused_not_a_fault(compat: Rig) -> None:
    entry = compat.say("/seed_list", f"[[{'9' * 4000}, 1]]")
    assert (entry.verdict, entry.reason[:13]) == ("invalid", "SDB-PARAM-NAN")


def test_without_compat_their_addresses_are_unknown(rig: Rig) -> None:
    assert rig.say("/prompt", "x").verdict == "unknown"


# --- the log ---


def test_the_log_keeps_the_last_two_hundred_and_no_large_texts(rig: Rig) -> None:
    for n in range(300):
        rig.say("/sdbridge/prompt", f"{n}" + "x" * 10_000)
    entries = rig.input.log.entries()
    assert len(entries) == 200
    assert all(len(str(entry.args)) < 200 for entry in entries)
    assert entries[-1].as_json()["sender"] == "127.0.0.1:50001"


def test_a_fault_in_a_command_does_not_take_the_rest_of_the_bundle_along(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.show, "go", broken)
    messages = [encode_message("/sdbridge/cue/go", (1,)), encode_message("/sdbridge/strength", (0.5,))]
    rig.packet(encode_bundles(messages, 60_000)[0])
    assert rig.store.get("strength") == 0.5
