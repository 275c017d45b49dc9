"""What is written under a drawing: the grammar, and the pairs that training never sees."""

from __future__ import annotations

import random

from sdbridge.models.embedded_model import COMPOSITIONS, MATERIALS, PALETTES, SYNONYMS

PATTERNS_FULL = (
    "{m} {c} in {p}",
    "{p} {m} {c}",
    "a {c} of {m}, {p}",
    "a {p} {c} made of {m}",
    "{m}, {c}, {p}",
)
PATTERNS_PALETTE = ("{m} in {p}", "{p} {m}", "{m}, {p}", "a picture of {p} {m}")
PATTERNS_COMPOSITION = ("{m} {c}", "a {c} of {m}", "{m}, {c}", "a {c} made of {m}")
PATTERNS_MATERIAL = ("{m}", "{m}", "a picture of {m}")
UNCONDITIONAL = ""
SYNONYM_SHARE = 0.25
FILLER_SHARE = 0.25
# words that people write in prompts and that mean nothing here: the model learns to pass over them
FILLERS = (
    "beautiful", "detailed", "abstract", "texture", "style", "colors", "colours", "photo", "painting",
    "the", "with", "on", "and", "very", "bright", "dark", "warm", "cold", "art", "digital", "background",
    "pattern", "surface", "high", "quality", "made", "from", "an", "image", "scene", "light", "shiny",
)  # fmt: skip


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """About one material-palette pair in ten, spread evenly; training never draws them."""
    pairs = set()
    for row, material in enumerate(MATERIALS):
        pairs.add((material, PALETTES[(row * 5 + 2) % len(PALETTES)]))
    return frozenset(pairs)


def caption(material: str, palette: str | None, composition: str | None, rng: random.Random) -> str:
    """One caption of the grammar. No palette: natural colours. No composition: any layout."""
    if palette and composition:
        pattern = rng.choice(PATTERNS_FULL)
    elif palette:
        pattern = rng.choice(PATTERNS_PALETTE)
    elif composition:
        pattern = rng.choice(PATTERNS_COMPOSITION)
    else:
        pattern = rng.choice(PATTERNS_MATERIAL)
    line = pattern.format(
        m=other_word(material, rng), p=other_word(palette, rng), c=other_word(composition, rng)
    )
    if rng.random() < FILLER_SHARE:
        line = with_fillers(line, rng)
    return line


def other_word(word: str | None, rng: random.Random) -> str | None:
    """The word, or now and then a synonym."""
    if word in SYNONYMS and rng.random() < SYNONYM_SHARE:
        return rng.choice(SYNONYMS[word])
    return word


def with_fillers(line: str, rng: random.Random) -> str:
    """One to three meaningless words before or after the line."""
    for _ in range(rng.randint(1, 3)):
        filler = rng.choice(FILLERS)
        line = rng.choice((f"{filler} {line}", f"{line} {filler}", f"{line}, {filler}"))
    return line


def corpus() -> list[str]:
    """Every word of the grammar in its usual company, for making the tokenizer."""
    lines = [" ".join(FILLERS), *(" ".join(words) for words in SYNONYMS.values())]
    for patterns in (PATTERNS_FULL, PATTERNS_PALETTE, PATTERNS_COMPOSITION, PATTERNS_MATERIAL):
        for pattern in patterns:
            for row in range(max(len(MATERIALS), len(PALETTES), len(COMPOSITIONS))):
                lines.append(
                    pattern.format(
                        m=MATERIALS[row % len(MATERIALS)],
                        p=PALETTES[row % len(PALETTES)],
                        c=COMPOSITIONS[row % len(COMPOSITIONS)],
                    )
                )
    return lines
