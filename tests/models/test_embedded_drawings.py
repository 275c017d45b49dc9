"""Are the training pictures what the vocabulary says, the same for a seed, and never a held-out pair?"""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from scripts.demo_model.captions import UNCONDITIONAL, caption, corpus, held_out_pairs, with_fillers  # noqa: E402
from scripts.demo_model.compositions import COMPOSITION_DRAWINGS, UNNAMED_DRAWINGS  # noqa: E402
from scripts.demo_model.fields import Canvas  # noqa: E402
from scripts.demo_model.materials import MATERIAL_DRAWINGS  # noqa: E402
from scripts.demo_model.networks import TOKENS, build_text_encoder, learn_merges, write_vocabulary  # noqa: E402
from scripts.demo_model.pairs import Captions, looked_up, restyled_share, text_states  # noqa: E402
from scripts.demo_model.palettes import NATURAL_STOPS, PALETTE_STOPS, colour, stops_tensor  # noqa: E402
from scripts.demo_model.photos import draw_photo_like  # noqa: E402
from scripts.demo_model.sampling import noise_levels  # noqa: E402
from scripts.demo_model.scenes import NO_PALETTE, draw_scenes  # noqa: E402
from scripts.demo_model.settings import CPU  # noqa: E402
from sdbridge.models.embedded_model import COMPOSITIONS, MATERIALS, PALETTES  # noqa: E402

SIZE = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_word_of_the_vocabulary_has_a_drawing_and_no_other_is_there() -> None:
    assert tuple(MATERIAL_DRAWINGS) == MATERIALS
    assert tuple(NATURAL_STOPS) == MATERIALS
    assert tuple(PALETTE_STOPS) == PALETTES
    assert tuple(COMPOSITION_DRAWINGS) == COMPOSITIONS


@pytest.mark.parametrize("material", MATERIALS)
def test_a_material_is_textured_and_keeps_the_layout(material: str) -> None:
    tone = torch.full((4, SIZE, SIZE), 0.15)
    tone[:, :, SIZE // 2 :] = 0.85
    value = MATERIAL_DRAWINGS[material](Canvas(4, SIZE, seeded()), tone).clamp(0, 1)
    assert value.isfinite().all()
    assert value[:, :, : SIZE // 2].std() > 0.02
    assert value[:, :, SIZE // 2 :].mean() - value[:, :, : SIZE // 2].mean() > 0.05


@pytest.mark.parametrize("name", [*COMPOSITION_DRAWINGS, *UNNAMED_DRAWINGS])
def test_a_composition_gives_tones(name: str) -> None:
    drawing = COMPOSITION_DRAWINGS.get(name) or UNNAMED_DRAWINGS[name]
    tone = drawing(Canvas(6, SIZE, seeded(1)))
    assert tone.shape == (6, SIZE, SIZE) and tone.isfinite().all()
    assert tone.clamp(0, 1).flatten(1).std(1).mean() > 0.04


def test_scenes_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (draw_scenes(2, 3, SIZE, seeded(s), random.Random(s)) for s in (4, 4, 5))
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures, other.pictures)
    assert first.pictures.shape == (2, 4, 3, SIZE, SIZE)


def test_held_out_pairs_are_never_drawn() -> None:
    held_out, seen = held_out_pairs(), set()
    for seed in range(40):
        scenes = draw_scenes(4, 3, 16, seeded(seed), random.Random(seed))
        for material, palette in zip(scenes.materials.flatten(), scenes.palettes.flatten(), strict=True):
            if palette != NO_PALETTE:
                seen.add((MATERIALS[material], PALETTES[palette]))
    assert len(held_out) >= len(MATERIALS) and len(seen) > 100
    assert not seen & held_out


def test_captions_name_what_they_are_given() -> None:
    rng = random.Random(3)
    for _ in range(50):
        line = caption("zebra", "indigo", "star", rng)
        assert {"zebra", "indigo", "star"} <= set(line.replace(",", " ").split())
    assert "zebra" in with_fillers("zebra", rng).replace(",", " ").split()
    assert UNCONDITIONAL == ""


def shipped_tokenizer(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=TOKENS
    )


def test_training_s_tokenizer_gives_the_exported_one_s_ids(tmp_path) -> None:
    mine, theirs = write_vocabulary(tmp_path), shipped_tokenizer(tmp_path)
    assert len(mine) == len(theirs) and mine.pad_token_id == theirs.pad_token_id
    rng = random.Random(2)
    for _ in range(40):
        line = caption(rng.choice(MATERIALS), rng.choice((None, "gold")), rng.choice((None, "face")), rng)
        options = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
        assert mine(line).input_ids == theirs(line, **options).input_ids, line


def test_the_text_states_worked_out_for_training_are_the_encoder_s(tmp_path) -> None:
    tokenizer = write_vocabulary(tmp_path)
    encoder = build_text_encoder(CPU, tokenizer)
    captions = Captions(tokenizer, "cpu")
    lines = ["fire", "a gold face made of zebra", ""]
    mine, theirs = text_states(encoder, captions.ids(lines)), captions.embed(encoder, lines)
    assert torch.allclose(mine, theirs, atol=1e-5)
    chosen = torch.tensor([[0, 2]])
    assert torch.equal(looked_up(torch.eye(3), chosen)[0], torch.eye(3)[[0, 2]])


def test_every_word_of_the_captions_is_one_token_and_unknown_ones_are_spelled(tmp_path) -> None:
    write_vocabulary(tmp_path)
    tokenizer = shipped_tokenizer(tmp_path)
    for word in {word for line in corpus() for word in line.replace(",", " ").split()}:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert len(tokenizer.tokenize("xylophone")) > 1
    assert learn_merges({"ab"}) == [("a", "b</w>")]


def test_colours_run_through_the_stops() -> None:
    stops = stops_tensor(["crimson"], torch.device("cpu"))
    ramp = colour(torch.tensor([[[0.0, 0.25, 0.5, 0.75, 1.0]]]), stops)
    assert torch.allclose(ramp[0, :, 0].T, stops[0], atol=1e-5)


def test_photo_like_pictures_are_pictures() -> None:
    pictures = draw_photo_like(2, SIZE, seeded(2))
    assert pictures.shape == (2, 3, SIZE, SIZE)
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.02


def test_strength_is_a_smooth_control_by_training() -> None:
    share = restyled_share(torch.arange(0, 1000, 50))
    assert share[0] == 0 and share[-1] == 1
    assert (share.diff() >= 0).all()


def test_noise_levels_are_those_of_the_shipped_schedule() -> None:
    from diffusers import LCMScheduler

    from scripts.demo_model.networks import SCHEDULE

    signal, noise = noise_levels("cpu")
    assert torch.allclose(signal**2, LCMScheduler(**SCHEDULE).alphas_cumprod, atol=1e-5)
    assert torch.allclose(signal**2 + noise**2, torch.ones(1000), atol=1e-6)
