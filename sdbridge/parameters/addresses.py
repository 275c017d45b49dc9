"""The OSC addresses that are no parameters: commands, and the status topics that go out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sdbridge.parameters.parameter import Value
from sdbridge.status import Status


@dataclass(frozen=True)
class Command:
    """An address that does something. ``arguments`` is what a person reads, ``types`` the OSC type tags."""

    address: str
    arguments: str
    types: str
    help: str
    by_segment: bool = False  # the name may also stand in the address, for buttons that send only 1

    def example(self) -> str:
        return f"{self.address} {self.arguments}".strip()


COMMANDS: tuple[Command, ...] = (
    Command(
        "/sdbridge/subscribe",
        "[port] [prefix] [seconds]",
        "isi",
        "Send me what changes under prefix, gathered every 33 ms, to this port (0: the one I send from), "
        "for so many seconds (10 unless given, 3600 at most). Repeat it before the time is over.",
    ),
    Command("/sdbridge/unsubscribe", "[port]", "i", "End my subscriptions, all of them without a port."),
    Command("/sdbridge/refresh", "[prefix]", "s", "Send me everything under prefix now, as it stands."),
    Command(
        "/sdbridge/normalized",
        "0|1",
        "i",
        "From now on I send and hear numbers as 0 to 1 over each parameter's range. "
        "Also: /sdbridge/normalized/ADDRESS takes 0 to 1 from anyone.",
    ),
    Command("/sdbridge/ping", "[anything]", "s", "Answered by /sdbridge/pong with the same arguments."),
    Command(
        "/sdbridge/fade",
        "parameter target seconds [easing]",
        "ssfs",
        "Take one parameter to a value over seconds: linear, ease_in, ease_out or ease_in_out.",
    ),
    Command(
        "/sdbridge/preset/recall",
        "name|number [seconds] [easing]",
        "sfs",
        "Go to a preset. Numbers fade, prompts and seeds are blended, and it ends at exactly the preset.",
        by_segment=True,
    ),
    Command("/sdbridge/preset/save", "name", "s", "Save the look of now under a name.", by_segment=True),
    Command("/sdbridge/preset/rename", "name|number new-name", "ss", "Give a preset another name."),
    Command("/sdbridge/preset/delete", "name|number", "s", "The file goes to the folder deleted beside it."),
    Command(
        "/sdbridge/preset/list",
        "",
        "",
        "Answered by one /sdbridge/preset/list number name for each, then /sdbridge/preset/count n.",
    ),
    Command(
        "/sdbridge/morph",
        "[a b] position",
        "ssf",
        "Between two presets on one fader: 0 is exactly a, 1 exactly b. Without names: the last two. "
        "Also: /sdbridge/morph/A/B position.",
    ),
    Command(
        "/sdbridge/cue/go",
        "[name|number]",
        "s",
        "Go to a cue; without an argument, to the next one.",
        by_segment=True,
    ),
    Command("/sdbridge/cue/next", "", "", "Go to the next cue."),
    Command("/sdbridge/cue/previous", "", "", "Go back one cue."),
    Command("/sdbridge/cue/stop", "", "", "Stop every fade where it is; no cue follows by itself."),
)


@dataclass(frozen=True)
class StatusTopic:
    """A value that only goes out. ``read`` takes it from a status; ``digits`` keep it from chattering."""

    name: str
    type: Literal["i", "f", "s"]
    help: str
    read: Callable[[Status], Value]
    unit: str = ""
    digits: int = 1

    @property
    def address(self) -> str:
        return f"/sdbridge/status/{self.name}"

    def value(self, status: Status) -> Value:
        value = self.read(status)
        return round(float(value), self.digits) if self.type == "f" else value


#: ``heartbeat`` counts seconds and so is no part of a status; its topic stands first.
HEARTBEAT = "/sdbridge/status/heartbeat"

STATUS_TOPICS: tuple[StatusTopic, ...] = (
    StatusTopic("state", "s", "Engine: stopped, loading, warming_up, streaming, failed.", lambda s: s.state),
    StatusTopic("output", "s", "Output: live, holding, fading, fallback, frozen, black.", lambda s: s.output),
    StatusTopic("fps", "f", "Pictures sent a second, repeats included.", lambda s: s.fps, "fps"),
    StatusTopic("fps_new", "f", "Pictures newly painted a second.", lambda s: s.fps_new, "fps"),
    StatusTopic("latency", "f", "Input to output, the median of late.", lambda s: s.latency_ms.p50, "ms"),
    StatusTopic("queue", "i", "Frames waiting for the engine.", lambda s: s.queue, "frames"),
    StatusTopic("vram", "f", "Memory that the engine holds on the GPU.", lambda s: s.vram_mb, "MB", 0),
    StatusTopic("gpu", "f", "How busy the GPU is, 0 to 1.", lambda s: s.gpu_load, "", 2),
    StatusTopic("preset", "s", "The preset recalled last.", lambda s: s.preset),
    StatusTopic("cue", "s", "The cue that stands.", lambda s: s.cue),
    StatusTopic("error", "s", "The last error, one line.", lambda s: s.errors[-1] if s.errors else ""),
    StatusTopic(
        "applied_revision", "i", "Newest change that shows in the picture.", lambda s: s.applied_revision
    ),
    StatusTopic("version", "s", "Version of sdbridge.", lambda s: s.version),
    StatusTopic("schema", "s", "Changes when the table of parameters does.", lambda s: s.schema),
)
