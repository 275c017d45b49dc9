"""Prompts: what diffusers embeds, weights, long texts, blends, transitions, encoding beside the loop."""

from __future__ import annotations

import threading

import pytest
import torch

from sdbridge.engine.image.blend import Arc, Blender
from sdbridge.engine.image.device import choose_placement
from sdbridge.engine.image.load import load_model
from sdbridge.engine.image.prompt import (
    PromptCache,
    PromptMixer,
    PromptSettings,
)
from sdbridge.engine.image.prompt_weights import parse_weights
from sdbridge.engine.image.text import CHUNK, MOST_CHUNKS, TextEmbedding, TextEncoder
from tests.engine.image.rig import Rig, frame, relative


@pytest.fixture(scope="module")
def encoder(checkpoint) -> TextEncoder:
    model = load_model(checkpoint(), choose_placement("cpu", "float64"))
    return TextEncoder(model.text_encoders, model.tokenizers, model.device, model.dtype)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_plain_texts_are_embedded_as_diffusers_does(checkpoint, family: str, clip_skip: int) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if family == "sdxl" and clip_skip == 2:
        pytest.skip("the small second encoder has only two layers")
    model = load_model(checkpoint(family), choose_placement("cpu", "float64"))
    ours = TextEncoder(model.text_encoders, model.tokenizers, model.device, model.dtype).encode(
        "a red fox, winter", clip_skip
    )
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(checkpoint(family), torch_dtype=torch.float64, local_files_only=True)
    skip = clip_skip or None
    with torch.inference_mode():
        if family == "sdxl":
            tokens, _, pooled, _ = pipe.encode_prompt(
                "a red fox, winter", device="cpu", do_classifier_free_guidance=False, clip_skip=skip
            )
            assert ours.pooled is not None and relative(ours.pooled, pooled) <= 1e-9
        else:
            if skip and not hasattr(pipe.text_encoder, "text_model"):
                pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder  # its place in older versions
            tokens, _ = pipe.encode_prompt(
                "a red fox, winter", "cpu", 1, do_classifier_free_guidance=False, clip_skip=skip
            )
    assert relative(ours.tokens, tokens) <= 1e-9


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain text, with: colon", [("plain text, with: colon", 1.0)]),
        ("a (b:1.5) c", [("a ", 1.0), ("b", 1.5), (" c", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a (b:2):1.5)", [("a ", 1.5), ("b", 3.0)]),
        (r"\(a\) \[b\]", [("(a) [b]", 1.0)]),
        ("(unclosed", [("unclosed", 1.1)]),
        ("closed) too]", [("closed) too]", 1.0)]),
        ("(a:99)", [("a", 4.0)]),
        ("(a:-1)", [("a", -1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_weighting_syntax(text: str, wanted: list[tuple[str, float]]) -> None:
    found = parse_weights(text)
    assert [fragment.text for fragment in found] == [text for text, _ in wanted]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in wanted])


def test_a_weight_moves_only_its_word_and_weight_one_is_plain(encoder: TextEncoder) -> None:
    plain, one = encoder.encode("a red fox"), encoder.encode("a (red:1.0) fox")
    heavy = encoder.encode("a (red:1.4) fox")
    assert torch.equal(plain.tokens, one.tokens)
    changed = (heavy.tokens - plain.tokens).abs().sum(-1)[0].nonzero().flatten().tolist()
    tokens = len("red")  # the small tokenizer knows letters and a few pairs
    assert changed and max(changed) - min(changed) < tokens
    empty = encoder.encode("")
    place = changed[0]
    wanted = empty.tokens[0, place] + 1.4 * (plain.tokens[0, place] - empty.tokens[0, place])
    assert torch.allclose(heavy.tokens[0, place], wanted, atol=1e-12)


def test_long_texts_become_chunks_and_the_longest_are_cut_with_a_count(encoder: TextEncoder) -> None:
    short = encoder.encode("x " * CHUNK)
    long = encoder.encode("x " * (CHUNK + 1))
    huge = encoder.encode("word " * 10_000)
    assert short.tokens.shape[1] == 77 and long.tokens.shape[1] == 154
    assert torch.equal(short.tokens, long.tokens[:, :77])
    assert huge.tokens.shape[1] == 77 * MOST_CHUNKS and huge.cut > 0 and short.cut == 0
    assert encoder.encode("\N{FOX FACE}\N{ZERO WIDTH JOINER} \x07").tokens.isfinite().all()


def turned(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    return Arc().between(a, b).at(share, torch.empty_like(a))


def test_blends_keep_norms_and_one_prompt_is_itself(encoder: TextEncoder) -> None:
    a, b = encoder.encode("fire"), encoder.encode("ice")
    assert Blender().mix([a], [0.7], "slerp") is a
    half = Blender().mix([a, b], [1.0, 1.0], "slerp").tokens
    wanted = (a.tokens.norm(dim=-1) + b.tokens.norm(dim=-1)) / 2
    assert torch.allclose(half.norm(dim=-1), wanted, rtol=1e-3)
    straight = Blender().mix([a, b], [1.0, 3.0], "linear").tokens
    assert relative(straight, 0.25 * a.tokens + 0.75 * b.tokens) <= 1e-9
    loud = Blender().mix([a, b], [1.0, 1.0], "linear", normalize=False).tokens
    assert relative(loud, a.tokens + b.tokens) <= 1e-9
    three = Blender().mix([a, b, a], [1.0, 1.0, 1.0], "slerp").tokens
    assert three.isfinite().all()
    assert torch.allclose(turned(a.tokens, a.tokens, 0.3), a.tokens, atol=1e-12)
    right = turned(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    assert torch.allclose(right, torch.full((1, 2), 0.5**0.5))


class SlowEncoder:
    """An encoder that waits for leave, so that a test can look at the loop meanwhile."""

    def __init__(self) -> None:
        self.leave = threading.Event()
        self.leave.set()
        self.asked: list[str] = []
        self.shift = 0.0  # as changed weights would

    def encode(self, text: str, clip_skip: int) -> TextEmbedding:
        self.asked.append(text)
        assert self.leave.wait(20)
        value = float(sum(map(ord, text)) % 97) + self.shift
        return TextEmbedding(torch.full((1, 77, 4), value))


@pytest.fixture
def slow():
    encoder = SlowEncoder()
    cache = PromptCache(encoder.encode, torch.device("cpu"))
    yield encoder, cache, PromptMixer(cache)
    encoder.leave.set()
    cache.close()


def value(mixer: PromptMixer, now_s: float = 0.0) -> float:
    return float(mixer.at_frame_edge(now_s).positive.tokens.mean())


def settled(mixer: PromptMixer, cache: PromptCache, now_s: float = 0.0) -> float:
    for future in list(cache._under_way.values()):
        future.result()
    return value(mixer, now_s)


def test_encoding_never_delays_a_frame_and_is_swapped_in_at_an_edge(slow) -> None:
    encoder, cache, mixer = slow
    mixer.set(PromptSettings((("a", 1.0),)))
    assert value(mixer) == ord("a") % 97
    encoder.leave.clear()
    mixer.set(PromptSettings((("b", 1.0),)))
    for _ in range(5):
        assert value(mixer) == ord("a") % 97
        assert mixer.moving
    encoder.leave.set()
    assert settled(mixer, cache) == ord("b") % 97
    assert not mixer.moving
    first = mixer.at_frame_edge(0.0)
    assert mixer.at_frame_edge(1.0) is first, "nothing changed, so nothing is made"


def test_a_transition_starts_from_the_blend_that_stood_and_stays_there(slow) -> None:
    """Blends are written over the ones before; what a transition comes from is none of those."""
    _, cache, mixer = slow

    def texts(weight: float, *names: str) -> PromptSettings:
        return PromptSettings(tuple((name, weight) for name in names), blend="linear", transition_s=10.0)

    mixer.set(texts(1.0, "a", "c"))
    mixer.at_frame_edge(0.0)
    before = settled(mixer, cache, 20.0)
    assert before == pytest.approx((ord("a") % 97 + ord("c") % 97) / 2)
    mixer.set(texts(1.0, "a", "z"))
    mixer.at_frame_edge(30.0)
    assert settled(mixer, cache, 30.0) == pytest.approx(before)
    to = (ord("a") % 97 + ord("z") % 97) / 2
    for step in range(1, 10):
        mixer.set(texts(1.0 + step, "a", "z"))  # mixed anew in every frame
        assert value(mixer, 30.0 + step) == pytest.approx(before + (to - before) * step / 10)
    assert value(mixer, 40.0) == pytest.approx(to) and not mixer.moving


def test_texts_are_cached_whatever_their_slot_and_made_again_for_a_changed_encoder(slow) -> None:
    encoder, cache, mixer = slow
    for text in ("a", "b", "a", "b"):
        mixer.set(PromptSettings((("", 0.0), (text, 1.0))))
        mixer.at_frame_edge(0.0)
        settled(mixer, cache)
    mixer.set(PromptSettings((("a", 1.0), ("b", 1.0))))
    settled(mixer, cache)
    assert sorted(encoder.asked) == ["", "a", "b"]
    mixer.texts_changed()
    mixer.at_frame_edge(0.0)
    settled(mixer, cache)
    assert encoder.asked.count("a") == 2


def test_a_fader_that_changes_the_encoder_each_frame_piles_up_no_texts(slow) -> None:
    """A LoRA with text parts, swept: each move asked for every text again, the last waited for all."""
    encoder, cache, mixer = slow
    mixer.set(PromptSettings((("a", 1.0), ("b", 1.0))))
    mixer.at_frame_edge(0.0)
    settled(mixer, cache)
    asked = len(encoder.asked)
    encoder.leave.clear()
    for _ in range(100):
        mixer.texts_changed()
        mixer.at_frame_edge(0.0)
    encoder.leave.set()
    for _ in range(3):
        settled(mixer, cache)
    texts = 3  # a, b and the empty one
    assert len(encoder.asked) - asked == 2 * texts, (
        "one round that was under way, and one for where it stopped"
    )
    assert not mixer.moving


def test_letters_of_a_text_being_typed_are_not_embedded_one_after_the_other(slow) -> None:
    encoder, cache, mixer = slow
    mixer.at_frame_edge(0.0)
    encoder.leave.clear()
    whole = "a fox in the snow"
    for length in range(1, len(whole) + 1):
        mixer.set(PromptSettings(((whole[:length], 1.0),)))
        mixer.at_frame_edge(0.0)
    encoder.leave.set()
    settled(mixer, cache)
    assert encoder.asked in (["", "a", whole], ["", whole]), "the first may have begun"
    assert not mixer.moving


def test_a_fader_that_changes_the_encoder_shows_on_its_way_and_starts_no_transition(slow) -> None:
    encoder, cache, mixer = slow
    mixer.set(PromptSettings((("a", 1.0),), transition_s=5.0))
    first = value(mixer)
    for move in range(1, 4):
        encoder.shift = float(move)
        mixer.texts_changed()
        mixer.at_frame_edge(float(move))
        assert settled(mixer, cache, move + 0.01) == pytest.approx(first + move)


def test_a_transition_takes_its_time_and_a_new_text_midway_starts_from_what_is_shown(slow) -> None:
    _, cache, mixer = slow
    texts = {name: float(ord(name) % 97) for name in "abc"}
    base = PromptSettings((("a", 1.0),), blend="linear", transition_s=2.0)
    mixer.set(base)
    assert value(mixer, 0.0) == texts["a"]
    mixer.set(PromptSettings((("b", 1.0),), blend="linear", transition_s=2.0))
    mixer.at_frame_edge(10.0)
    start = settled(mixer, cache, 10.0)
    assert start == pytest.approx(texts["a"], abs=1e-4)
    midway = value(mixer, 11.0)
    assert midway == pytest.approx((texts["a"] + texts["b"]) / 2, rel=1e-3)
    mixer.set(PromptSettings((("c", 1.0),), blend="linear", transition_s=2.0))
    mixer.at_frame_edge(11.0)
    assert settled(mixer, cache, 11.0) == pytest.approx(midway, rel=1e-3)
    assert value(mixer, 13.1) == pytest.approx(texts["c"])
    assert not mixer.moving


def test_weights_are_live_and_zero_keeps_the_last_blend(checkpoint) -> None:
    rig = Rig(checkpoint(), {"prompt.1.text": "fire", "prompt.2.text": "ice", "scheduler": "lcm"})
    a = rig.latent_of(frame(0))
    rig.set(prompt__2__weight=1.0)
    both = rig.latent_of(frame(0))
    rig.set(prompt__1__weight=0.0)
    b = rig.latent_of(frame(0))
    assert relative(both, a) > 1e-9 and relative(b, both) > 1e-9
    (rejection,) = rig.set(prompt__2__weight=0.0)
    assert rejection.code == "SDB-PROMPT-WEIGHTS"
    assert relative(rig.latent_of(frame(0)), b) == 0
    rig.set(prompt__1__weight=1.0)
    assert relative(rig.latent_of(frame(0)), a) == 0


def test_sdxl_pooled_and_sizes_follow_every_change(checkpoint) -> None:
    """Defect 4: the forks leave pooled embedding and time ids as they were at the start."""
    rig = Rig(checkpoint("sdxl"), {"prompt.1.text": "fire", "guidance_mode": "full", "guidance_scale": 2.0})
    rig.tick(frame(0))
    before = rig.calls[-1]
    rig.set(prompt__1__text="ice", negative_prompt="blur", width=128)
    rig.tick(frame(1))
    after = rig.calls[-1]
    assert not torch.equal(before.added_cond["text_embeds"], after.added_cond["text_embeds"])
    assert after.added_cond["text_embeds"].shape[0] == after.added_cond["time_ids"].shape[0] == 2
    assert not torch.equal(after.added_cond["text_embeds"][0], after.added_cond["text_embeds"][1])
    assert after.added_cond["time_ids"][0].tolist() == [64, 128, 0, 0, 64, 128]


@pytest.mark.parametrize(
    "text", ["", "   ", "word " * 10_000, "\N{FOX FACE}" * 50, "((((", "(a:0)", "\x00\x01"]
)
def test_strange_prompts_leave_the_stream_running(checkpoint, text: str) -> None:
    rig = Rig(checkpoint(), {"prompt.1.text": "fox", "scheduler": "lcm"}, dtype="float32")
    rig.set(prompt__1__text=text, negative_prompt=text)
    assert rig.latent_of(frame(0)).isfinite().all()


def test_in_the_engine_a_new_text_costs_no_frame_and_shows_when_it_is_ready(checkpoint) -> None:
    rig = Rig(checkpoint(), {"prompt.1.text": "fox", "scheduler": "lcm"}, options={"wait_for_prompts": False})
    before = rig.latent_of(frame(0))
    cache = rig.engine.painter.prompts
    leave, encode = threading.Event(), cache._encode

    def held(text: str, clip_skip: int) -> TextEmbedding:
        assert leave.wait(20)
        return encode(text, clip_skip)

    cache._encode = held
    rig.set(prompt__1__text="ice")
    for _ in range(5):
        assert relative(rig.latent_of(frame(0)), before) == 0, "frames go on with the old text"
    futures = list(cache._under_way.values())
    assert len(futures) == 1
    leave.set()
    futures[0].result()
    assert relative(rig.latent_of(frame(0)), before) > 1e-9
