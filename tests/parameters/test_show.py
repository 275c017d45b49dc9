"""Recalls, morphs, fades and cues: what the store holds on the way, and exactly what it holds at the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbridge.config import CueConfig
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.fade import BLENDS, EASINGS, plan
from sdbridge.parameters.presets import presettable
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import Change, ParameterStore
from sdbridge.parameters.table import TABLE


class ManualClock:
    def __init__(self) -> None:
        self.now = 10**12

    def now_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def a_show(folder: Path, cues: tuple[CueConfig, ...] = ()) -> tuple[Show, ParameterStore, ManualClock]:
    clock = ManualClock()
    store = ParameterStore()
    return Show(store, folder, clock, cues), store, clock


def run(show: Show, clock: ManualClock, seconds: float, rate: int = 100) -> None:
    for _ in range(round(seconds * rate)):
        clock.sleep(1 / rate)
        show.tick()


def weights(store: ParameterStore) -> dict[str, float]:
    """The prompts that take part in the picture, with their weights."""
    values, _ = store.snapshot()
    blend = BLENDS[0]
    return {
        str(blend.content_of(values, n)): blend.weight_of(values, n)
        for n in blend.numbers()
        if blend.counts(values, n)
    }


@pytest.mark.parametrize("easing", sorted(EASINGS))
def test_a_two_second_recall_gives_at_least_fifty_rising_values(tmp_path: Path, easing: str) -> None:
    show, store, clock = a_show(tmp_path)
    store.set("strength", 0.9)
    show.save("high")
    store.set("strength", 0.1)
    seen: list[float] = [0.1]
    store.subscribe(
        lambda change: seen.append(change.values["strength"]) if "strength" in change.values else None
    )
    show.recall("high", fade_s=2.0, easing=easing)
    run(show, clock, 2.1)
    assert len(seen) >= 50
    assert all(a < b for a, b in itertools.pairwise(seen))
    assert seen[-1] == 0.9
    assert not show.fading


def test_a_recall_without_fade_is_one_revision(tmp_path: Path) -> None:
    show, store, _ = a_show(tmp_path)
    store.set_many({"strength": 0.9, "prompt": "a fox", "seed": 7})
    show.save("fox")
    store.set_many({"strength": 0.1, "prompt": "a cat", "seed": 3})
    before = store.revision
    outcome = show.recall("fox")
    assert outcome.revision == before + 1
    assert (store.get("strength"), store.get("prompt"), store.get("seed")) == (0.9, "a fox", 7)
    assert show.preset == "fox"


def test_prompts_cross_over_slots_and_end_exactly_at_the_preset(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set_many({"prompt.1.text": "forest", "prompt.2.text": "fog", "prompt.2.weight": 0.5})
    show.save("B")
    wanted, _ = store.snapshot()
    store.set_many({"prompt.1.text": "city", "prompt.2.text": "", "prompt_transition": 3.0})
    show.recall("B", fade_s=2.0)
    assert weights(store) == {"city": 1.0}, "the picture must not jump at the start"
    assert store.get("prompt_transition") == 0.0, "two crossfades at once would fight"
    run(show, clock, 1.0)
    half = weights(store)
    assert half == pytest.approx({"forest": 0.5, "fog": 0.25, "city": 0.5})
    run(show, clock, 1.1)
    ended, _ = store.snapshot()
    assert {n: ended[n] for n in presettable(TABLE)} == {n: wanted[n] for n in presettable(TABLE)}


def test_equal_prompts_are_not_blended_with_themselves(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set_many({"prompt.1.text": "a", "prompt.2.text": "b", "prompt.2.weight": 1.0})
    show.save("ab")
    store.set_many({"prompt.1.text": "b", "prompt.2.text": "a"})
    show.recall("ab", fade_s=1.0)
    for _ in range(5):
        run(show, clock, 0.15)
        assert weights(store) == {"a": 1.0, "b": 1.0}


def test_nine_and_more_prompts_at_once_drop_the_lightest_old_one(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    for n in range(1, 6):
        store.set_many({f"prompt.{n}.text": f"new {n}", f"prompt.{n}.weight": 1.0})
    show.save("new")
    for n in range(1, 6):
        store.set_many({f"prompt.{n}.text": f"old {n}", f"prompt.{n}.weight": n / 10})
    show.recall("new", fade_s=1.0)
    run(show, clock, 0.5)
    assert set(weights(store)) == {*(f"new {n}" for n in range(1, 6)), "old 3", "old 4", "old 5"}
    run(show, clock, 0.6)
    assert weights(store) == {f"new {n}": 1.0 for n in range(1, 6)}


def test_seeds_morph_through_weighted_slots(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set("seed", 11)
    show.save("eleven")
    store.set("seed", 22)
    show.recall("eleven", fade_s=1.0)
    run(show, clock, 0.25)
    values, _ = store.snapshot()
    seeds = {values[f"seed.{n}.value"]: values[f"seed.{n}.weight"] for n in range(1, 5)}
    assert seeds[11] == pytest.approx(0.25) and seeds[22] == pytest.approx(0.75)
    run(show, clock, 0.8)
    assert store.get("seed") == 11
    assert [store.get(f"seed.{n}.weight") for n in range(1, 5)] == [1.0, 0.0, 0.0, 0.0]


def test_a_lora_comes_in_from_nothing_and_leaves_when_it_is_silent(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    show.save("plain")
    store.set_many({"lora.1.file": "ink", "lora.1.weight": 0.8})
    show.save("ink")
    show.recall("plain", fade_s=1.0)
    run(show, clock, 0.5)
    assert store.get("lora.1.file") == "ink"
    assert store.get("lora.1.weight") == pytest.approx(0.4)
    run(show, clock, 0.6)
    assert (store.get("lora.1.file"), store.get("lora.1.weight")) == ("", 1.0)
    show.recall("ink", fade_s=1.0)
    assert (store.get("lora.1.file"), store.get("lora.1.weight")) == ("ink", 0.0)
    run(show, clock, 1.1)
    assert store.get("lora.1.weight") == 0.8


def test_the_operators_hand_wins_over_a_fade(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set_many({"strength": 1.0, "delta": 2.0})
    show.save("up")
    store.set_many({"strength": 0.0, "delta": 0.0})
    show.recall("up", fade_s=2.0)
    run(show, clock, 1.0)
    store.set("strength", 0.2, "osc:127.0.0.1:9")
    run(show, clock, 1.5)
    assert store.get("strength") == 0.2
    assert store.get("delta") == 2.0, "the other fades go on"


def test_a_newer_recall_takes_over_only_what_it_names(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set_many({"strength": 1.0, "delta": 2.0, "prompt": "sea", "prompt_transition": 4.0})
    show.save("all")
    (tmp_path / "part.yaml").write_text("values: {strength: 0.5, prompt: land}\n")
    store.set_many({"strength": 0.0, "delta": 0.0, "prompt": "sky"})
    show.recall("all", fade_s=2.0)
    run(show, clock, 1.0)
    show.recall("part", fade_s=1.0)
    run(show, clock, 1.2)
    assert store.get("strength") == 0.5
    assert store.get("delta") == 2.0
    assert weights(store) == {"land": 1.0}
    assert store.get("prompt") == "land"
    assert store.get("prompt_transition") == 4.0, "what was only put off must come back"


def test_panic_stops_fades_and_follows_at_once(tmp_path: Path) -> None:
    cues = (CueConfig(name="one", values={"strength": 1.0}, fade=2.0, follow=3.0), CueConfig(name="two"))
    show, store, clock = a_show(tmp_path, cues)
    store.set_many({"strength": 0.0, "prompt": "x", "prompt_transition": 5.0})
    show.go()
    show.fade({"prompt": "y"}, 4.0)
    run(show, clock, 1.0)
    store.set("panic", 1)
    stopped = store.get("strength")
    run(show, clock, 6.0)
    assert store.get("strength") == stopped == pytest.approx(0.5)
    assert show.cue == "one"
    assert store.get("prompt_transition") == 5.0


def test_stop_all_keeps_the_values_where_they_are(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set("strength", 0.0)
    show.fade({"strength": 1.0}, 2.0)
    run(show, clock, 0.5)
    show.stop_all()
    run(show, clock, 3.0)
    assert store.get("strength") == pytest.approx(0.25)


def test_morph_is_exact_at_both_ends_and_a_blend_between(tmp_path: Path) -> None:
    show, store, _ = a_show(tmp_path)
    store.set_many({"strength": 0.2, "prompt": "ice", "seed": 1, "lora.1.file": "x", "lora.1.weight": 1.0})
    show.save("A")
    at_a, _ = store.snapshot()
    store.set_many({"strength": 0.8, "prompt": "fire", "seed": 2, "lora.1.file": ""})
    show.save("B")
    at_b, _ = store.snapshot()
    show.morph("A", "B", 0.25)
    assert store.get("strength") == pytest.approx(0.35)
    assert weights(store) == pytest.approx({"ice": 0.75, "fire": 0.25})
    assert (store.get("lora.1.file"), store.get("lora.1.weight")) == ("x", 0.75)
    show.morph("A", "B", 1.0)
    assert store.snapshot()[0] == at_b
    show.morph("A", "B", 0.5)
    show.morph("A", "B", 0.0)
    assert store.snapshot()[0] == at_a
    assert show.preset == "A"


def test_presets_leave_the_operators_switches_alone(tmp_path: Path) -> None:
    show, store, _ = a_show(tmp_path)
    show.save("calm")
    store.set_many({"output.black": True, "hold.after": 9.0, "output.fps": 50.0})
    show.recall("calm")
    assert (store.get("output.black"), store.get("hold.after"), store.get("output.fps")) == (True, 9.0, 50.0)


def test_a_recall_never_resizes_or_reloads_the_engine_unless_its_file_says_so(tmp_path: Path) -> None:
    show, store, _ = a_show(tmp_path)
    store.set_many({"width": 256, "height": 256, "vae": "tiny"})
    show.save("look")
    assert show.presets.find("look").values == {}
    store.set_many({"width": 768, "vae": "full"})
    show.recall("look")
    assert (store.get("width"), store.get("vae")) == (768, "full")
    (tmp_path / "wide.yaml").write_text("values: {width: 1024}")
    assert show.recall("wide").rejected == ()
    assert store.get("width") == 1024


def test_values_of_a_file_that_no_parameter_takes_are_reported_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("values: {strenght: 1, strength: 0.3, steps: many, output.black: 1}\n")
    show, store, _ = a_show(tmp_path)
    outcome = show.recall("odd")
    assert store.get("strength") == 0.3
    assert sorted(one.name for one in outcome.rejected) == ["output.black", "steps", "strenght"]
    assert store.get("output.black") is False


def test_save_during_a_fade_keeps_the_target_not_the_way(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    store.set_many({"strength": 0.9, "prompt": "there"})
    show.save("target")
    store.set_many({"strength": 0.1, "prompt": "here"})
    show.recall("target", fade_s=2.0)
    run(show, clock, 1.0)
    show.save("copy")
    assert show.presets.find("copy").values == show.presets.find("target").values


def test_cues_go_by_name_by_number_next_previous_and_follow(tmp_path: Path) -> None:
    cues = (
        CueConfig(name="open", values={"strength": 0.1}),
        CueConfig(name="rise", values={"strength": 0.9}, fade=1.0, follow=2.0),
        CueConfig(name="7", values={"strength": 0.5}),
    )
    show, store, clock = a_show(tmp_path, cues)
    with pytest.raises(SdbridgeError, match="SDB-CUE-UNKNOWN"):
        show.previous()
    show.go()
    assert (show.cue, store.get("strength")) == ("open", 0.1)
    show.next()
    run(show, clock, 1.9)
    assert (show.cue, store.get("strength")) == ("rise", 0.9)
    run(show, clock, 0.2)
    assert (show.cue, store.get("strength")) == ("7", 0.5)
    with pytest.raises(SdbridgeError, match="after the last of 3"):
        show.next()
    show.go(1)
    assert show.cue == "open"
    show.go("7")
    assert show.cue_position == 3
    show.previous()
    assert show.cue == "rise"
    with pytest.raises(SdbridgeError, match="SDB-CUE-UNKNOWN"):
        show.go("nowhere")


def test_no_preset_stands_once_a_cue_went_elsewhere(tmp_path: Path) -> None:
    cues = (
        CueConfig(name="away", values={"strength": 0.1}),
        CueConfig(name="calm", preset="calm"),
        CueConfig(name="nothing"),
    )
    show, store, _ = a_show(tmp_path, cues)
    store.set("strength", 0.7)
    show.save("calm")
    topics: list[str] = []
    show.subscribe(topics.append)
    show.recall("calm")
    show.go("away")
    assert show.preset == "" and topics == ["preset", "cue", "preset"]
    show.go("calm")
    assert show.preset == "calm"
    show.go("nothing")
    assert show.preset == "calm", "its look stands"


def test_a_cue_whose_preset_is_gone_changes_nothing_and_the_show_goes_on(tmp_path: Path) -> None:
    cues = (CueConfig(name="a", values={"strength": 0.2}, follow=0.5), CueConfig(name="b", preset="gone"))
    show, store, clock = a_show(tmp_path, cues)
    show.go()
    run(show, clock, 1.0)
    assert (show.cue, store.get("strength")) == ("a", 0.2)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 3601, "soon", None])
def test_a_senseless_fade_time_is_refused(tmp_path: Path, seconds: object) -> None:
    show, store, _ = a_show(tmp_path)
    with pytest.raises(SdbridgeError, match="SDB-FADE-SECONDS"):
        show.fade({"strength": 1.0}, seconds)  # type: ignore[arg-type]
    assert store.revision == 0


def test_an_unknown_easing_is_refused_before_anything_changes(tmp_path: Path) -> None:
    show, store, _ = a_show(tmp_path)
    show.save("a")
    with pytest.raises(SdbridgeError, match="SDB-FADE-EASING"):
        show.recall("a", 1.0, easing="bouncy")
    assert store.revision == 0


prompt_states = st.lists(
    st.tuples(
        st.sampled_from(["", " ", "a", "b", "c", "d", "e", "f"]), st.sampled_from([0.0, 0.5, 1.0, 2.0])
    ),
    min_size=8,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(prompt_states, prompt_states, st.floats(0.01, 0.99))
def test_any_prompts_to_any_prompts_starts_as_it_was_and_ends_exact(
    before: list[tuple[str, float]], after: list[tuple[str, float]], share: float
) -> None:
    def values(state: list[tuple[str, float]]) -> dict[str, object]:
        texts = {f"prompt.{n}.text": text for n, (text, _) in enumerate(state, 1)}
        return {**texts, **{f"prompt.{n}.weight": weight for n, (_, weight) in enumerate(state, 1)}}

    store = ParameterStore()
    store.set_many(values(before))
    start, _ = store.snapshot()
    target = {name: TABLE.rows[name].coerce(value) for name, value in values(after).items()}
    transition = plan(start, target, TABLE)

    def taking_part(state: dict[str, object]) -> dict[str, float]:
        every = {**start, **state}
        blend = BLENDS[0]
        found: dict[str, float] = {}
        for n in blend.numbers():
            if blend.counts(every, n):
                text = str(blend.content_of(every, n))
                found[text] = found.get(text, 0.0) + blend.weight_of(every, n)
        return found

    old, new = taking_part(start), taking_part(target)
    opened = taking_part(transition.opening)
    assert all(old[text] == pytest.approx(weight) for text, weight in opened.items())
    if (
        len(set(old) | set(new)) <= 8 - (8 - len({*target}))
        and len(set(old) - set(new)) + sum(1 for n in range(1, 9) if BLENDS[0].counts({**start, **target}, n))
        <= 8
    ):
        assert opened == pytest.approx(old)
    assert set(taking_part(transition.whole_at(share))) <= set(old) | set(new)
    assert {**start, **transition.whole_at(1.0)} == {**start, **target}
    assert {**start, **transition.whole_at(0.0)} == start


def test_a_change_by_the_show_is_told_apart_from_an_operators(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    sources: list[str] = []
    store.subscribe(lambda change: sources.append(change.source))
    show.fade({"strength": 1.0}, 0.1)
    run(show, clock, 0.2)
    assert sources and all(source.startswith("show:") for source in sources)


def test_a_fade_that_ends_is_exactly_one_last_change(tmp_path: Path) -> None:
    show, store, clock = a_show(tmp_path)
    changes: list[Change] = []
    show.fade({"strength": 1.0}, 0.1)
    clock.sleep(5.0)
    store.subscribe(changes.append)
    show.tick()
    show.tick()
    assert [dict(change.values) for change in changes] == [{"strength": 1.0}]


def test_many_hands_at_once_neither_block_nor_lose_the_last_word(tmp_path: Path) -> None:
    """Ticks, recalls, fades, saves and an operator from threads of their own, as in the daemon."""
    import threading

    show, store, clock = a_show(tmp_path)
    show.save("a")
    faults: list[BaseException] = []

    def repeat(action: Callable[[int], object]) -> threading.Thread:
        def work() -> None:
            try:
                for n in range(150):
                    action(n)
            except BaseException as error:
                faults.append(error)

        return threading.Thread(target=work)

    def tick(n: int) -> None:
        clock.sleep(0.01)
        show.tick()

    hands = [
        repeat(tick),
        repeat(lambda n: show.recall("a", 0.05)),
        repeat(lambda n: show.fade({"strength": n % 2, "prompt": f"p{n}"}, 0.03)),
        repeat(lambda n: store.set("delta", n / 100, "osc:hand")),
        repeat(lambda n: show.save(f"s{n % 3}")),
        repeat(lambda n: show.stop_all()),
    ]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join(60)
    assert faults == [] and not any(hand.is_alive() for hand in hands)
    show.fade({"delta": 2.0}, 10.0)
    store.set("delta", 0.125, "osc:hand")
    run(show, clock, 11.0)
    assert store.get("delta") == 0.125


def test_a_follow_time_on_the_last_cue_begins_the_list_again(tmp_path: Path) -> None:
    cues = tuple(CueConfig(name=n, values={"prompt": n}, follow=1.0) for n in ("fire", "ice"))
    show, store, clock = a_show(tmp_path, cues)
    show.go("fire")
    seen = []
    for _ in range(4):
        seen.append(store.get("prompt"))
        run(show, clock, 1.01)
    assert seen == ["fire", "ice", "fire", "ice"]


def test_whoever_types_a_prompt_keeps_it(tmp_path: Path) -> None:
    cues = tuple(CueConfig(name=n, values={"prompt": n}, follow=1.0) for n in ("fire", "ice"))
    show, store, clock = a_show(tmp_path, cues)
    show.go("fire")
    run(show, clock, 0.5)
    store.set("strength", 0.9, "osc:somebody")
    run(show, clock, 0.6)
    assert store.get("prompt") == "ice" and show.cue_follows, "other faders do not stop the list"
    store.set("prompt", "my own words", "page")
    assert not show.cue_follows
    run(show, clock, 3.0)
    assert store.get("prompt") == "my own words"


def test_a_fault_in_a_listener_keeps_no_news_from_the_others(tmp_path: Path, caplog) -> None:
    show, _, _ = a_show(tmp_path)
    heard: list[str] = []

    def broken(topic: str) -> None:
        raise ZeroDivisionError

    show.subscribe(broken)
    show.subscribe(heard.append)
    show.save("high")
    assert heard and "broken" in caplog.text and "ZeroDivisionError" in caplog.text
