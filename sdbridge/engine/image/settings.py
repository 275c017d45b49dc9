"""From parameter values to what the stream runs with: plain values, decided once per change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, cast

from sdbridge.engine.image.blend import Blend
from sdbridge.engine.image.guidance import Guidance, Mode
from sdbridge.engine.image.prompt import PromptSettings
from sdbridge.engine.image.schedule import (
    NoiseSchedule,
    Sampler,
    StepPlan,
    indices_from_strength,
    plan_steps,
    rescale_indices,
)
from sdbridge.engine.image.seed import SeedMode, SeedSettings
from sdbridge.engine.image.similarity import Kind, SimilaritySettings
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.table import TABLE

PROMPT_SLOTS = 8
SEED_SLOTS = 4

_TEXTS = itemgetter(*(f"prompt.{slot}.text" for slot in range(1, PROMPT_SLOTS + 1)))
_TEXT_WEIGHTS = itemgetter(*(f"prompt.{slot}.weight" for slot in range(1, PROMPT_SLOTS + 1)))
_SEEDS = itemgetter(*(f"seed.{slot}.value" for slot in range(1, SEED_SLOTS + 1)))
_SEED_WEIGHTS = itemgetter(*(f"seed.{slot}.weight" for slot in range(1, SEED_SLOTS + 1)))


@dataclass(frozen=True)
class BankSettings:
    """The feature bank, section 2.6."""

    enabled: bool = False
    strength: float = 0.8
    threshold: float = 0.98
    interval: int = 4
    frames: int = 1


@dataclass(frozen=True)
class StreamSettings:
    """Everything live, in the stream's own words."""

    mode: Literal["img2img", "txt2img", "bypass"]
    width: int
    height: int
    frames: int
    plan: StepPlan
    guidance: Guidance
    prompts: PromptSettings
    seeds: SeedSettings
    similarity: SimilaritySettings
    bank: BankSettings
    feedback: float


@dataclass(frozen=True)
class ManualSteps:
    """Step indices set by hand, and the schedule length they were meant for."""

    indices: tuple[int, ...] = ()
    set_at: int = 50


def complete(values: Mapping[str, Value]) -> dict[str, Value]:
    """``values`` with the table's default for everything that is missing."""
    return {**TABLE.defaults(), **values}


def stream_settings(
    values: Mapping[str, Value],
    manual: ManualSteps,
    schedule: NoiseSchedule,
    natural_sampler: Sampler,
    hint: str = "",
) -> StreamSettings:
    """All settings from complete ``values``. ``hint`` is the sampler that a distilled LoRA asks for."""
    v = cast(Any, values)
    mode = v["mode"]
    return StreamSettings(
        mode=mode,
        width=int(v["width"]) // 8 * 8,
        height=int(v["height"]) // 8 * 8,
        frames=int(v["frame_batch"]),
        plan=plan_steps(
            schedule,
            choose_sampler(v["scheduler"], natural_sampler, hint),
            int(v["schedule_steps"]),
            _indices(values, manual),
            tcd_gamma=float(v["tcd_gamma"]),
            add_noise=bool(v["add_noise"]),
            from_noise=mode == "txt2img",
        ),
        guidance=Guidance(cast(Mode, v["guidance_mode"]), float(v["guidance_scale"]), float(v["delta"])),
        prompts=PromptSettings(
            texts=weighted_texts(v),
            negative=str(v["negative_prompt"]),
            blend=cast(Blend, v["prompt_blend"]),
            normalize=bool(v["prompt_normalize"]),
            transition_s=float(v["prompt_transition"]),
            clip_skip=int(v["clip_skip"]),
        ),
        seeds=SeedSettings(
            seeds=tuple(zip(map(int, _SEEDS(v)), map(float, _SEED_WEIGHTS(v)), strict=True)),
            mode=cast(SeedMode, v["seed_mode"]),
            walk_speed=float(v["seed_walk_speed"]),
            blend=v["seed_blend"],
        ),
        similarity=SimilaritySettings(
            bool(v["similarity.enabled"]),
            cast(Kind, v["similarity.kind"]),
            float(v["similarity.threshold"]),
            int(v["similarity.max_skip"]),
        ),
        bank=BankSettings(
            bool(v["feature_bank.enabled"]),
            float(v["feature_bank.strength"]),
            float(v["feature_bank.threshold"]),
            int(v["feature_bank.interval"]),
            int(v["feature_bank.frames"]),
        ),
        feedback=float(v["latent_feedback"]),
    )


#: What is done with the input, where there is one.
_OF_THE_INPUT = ("latent_feedback", "pre.feedback", "pre.blur", "pre.sharpen")


def weighted_texts(values: Mapping[str, Value]) -> tuple[tuple[str, float], ...]:
    """Every slot's text and weight."""
    v = cast(Any, values)
    return tuple(zip(map(str, _TEXTS(v)), map(float, _TEXT_WEIGHTS(v)), strict=True))


def choose_sampler(choice: str, natural: Sampler, hint: str) -> Sampler:
    """The sampler by hand, else the one a distilled LoRA brings, else the checkpoint's own."""
    return cast(Sampler, choice if choice != "auto" else hint or natural)


def _indices(values: Mapping[str, Value], manual: ManualSteps) -> tuple[int, ...]:
    schedule_steps = int(values["schedule_steps"])
    if manual.indices:
        return rescale_indices(manual.indices, manual.set_at, schedule_steps)
    # from the prompt alone there is nothing to keep: the whole schedule is walked
    strength = 1.0 if values["mode"] == "txt2img" else float(values["strength"])
    return indices_from_strength(strength, int(values["steps"]), schedule_steps)


def unused_parameters(values: Mapping[str, Value], settings: StreamSettings) -> tuple[str, ...]:
    """Parameters that are set away from their default and have no effect as things stand."""
    unused: list[str] = []
    if values["negative_prompt"] and not (
        settings.guidance.active and settings.guidance.uses_negative_prompt
    ):
        unused.append("negative_prompt")
    if settings.guidance.mode == "none" and float(values["guidance_scale"]) > 1.0:
        unused.append("guidance_scale")
    if settings.plan.sampler != "tcd" and values["tcd_gamma"] != TABLE.rows["tcd_gamma"].default:
        unused.append("tcd_gamma")
    if settings.plan.sampler in ("turbo", "ddim") and not values["add_noise"]:
        unused.append("add_noise")
    if settings.mode == "txt2img":  # there is no input: nothing of it to keep, nothing to prepare
        unused += [name for name in _OF_THE_INPUT if values[name]]
        if values["mask.source"] != "off":
            unused.append("mask.source")
    if values["step_indices"] and values["steps"] != TABLE.rows["steps"].default:
        unused.append("steps")
    return tuple(unused)
