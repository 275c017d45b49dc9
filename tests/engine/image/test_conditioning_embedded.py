"""On the trained model in the package: conditioning does to the picture what it promises, measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.demo_model.measure import drawn_in
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.frame import Chunk, Frame
from sdbridge.models import embedded_model

SIZE = embedded_model.SIZE

pytestmark = pytest.mark.skipif(
    not embedded_model.is_present(), reason="the embedded model's weights are not in this checkout"
)


def needs(part: Path) -> None:
    if not part.exists():
        pytest.skip(f"the embedded model has no {part.name} in this checkout")


@pytest.fixture(scope="module")
def engine() -> Iterator[ImageEngine]:
    made = ImageEngine(
        EngineConfig(
            model=str(embedded_model.EMBEDDED_DIR),
            device="cpu",
            threads=1,
            options={"wait_for_prompts": True},
        )
    )
    made.load({"prompt.1.text": "marble", "width": SIZE, "height": SIZE})
    made.warm_up(SIZE, SIZE)
    yield made
    made.unload()


@pytest.fixture(autouse=True)
def cleared(engine: ImageEngine) -> Iterator[None]:
    yield
    put(engine, dict.fromkeys(("controlnet.1.model", "lora.1.file", "style_model", "mask.file"), ""))
    put(
        engine,
        {"mask.source": "off", "controlnet.1.source": "main", "style.1.source": "off", "mode": "img2img"},
    )


def put(engine: ImageEngine, changes: dict[str, object]) -> None:
    assert engine.apply(changes, 1) == ()
    beside = engine._beside
    assert beside is not None
    for _ in range(3):
        beside.submit(lambda: None).result()
        engine._settle()


def scene(seed: int) -> np.ndarray:
    """Plain shapes on a plain ground, uint8 RGBA."""
    rng = np.random.default_rng(seed)
    image = np.full((SIZE, SIZE, 4), 255, np.uint8)
    image[..., :3] = rng.integers(60, 200, 3)
    for _ in range(3):
        centre = rng.integers(SIZE // 5, SIZE * 4 // 5, 2).tolist()
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        canvas = np.ascontiguousarray(image[..., :3])
        cv2.circle(canvas, centre, int(rng.integers(SIZE // 10, SIZE // 4)), colour, -1, cv2.LINE_AA)
        image[..., :3] = canvas
    return image


def paint(engine: ImageEngine, main: np.ndarray, **others: np.ndarray) -> np.ndarray:
    """The settled picture of a still input, RGB."""
    engine.reset("hard")
    frames = {role: Frame(pixels, 0, 0) for role, pixels in others.items()}
    made = None
    for number in range(engine.spec.pipeline_ticks + 2):
        made = engine.tick(Chunk.of(Frame(main, number, 0), **frames))
    assert made is not None
    return made.frames[0]["generated"].pixels[..., :3]


def test_outside_of_a_mask_the_input_is_kept_to_the_last_bit(engine: ImageEngine) -> None:
    main = scene(1)
    main[:, : SIZE // 2, 3] = 0  # alpha is the mask: the left half is kept
    put(engine, {"mask.source": "alpha", "mask.soft": 16.0, "strength": 0.9})
    out = paint(engine, main)
    kept = SIZE // 2 - 8
    assert np.array_equal(out[:, :kept], main[:, :kept, :3])
    painted = np.abs(out[:, SIZE // 2 + 8 :].astype(int) - main[:, SIZE // 2 + 8 :, :3]).mean()
    assert painted > 5


def edges(image: np.ndarray) -> np.ndarray:
    return cv2.Canny(cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0), 100, 300) > 0


def agreement(ours: np.ndarray, wanted: np.ndarray) -> float:
    near = [cv2.dilate(edge.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for edge in (ours, wanted)]
    precision = (ours & near[1]).sum() / max(1, ours.sum())
    recall = (wanted & near[0]).sum() / max(1, wanted.sum())
    return float(2 * precision * recall / max(1e-9, precision + recall))


def test_a_canny_controlnet_raises_edge_agreement(engine: ImageEngine) -> None:
    """Against the edges of drawings of other seeds than training's, in the prompted material."""
    needs(embedded_model.controlnet_dir("canny"))
    put(engine, {"mode": "txt2img", "steps": 1, "controlnet.1.preprocessor": "canny"})
    put(engine, {"controlnet.1.model": "embedded/controlnet_canny", "controlnet.1.source": "control"})
    found: dict[float, list[float]] = {0.0: [], 1.0: []}
    for seed, material in enumerate(("neon grid", "lava", "stained glass")):
        control = drawing(material, seed)
        put(engine, {"prompt.1.text": material})
        for scale, scores in found.items():
            put(engine, {"controlnet.1.scale": scale})
            scores.append(agreement(edges(paint(engine, control, control=control)), edges(control[..., :3])))
    assert np.mean(found[1.0]) - np.mean(found[0.0]) >= 0.15, found


def drawing(material: str, seed: int) -> np.ndarray:
    """A drawing of a material, uint8 RGBA."""
    drawn = drawn_in(material, None, 1, seed)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    return np.dstack([drawn, np.full(drawn.shape[:2], 255, np.uint8)])


def looks(style: str, image: np.ndarray) -> float:
    """How much a picture has of a look: ink has no colour, glow is dark."""
    if style == "ink":
        return -float((image.max(axis=-1).astype(int) - image.min(axis=-1)).mean())
    return -float(image.mean())


@pytest.mark.parametrize("style", embedded_model.STYLES)
def test_a_lora_moves_its_style_score_monotonically(engine: ImageEngine, style: str) -> None:
    needs(embedded_model.lora_path(style))
    put(engine, {"mode": "img2img", "steps": 1, "step_indices": "16"})
    put(engine, {"lora.1.file": f"embedded/loras/{style}.safetensors"})
    scores: list[float] = []
    for weight in (0.0, 0.5, 1.0):
        made = []
        for seed, material in enumerate(embedded_model.MATERIALS[:4]):
            put(engine, {"lora.1.weight": weight, "prompt.1.text": material})
            made.append(looks(style, paint(engine, scene(seed))))
        scores.append(float(np.mean(made)))
    print(style, scores)
    assert all(later > earlier for earlier, later in itertools.pairwise(scores)), scores


def test_a_style_image_pulls_the_palette_towards_it(engine: ImageEngine, tmp_path: Path) -> None:
    needs(embedded_model.IP_ADAPTER_DIR)
    put(engine, {"mode": "txt2img", "steps": 2, "style_model": "embedded/ip_adapter"})
    colours = {"red": (220, 30, 30), "blue": (30, 50, 220)}
    channels: dict[str, np.ndarray] = {}
    for name, colour in colours.items():
        picture = np.random.default_rng(0).normal(colour, 12, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
        put(
            engine,
            {"style.1.source": "file", "style.1.file": str(tmp_path / f"{name}.png"), "style_scale": 1.0},
        )
        made = [paint(engine, scene(seed)) for seed in range(2)]
        channels[name] = np.mean(made, axis=(0, 1, 2))
    assert channels["red"][0] - channels["red"][2] > channels["blue"][0] - channels["blue"][2], channels
