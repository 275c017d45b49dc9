"""Every live change between two frames: one UNet call a frame, the right rows, nothing stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdbridge.frame import Chunk, Frame
from tests.engine.image.rig import Rig, frame, relative

VALUES = {"prompt.1.text": "waves", "scheduler": "lcm", "guidance_mode": "none"}


@pytest.fixture
def rig(checkpoint) -> Rig:
    return Rig(checkpoint(), VALUES, dtype="float32")


def ids(chunk: Chunk | None) -> list[int] | None:
    return None if chunk is None else [entry["generated"].frame_id for entry in chunk.frames]


def last_timesteps(rig: Rig) -> list[int]:
    return rig.calls[-1].timesteps.tolist()


def test_each_frame_is_one_call_with_the_expected_rows_whatever_changes(rig: Rig) -> None:
    changes = [
        ({"step_indices": "16,32"}, [679, 359]),
        ({"step_indices": "0,16,32,45"}, [999, 679, 359, 99]),
        ({"schedule_steps": 25}, [999, 679, 359, 119]),  # index 45 of 50 is 22 of 25
        ({"schedule_steps": 50, "step_indices": "22"}, [559]),
        ({"step_indices": "", "strength": 0.5, "steps": 1}, [499]),
        ({"steps": 2}, [499, 259]),
        ({"guidance_mode": "full", "guidance_scale": 2.0}, [499, 259, 499, 259]),
        ({"guidance_scale": 1.0}, [499, 259]),
        ({"guidance_mode": "initialize", "guidance_scale": 1.5}, [499, 259, 499]),
        ({"guidance_mode": "self"}, [499, 259]),
        ({"frame_batch": 2}, [499, 499, 259, 259]),
        ({"guidance_mode": "initialize"}, [499, 499, 259, 259, 499, 499]),
        ({"frame_batch": 1, "guidance_mode": "none", "mode": "txt2img"}, [999, 499]),
        ({"mode": "img2img", "scheduler": "turbo", "steps": 1, "strength": 1.0}, [999]),
    ]
    number = 0
    for change, timesteps in changes:
        rig.set(**change)
        for _ in range(2):
            before = len(rig.calls)
            pair = [frame(number).main, frame(number + 1).main]
            number += 2
            count = rig.engine.spec.chunk_in if not change.get("frame_batch") else int(change["frame_batch"])
            chunk = Chunk(tuple({"main": f} for f in pair[:count]))
            rig.tick(chunk)
            assert len(rig.calls) == before + 1, change
            assert last_timesteps(rig) == timesteps, change


def test_buffers_are_made_again_only_when_a_shape_or_a_length_changes(rig: Rig) -> None:
    stream = rig.engine.painter._stream
    rig.tick(frame(0))
    before = stream.prepared
    for index, change in enumerate(
        (
            {"strength": 0.3},
            {"guidance_scale": 3.0, "guidance_mode": "full"},
            {"prompt__1__text": "fire"},
            {"seed__1__value": 9},
            {"step_indices": "30"},
            {"scheduler": "tcd"},
            {"schedule_steps": 25},
            {"delta": 0.5},
        )
    ):
        rig.set(**change)
        rig.tick(frame(index))
    assert stream.prepared == before
    rig.set(step_indices="10,20")
    rig.tick(frame(20))
    assert stream.prepared == before + 1
    rig.set(width=128)
    rig.tick(frame(21))
    assert stream.prepared == before + 2


def test_a_level_that_changes_meets_no_stale_latent(checkpoint) -> None:
    """Frames in flight are noised to the new level at once: row i is a_i x0 + b_i eps_i with new a, b."""
    rig = Rig(checkpoint(), {**VALUES, "step_indices": "10,30"})
    for k in range(4):
        rig.tick(frame(k))
    stream = rig.engine.painter._stream
    clean = stream._next_clean[:1].clone()
    rig.set(step_indices="5,40")
    rig.tick(frame(4))
    plan = rig.engine.painter.settings.plan
    wanted = plan.alpha[1] * clean + plan.sigma[1] * rig.noise(2)[1:]
    assert relative(rig.calls[-1].sample[1:], wanted) < 1e-9


@pytest.mark.parametrize("sequence", [(2, 4), (4, 2), (1, 4, 1), (3, 1, 2)])
def test_a_changed_number_of_steps_loses_no_order_and_gives_a_frame_each_tick(rig: Rig, sequence) -> None:
    seen: list[int] = []
    number = 0
    for steps in sequence:
        rig.set(steps=steps)
        for _ in range(steps + 3):
            made = rig.tick(frame(number))
            assert made is not None
            seen += ids(made) or []
            number += 1
        assert seen[-1] == number - steps  # n - 1 frames late, and said so
    assert seen == sorted(seen)


def test_a_new_size_applies_between_two_frames_and_frames_of_the_old_size_are_fitted(rig: Rig) -> None:
    rig.set(steps=2)
    rig.tick(frame(0))
    for number, (width, height) in enumerate(((128, 64), (72, 200), (64, 64)), 1):
        rig.set(width=width, height=height)
        made = rig.tick(frame(number))
        assert made is not None and made.frames[0]["generated"].pixels.shape == (height, width, 4)
        assert ids(made) == [number]


def test_refused_values_leave_the_last_good_setting(rig: Rig) -> None:
    rig.set(step_indices="16,32")
    rig.tick(frame(0))
    for bad, code in (
        ("32,16", "SDB-ENGINE-STEPS"),
        ("50", "SDB-ENGINE-STEPS"),
        ("-1,2", "SDB-ENGINE-STEPS"),
        ("a,b", "SDB-ENGINE-STEPS"),
        ("1,1", "SDB-ENGINE-STEPS"),
        ("1,2,3,4,5,6,7,8,9", "SDB-ENGINE-STEPS"),
    ):
        (rejection,) = rig.set(step_indices=bad)
        assert (rejection.name, rejection.code) == ("step_indices", code)
        rig.tick(frame(1))
        assert last_timesteps(rig) == [679, 359]
    (rejection,) = rig.set(width=100)
    assert rejection.code == "SDB-ENGINE-SIZE"
    assert rig.tick(frame(2)).frames[0]["generated"].pixels.shape == (64, 64, 4)


# --- similarity, draining ---


def still(number: int) -> Chunk:
    return frame(number, seed=1)


def test_a_still_input_drains_the_pipe_then_costs_nothing_and_resumes_in_one_frame(rig: Rig) -> None:
    rig.set(steps=3, similarity__enabled=True, similarity__threshold=0.9, similarity__max_skip=600)
    for k in range(4):
        rig.tick(frame(k))
    seen = [ids(rig.tick(still(4)))]
    calls = len(rig.calls)
    seen += [ids(rig.tick(still(k))) for k in range(5, 10)]
    assert seen == [[2], [3], [4], [7], [8], [9]], "the last frames come out, then the picture is repeated"
    assert len(rig.calls) == calls + 2
    assert ids(rig.tick(frame(100))) == [100], "the first other frame shows at once"


def test_more_steps_after_a_rest_bring_no_older_frame_back(rig: Rig) -> None:
    """Found by the random walks: the frame before the rest came out again, after newer ids."""
    rig.set(similarity__enabled=True, similarity__threshold=0.5, similarity__max_skip=600)
    seen = [ids(rig.tick(still(k))) for k in range(3)]
    rig.set(steps=2)
    seen += [ids(rig.tick(still(k))) for k in range(3, 6)]
    assert seen == sorted(seen) and seen[3] == [3]


def test_skipped_frames_of_a_batch_all_come_out(rig: Rig) -> None:
    rig.set(frame_batch=2, similarity__enabled=True, similarity__threshold=0.5, similarity__max_skip=600)
    pairs = [Chunk(({"main": still(k).main}, {"main": still(k + 1).main})) for k in range(0, 8, 2)]
    assert [ids(rig.tick(pair)) for pair in pairs] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(rig.calls) == 1


def test_max_skip_is_exact_and_a_parameter_change_is_never_skipped(rig: Rig) -> None:
    rig.set(similarity__enabled=True, similarity__threshold=0.5, similarity__max_skip=4)
    calls = []
    for k in range(11):
        before = len(rig.calls)
        rig.tick(still(k))
        calls.append(len(rig.calls) - before)
    assert calls == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    before = len(rig.calls)
    rig.set(strength=0.2)
    rig.tick(still(11))
    rig.tick(still(12))
    assert len(rig.calls) == before + 1


def test_the_frame_batch_changes_live_and_all_frames_come_out(rig: Rig) -> None:
    rig.set(steps=2, frame_batch=2)
    seen: list[int] = []
    for k in range(0, 12, 2):
        seen += ids(rig.tick(Chunk(({"main": frame(k).main}, {"main": frame(k + 1).main})))) or []
    seen += [i for chunk in rig.engine.flush() for i in ids(chunk) or []]
    assert seen == [0, 0, *range(12)]


def test_ids_of_a_batch_never_go_back_when_steps_are_added(rig: Rig) -> None:
    rig.set(frame_batch=2)
    seen: list[int] = []
    for turn, k in enumerate(range(0, 20, 2)):
        if turn in (3, 6):
            rig.set(steps=turn // 3 * 2)
        seen += ids(rig.tick(Chunk(({"main": frame(k).main}, {"main": frame(k + 1).main})))) or []
    seen += [i for chunk in rig.engine.flush() for i in ids(chunk) or []]
    assert seen == sorted(seen) and set(seen) == set(range(20))


def test_txt2img_fills_its_pipe_and_goes_on_without_input(rig: Rig) -> None:
    rig.set(mode="txt2img", steps=3, seed_mode="random")
    made = [rig.tick(None) for _ in range(6)]
    assert [m is None for m in made] == [True, True, False, False, False, False]
    pictures = [m.frames[0]["generated"].pixels for m in made if m is not None]
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_same_input_and_seed_give_the_same_bytes_and_another_input_gives_others(rig: Rig) -> None:
    rig.set(steps=2, seed_mode="random", feature_bank__enabled=True)

    def run(offset: int) -> list[bytes]:
        rig.engine.reset("hard")
        return [rig.tick(frame(k + offset)).frames[0]["generated"].pixels.tobytes() for k in range(6)]

    first = run(0)
    assert run(0) == first and run(50) != first


# --- consistency ---


def test_the_feature_bank_off_is_plain_attention_and_on_starts_from_it(checkpoint) -> None:
    plain = Rig(checkpoint(), VALUES)
    banked = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True, "feature_bank.threshold": 0.0})
    wanted = [plain.latent_of(frame(k)) for k in range(4)]
    assert relative(banked.latent_of(frame(0)), wanted[0]) <= 1e-9, "seeded from the first frame, not zeros"
    assert relative(banked.latent_of(frame(1)), wanted[1]) > 1e-6, "later frames remember"
    banked.set(feature_bank__enabled=False)
    assert relative(banked.latent_of(frame(2)), wanted[2]) <= 1e-9


def test_the_bank_holds_as_many_tokens_as_asked_for_and_never_more(checkpoint) -> None:
    rig = Rig(
        checkpoint(), {**VALUES, "feature_bank.enabled": True, "feature_bank.interval": 1}, dtype="float32"
    )
    for held in (1, 3, 2):
        rig.set(feature_bank__frames=held)
        for k in range(5):
            rig.tick(frame(k))
        layers = rig.engine.painter._bank.memory.layers.values()
        assert {layer.kv.shape[1] for layer in layers} <= {64 * (1 + held), 16 * (1 + held)}, "and the frame"


def test_fusion_and_merging_follow_their_definitions_token_by_token() -> None:
    from sdbridge.engine.image.bank_memory import fuse, merge

    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    bank = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    found = fuse(h, bank, 0.8, 0.5)
    for row in range(2):
        for i in range(5):
            likeness = torch.cosine_similarity(h[row, i][None], bank[row])
            best = int(likeness.argmax())
            nearest = bank[row, best] if likeness[best] >= 0.5 else h[row, i]
            assert torch.allclose(found[row, i], 0.2 * h[row, i] + 0.8 * nearest, atol=1e-12)
    keys, values = h[:, :4].clone(), bank[:, :4].clone()
    order = torch.tensor([2, 0, 3, 1])  # tokens 2 and 0 go into 3 or 1
    merged_keys, merged_values = merge([keys, values], order)
    for row in range(2):
        groups: dict[int, list[int]] = {3: [3], 1: [1]}
        for source in (2, 0):
            likeness = torch.cosine_similarity(keys[row, source][None], keys[row, [3, 1]])
            groups[[3, 1][int(likeness.argmax())]].append(source)
        for place, target in enumerate((3, 1)):
            assert torch.allclose(merged_keys[row, place], keys[row, groups[target]].mean(0), atol=1e-12)
            assert torch.allclose(merged_values[row, place], values[row, groups[target]].mean(0), atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_latent_feedback_drifts_neither_in_mean_nor_in_contrast(checkpoint, share: float) -> None:
    rig = Rig(checkpoint(), {**VALUES, "strength": 0.5, "latent_feedback": share}, dtype="float32")
    stream = rig.engine.painter._stream
    noise = rig.noise(1)
    plan = rig.engine.painter.settings.plan
    for k in range(60):
        rig.tick(frame(k % 5))
        entered = (rig.calls[-1].sample - plan.sigma[0] * noise) / plan.alpha[0]
        source = stream._source
        # what enters has the mean and contrast of the input, however often the output came back
        assert torch.allclose(entered.mean((2, 3)), source.mean((2, 3)), atol=1e-3)
        assert torch.allclose(entered.std((2, 3)), source.std((2, 3)), rtol=1e-2)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_latent_feedback_forgets_a_frame_that_overflowed(rig: Rig, share: float) -> None:
    rig.set(latent_feedback=share)
    rig.tick(frame(0))
    rig.engine.painter._last_latent = torch.full_like(rig.latents[-1], float("nan"))
    for number in range(1, 4):
        rig.tick(frame(number))
    assert rig.latents[-1].isfinite().all() and float(rig.latents[-1].std()) > 0.01


def test_luggage_travels_with_its_frame_and_hooks_run_in_order(checkpoint) -> None:
    from sdbridge.engine.image.seams import StreamExtension

    seen: list[tuple] = []

    class Porter(StreamExtension):
        name = "porter"

        def enter(self, roles, latent):
            seen.append(("enter", int(roles["main"][0, 0, 0, 0] * 255 + 0.5)))
            return [f"frame {len(seen)}"] * latent.shape[0]

        def unet_inputs(self, rows, call):
            seen.append(("rows", rows.luggage, rows.timesteps_host, rows.mirrors))
            assert call.sample.shape[0] == len(rows.mirrors)
            return call

        def after_decode(self, image, luggage):
            seen.append(("decoded", luggage))
            return image

    rig = Rig(
        checkpoint(),
        {**VALUES, "step_indices": "10,20", "guidance_mode": "initialize", "guidance_scale": 2.0},
    )
    rig.engine.painter.extensions = (Porter(),)
    for k in range(3):
        pixels = np.full((64, 64, 4), 10 * k, np.uint8)
        rig.tick(Chunk.of(Frame(pixels, k, 0)))
    entered = [item[1] for item in seen if item[0] == "enter"]
    rows = [item[1] for item in seen if item[0] == "rows"]
    assert entered == [0, 10, 20]
    assert rows[0][0] == rows[0][1] and rows[1] == (rows[1][0], rows[0][0]) and rows[2][1] == rows[1][0]
    assert next(item[3] for item in seen if item[0] == "rows") == (0, 1, 0)
    assert [item[1] for item in seen if item[0] == "decoded"] == [(r[1],) for r in rows]
