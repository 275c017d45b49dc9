"""Which benchmark cases there are: name -> (what it measures, import string of the function that does)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

#: A case takes keyword options (seconds, config, weights) and gives plain numbers by name.
Case = Callable[..., Mapping[str, object]]


@dataclass(frozen=True)
class BenchCase:
    """One measurement. ``group`` decides which run by default: faults and soak only when asked."""

    name: str
    summary: str
    target: str
    group: str = "default"

    def load(self) -> Case:
        module, function = self.target.split(":")
        return getattr(import_module(module), function)


CASES: tuple[BenchCase, ...] = (
    BenchCase("bridge-512", "the bridge alone, 512x512 at 60 fps", "sdbridge.bench.bridge:bridge_512"),
    BenchCase("bridge-1080", "the bridge alone, 1920x1080 at 60 fps", "sdbridge.bench.bridge:bridge_1080"),
    BenchCase("bridge-memory", "memory over 10,000 frames", "sdbridge.bench.bridge:bridge_memory"),
    BenchCase("bridge-start", "from the command to page and output", "sdbridge.bench.bridge:bridge_start"),
    BenchCase("demo", "page, first frame and rate of a config or the demo", "sdbridge.bench.demo:demo"),
    BenchCase("engine", "the engine alone on a config's model", "sdbridge.bench.image:config_case"),
    BenchCase("engine-process", "slot to slot", "sdbridge.bench.process:config_process", "config"),
    BenchCase(
        "fault-gaps", "gaps and recovery under faults", "sdbridge.bench.fault_shows:fault_gaps", "faults"
    ),
    BenchCase("soak", "30 minutes of the embedded model at 30 fps", "sdbridge.bench.soak:soak", "soak"),
    BenchCase("control-latency", "OSC to changed frame", "sdbridge.bench.control:fader_to_picture"),
    BenchCase("control-10k", "10,000 OSC messages a second", "sdbridge.bench.control:messages_10k"),
    BenchCase("control-subscribers", "32 OSC subscribers", "sdbridge.bench.control:subscribers_32"),
    # At true size with random weights: these want a GPU.
    BenchCase("sd-turbo", "SD-Turbo, 1 step, 512x512", "sdbridge.bench.image:sd_turbo", "true-size"),
    BenchCase("sd-turbo-process", "slot to slot", "sdbridge.bench.process:sd_turbo_process", "true-size"),
    BenchCase("sd-turbo-start", "cold and second start", "sdbridge.bench.start:sd_turbo_start", "true-size"),
    BenchCase("sd-turbo-4", "the same, frame batch 4", "sdbridge.bench.image:sd_turbo_batch4", "true-size"),
    BenchCase("sd15-lcm", "SD 1.5, LCM, stream batch 4", "sdbridge.bench.image:sd15_lcm", "true-size"),
    BenchCase("sd15-lcm-self", "with guidance self", "sdbridge.bench.image:sd15_lcm_self", "true-size"),
    BenchCase("sd15-everything", "with canny and LoRA", "sdbridge.bench.image:sd15_everything", "true-size"),
    BenchCase("sdxl-turbo", "SDXL-Turbo, 1 step, 512x512", "sdbridge.bench.image:sdxl_turbo", "true-size"),
    BenchCase("live-changes", "each live parameter moves", "sdbridge.bench.live:live_changes", "true-size"),
    BenchCase("lora-fader", "a LoRA weight moves", "sdbridge.bench.conditioning:lora_fader", "true-size"),
    BenchCase("controlnet", "one canny", "sdbridge.bench.conditioning:controlnet_cost", "true-size"),
    BenchCase("controlnet-add", "added live", "sdbridge.bench.conditioning:controlnet_add", "true-size"),
    BenchCase(
        "controlnet-add-60",
        "the same at 60 fps",
        "sdbridge.bench.conditioning:controlnet_add_at_60",
        "true-size",
    ),
    BenchCase("feature-bank", "SD-Turbo, bank on and off", "sdbridge.bench.image:feature_bank", "true-size"),
)


#: What ``sdbridge bench CONFIG`` measures: the engine alone, and through its process.
OF_A_CONFIG = ("engine", "engine-process")


def find(name: str) -> BenchCase | None:
    return next((case for case in CASES if case.name == name), None)
