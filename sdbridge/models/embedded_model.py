"""Where the embedded model lies and which words it knows; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EMBEDDED_DIR = Path(__file__).resolve().parent / "embedded"
"""The pipeline in the diffusers layout: ``unet/ vae/ text_encoder/ tokenizer/ scheduler/``."""

IP_ADAPTER_DIR = EMBEDDED_DIR / "ip_adapter"
"""``ip_adapter.safetensors`` and ``image_encoder/``, as IP-Adapters of big models come."""

SIZE = 256
"""Width and height the model was trained at."""

MATERIALS: tuple[str, ...] = (
    "fire",
    "ocean",
    "clouds",
    "marble",
    "wood",
    "lava",
    "ice",
    "neon grid",
    "galaxy",
    "stained glass",
    "brick",
    "leopard",
    "circuit board",
    "zebra",
    "scales",
    "honeycomb",
    "grass",
    "sand dunes",
    "bubbles",
    "basket weave",
    "crystal",
    "rain",
    "mosaic",
    "lightning",
    "halftone",
    "contour map",
)
PALETTES: tuple[str, ...] = (
    "crimson",
    "amber",
    "gold",
    "lime",
    "emerald",
    "teal",
    "azure",
    "indigo",
    "violet",
    "magenta",
    "rose",
    "silver",
)
COMPOSITIONS: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "ring",
    "star",
    "horizon",
    "mountains",
    "face",
    "blobs",
    "stripes",
    "spiral",
    "arch",
)
SYNONYMS: dict[str, tuple[str, ...]] = {
    "crimson": ("red",),
    "amber": ("orange",),
    "gold": ("yellow", "golden"),
    "emerald": ("green",),
    "teal": ("cyan", "turquoise"),
    "azure": ("blue",),
    "violet": ("purple",),
    "rose": ("pink",),
    "silver": ("grey", "gray"),
    "fire": ("flames", "burning"),
    "ocean": ("water", "sea", "waves"),
    "clouds": ("sky", "cloudy"),
    "marble": ("stone",),
    "wood": ("wooden",),
    "lava": ("magma", "volcano"),
    "ice": ("frozen", "icy"),
    "neon grid": ("neon", "grid"),
    "galaxy": ("space", "stars", "nebula"),
    "stained glass": ("glass",),
    "brick": ("bricks", "wall"),
    "circuit board": ("circuit", "electronics"),
    "scales": ("dragon", "fish"),
    "grass": ("meadow", "fur"),
    "sand dunes": ("sand", "desert"),
    "basket weave": ("basket", "woven"),
    "crystal": ("crystals", "gem"),
    "mosaic": ("tiles", "pixels"),
    "lightning": ("electric", "storm"),
    "halftone": ("comic", "dots"),
    "contour map": ("map", "contours"),
    "circle": ("ball", "sphere", "sun"),
    "face": ("portrait", "head"),
    "horizon": ("landscape",),
}
"""Other words that training put in place of a word now and then."""

STYLES: tuple[str, ...] = ("ink", "glow")
"""The two style LoRAs: ink drawing on paper, and glowing outlines in the dark. They need no trigger word."""


@dataclass(frozen=True)
class Vocabulary:
    """The words the embedded model was trained on."""

    materials: tuple[str, ...]
    palettes: tuple[str, ...]
    compositions: tuple[str, ...]
    styles: tuple[str, ...]

    def words(self) -> tuple[str, ...]:
        return self.materials + self.palettes + self.compositions


VOCABULARY = Vocabulary(MATERIALS, PALETTES, COMPOSITIONS, STYLES)


@dataclass(frozen=True)
class DemoCue:
    """One prompt of the demo's rotation: shown for ``hold_s`` after a fade of ``fade_s``."""

    name: str
    prompt: str
    fade_s: float = 1.5
    hold_s: float = 6.0


DEMO_CUES: tuple[DemoCue, ...] = (
    DemoCue("Fire", "fire"),
    DemoCue("Ocean", "ocean"),
    DemoCue("Neon", "neon grid in magenta"),
    DemoCue("Clouds", "clouds"),
    DemoCue("Lava", "lava"),
    DemoCue("Circuit", "circuit board in emerald"),
    DemoCue("Zebra", "zebra"),
    DemoCue("Rain", "rain in azure"),
    DemoCue("Leopard", "leopard in gold"),
    DemoCue("Grass", "grass"),
)
EXAMPLE_PROMPTS: tuple[str, ...] = tuple(cue.prompt for cue in DEMO_CUES)


@dataclass(frozen=True)
class Part:
    """Something in the package that a config, the page or OSC names like a catalog id."""

    id: str
    kind: str
    summary: str

    @property
    def path(self) -> Path:
        return EMBEDDED_DIR / self.id.removeprefix("embedded").lstrip("/")


PARTS: tuple[Part, ...] = (
    Part("embedded", "checkpoint", "the model in the package, 256x256, for any machine"),
    Part("embedded/loras/ink.safetensors", "lora", "ink drawing on paper, for the embedded model"),
    Part("embedded/loras/glow.safetensors", "lora", "glowing outlines in the dark, for the embedded model"),
    Part("embedded/controlnet_canny", "controlnet", "edges bind the picture, for the embedded model"),
    Part("embedded/controlnet_color", "controlnet", "colours bind the picture, for the embedded model"),
    Part("embedded/ip_adapter", "style", "style from pictures, for the embedded model"),
)


def is_present(directory: Path = EMBEDDED_DIR) -> bool:
    """Whether the weights are installed (a source checkout without them must say so, not fail)."""
    parts = (
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    )
    return all((directory / part).is_file() for part in parts)


def controlnet_dir(kind: str) -> Path:
    """The folder of a ControlNet of the embedded model: ``canny`` or ``color``."""
    return EMBEDDED_DIR / f"controlnet_{kind}"


def lora_path(style: str) -> Path:
    """The file of a style LoRA: ``ink`` is in the kohya layout, ``glow`` in the PEFT one."""
    return EMBEDDED_DIR / "loras" / f"{style}.safetensors"
