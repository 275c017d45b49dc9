"""Every error a user can meet: its code, what to do next, and what the output shows meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table. ``next_step`` is an instruction, ``output`` the state of the show."""

    code: str
    next_step: str
    output: str = "The output goes on."


ERROR_KINDS: dict[str, ErrorKind] = {}


def _kind(code: str, next_step: str, output: str = "The output goes on.") -> None:
    ERROR_KINDS[code] = ErrorKind(code, next_step, output)


# --- frames and parameters ---
_kind("SDB-FRAME-FORMAT", "Hand over uint8 RGBA with the top row first.")
_kind("SDB-PARAM-UNKNOWN", "See `sdbridge osc` for every address.", "Nothing changed; the output goes on.")
_kind("SDB-PARAM-TYPE", "See `sdbridge osc` for the type.", "Nothing changed; the output goes on.")
_kind("SDB-PARAM-RANGE", "See `sdbridge osc` for the range.", "Nothing changed; the output goes on.")
_kind("SDB-PARAM-NAN", "Send a finite number.", "Nothing changed; the output goes on.")
_kind(
    "SDB-PARAM-READONLY",
    "Values under /sdbridge/status can only be read.",
    "Nothing changed; the output goes on.",
)

# --- TensorRT ---
_kind(
    "SDB-TENSORRT-BUILD",
    "The stream runs on compile instead; sdbridge build tries again.",
)
_kind("SDB-TENSORRT-LOAD", "It is built anew by sdbridge build; compile runs meanwhile.")
_kind("SDB-TENSORRT-RUN", "Build for this size with sdbridge build; compile runs meanwhile.")
_kind("SDB-TENSORRT-REFIT", "The UNet runs by compile instead, with the LoRA in it.")

# --- configuration and start-up ---
_kind("SDB-CONFIG-INVALID", "Mend the lines named above.", "Started in safe mode on the demo's defaults.")
_kind("SDB-INSTALL-PYTHON", "Install Python 3.12 and run the script with it.", "Nothing was started.")
_kind("SDB-INSTALL-FAILED", "Try again; if it stays so, delete .venv.", "Nothing was started.")
_kind("SDB-CLI-FAULT", "This is a bug: send the trace in the log.", "Nothing is running.")
_kind("SDB-TEXTURE-UNKNOWN", "See `sdbridge sources` for the backends.")
_kind("SDB-LOG-WRITE", "Free the disk, or set log.folder.")
_kind("SDB-SUMMARY-WRITE", "Give --summary a file that can be written.", "The run itself was good.")
_kind("SDB-BENCH-UNKNOWN", "sdbridge bench --case list names them.", "Nothing was measured.")
_kind("SDB-CONFIG-MISSING", "Check the path, or leave it out to run the demo.", "Nothing was started.")

# --- presets, cues and fades ---
_kind("SDB-PRESET-UNKNOWN", "See /sdbridge/preset/list or the page.", "Nothing changed; the output goes on.")
_kind("SDB-PRESET-NAME", "Choose a name of 1 to 100 printable characters.", "Nothing was saved.")
_kind("SDB-PRESET-EXISTS", "Choose another name, or delete that preset first.", "Nothing was renamed.")
_kind("SDB-PRESET-BROKEN", "Mend the file; it was left as it is.", "Nothing changed; the output goes on.")
_kind(
    "SDB-PRESET-WRITE",
    "Free some disk space or check the folder's rights; the former file is whole.",
    "Nothing was lost; the output goes on.",
)
_kind("SDB-CUE-UNKNOWN", "See the key cues of the config file.", "Nothing changed; the output goes on.")
_kind(
    "SDB-FADE-EASING",
    "Take linear, ease_in, ease_out or ease_in_out.",
    "Nothing changed; the output goes on.",
)
_kind("SDB-FADE-SECONDS", "Send 0 to 3600 seconds.", "Nothing changed; the output goes on.")

# --- page and HTTP ---
_kind("SDB-WEB-PORT", "Stop the program that holds it, or start with --port 9001.", "Nothing was started.")
_kind(
    "SDB-WEB-HOST",
    "Open the page by this machine's address, or as localhost.",
    "Nothing changed; the output goes on.",
)
_kind(
    "SDB-WEB-ORIGIN",
    "Only the bridge's own page may do this from a browser.",
    "Nothing changed; the output goes on.",
)
_kind(
    "SDB-WEB-TOKEN",
    "Open the link that the log shows at start, or enter the token on the page.",
    "Nothing changed; the output goes on.",
)
_kind("SDB-WEB-TYPE", "Send Content-Type: application/json.", "Nothing changed; the output goes on.")
_kind("SDB-WEB-SIZE", "Send less at once.", "Nothing changed; the output goes on.")
_kind("SDB-WEB-BODY", "See /api/openapi.json for what is taken.", "Nothing changed; the output goes on.")
_kind("SDB-WEB-PATH", "See /api/openapi.json for every address.")
_kind("SDB-WEB-METHOD", "See /api/openapi.json for every address.", "Nothing changed; the output goes on.")
_kind("SDB-PULL-BUSY", "Wait until one of them is here.")
_kind("SDB-WEB-FULL", "Close a page on another device.")
_kind("SDB-WEB-ABSENT", "Try again when it is there.")
_kind("SDB-WEB-FAULT", "Please report it with the text of Copy diagnostics.")

# --- textures ---
_kind("SDB-TEXTURE-UNAVAILABLE", "Run `sdbridge doctor` for what is missing.")
_kind("SDB-TEXTURE-NAME", "Give each output a name of its own.")
_kind(
    "SDB-ENGINE-TEXTURE",
    "Outputs without the GPU path still work; report the text.",
    "The bridge's own sender shows the frames under the same name.",
)
_kind(
    "SDB-TEXTURE-SILENT",
    "It is looked for all the time; `sdbridge sources` lists what can be received now.",
    "The output follows the hold policy.",
)
_kind(
    "SDB-RECORDING-ENDED",
    "Free the disk, then press Send at that output on the page (Connect) for a new film.",
    "The film keeps what it has; every other output goes on.",
)
_kind("SDB-TEXTURE-OPTION", "Mend the option in the configuration; configs/ has examples.")
# --- slots, engine and supervision ---
_kind("SDB-PORT-NONE", "Name a free port with --port.", "Nothing was started.")
_kind(
    "SDB-INSTANCE-RUNNING",
    "Open its page, stop it, or start a second one with another --port.",
    "The running one goes on; nothing was started.",
)
_kind("SDB-INSTANCE-WRITE", "Free the disk or mend the rights of the folder.")
_kind("SDB-HOLD-IMAGE", "Give a png, jpeg, webp, bmp or tiff file.", "Black takes its place.")
_kind("SDB-CRASH-WRITE", "Free the disk or mend the rights of the folder.")
_kind("SDB-BENCH-FAULT", "Close what else runs and measure again.", "The figure is missing.")
_kind("SDB-SERVICE-REFUSED", "Read what the system said above.", "Nothing was changed.")
_kind(
    "SDB-SLOT-LAYOUT", "Give the name of a slot that sdbridge made.", "Nothing changed; the output goes on."
)
_kind("SDB-SLOT-SIZE", "Send frames of the size that the slot was made for.", "The frame was left out.")
_kind("SDB-ENGINE-KIND", "Set engine.kind to image or passthrough.", "The output follows the hold policy.")
_kind(
    "SDB-ENGINE-OOM",
    "Choose a smaller size, fewer steps, or close what else uses the memory.",
    "The last frame is held while the engine restarts.",
)
_kind(
    "SDB-ENGINE-FAULT",
    "See the log for the trace; the engine restarts if it goes on.",
    "The last good frame is held.",
)
_kind("SDB-TEXTURE-FAULT", "See the log for the trace; it is opened again every second.")
_kind("SDB-ENGINE-STALLED", "It is restarted by itself.", "The last frame is held meanwhile.")
_kind("SDB-ENGINE-SILENT", "It is restarted by itself.", "The last frame is held meanwhile.")
_kind(
    "SDB-ENGINE-LASTGOOD",
    "The values that last streamed well are back; change one at a time to find the culprit.",
    "The last frame is held until it streams.",
)
_kind(
    "SDB-ENGINE-SAFEMODE",
    "It starts on defaults, with the model inside the package; recall a preset once it streams.",
    "The last frame is held until it streams.",
)
_kind(
    "SDB-ENGINE-GIVENUP",
    "See the log, then send /sdbridge/engine/start.",
    "The output follows the hold policy until then.",
)
_kind(
    "SDB-ENGINE-BESIDE",
    "Nothing to do: the old one ends first, then the new one loads.",
    "The last frame is held meanwhile.",
)
_kind("SDB-ENGINE-RELOAD", "Check the model's name and files.", "The engine that ran before goes on.")
_kind("SDB-ENGINE-DIED", "It is restarted by itself.", "The last frame is held meanwhile.")

# --- models and the image engine ---
_HELD = "The engine does not start; the last frame is held."
_kind("SDB-MODEL-MISSING", "Check the path, or fetch it with `sdbridge pull`.", _HELD)
_kind(
    "SDB-MODEL-PICKLE",
    "Take a .safetensors instead, or set engine.allow_pickle if you trust its maker.",
    _HELD,
)
_kind("SDB-MODEL-CORRUPT", "Fetch the file again; its size or checksum cannot be right.", _HELD)
_kind("SDB-MODEL-FAMILY", "Give Stable Diffusion 1.5, 2.1 or SDXL, or a model made from these.", _HELD)
_kind("SDB-MODEL-KEYS", "The checkpoint is incomplete or of another architecture; take another.", _HELD)
_kind("SDB-MODEL-PARTS", "Fetch the missing part with `sdbridge pull`.", _HELD)
_kind("SDB-MODEL-SCHEDULE", "Take a checkpoint with a linear or scaled_linear schedule.", _HELD)
_kind("SDB-ENGINE-DEVICE", "Set engine.device to auto.", _HELD)
_kind("SDB-ENGINE-DTYPE", "Set engine.dtype to auto.", _HELD)
_kind("SDB-ENGINE-ACCELERATION", "Set engine.acceleration to auto.", _HELD)
_kind("SDB-ENGINE-STEPS", 'Send rising whole numbers such as "16,32".', "The steps stay as they were.")
_kind("SDB-ENGINE-SIZE", "Send a multiple of 8 (64 is best with SDXL).", "The size stays as it was.")
_kind("SDB-PROMPT-WEIGHTS", "Raise the weight of one prompt.", "The last blend stays.")
_kind(
    "SDB-PULL-UNKNOWN", "See `sdbridge pull` for what there is, or give owner/name.", "Nothing was fetched."
)
_kind("SDB-PULL-NETWORK", "Check the network; the next pull goes on where this one stopped.")
_kind("SDB-PULL-GATED", "Accept the licence on its page, then run `hf auth login`.", "Nothing was fetched.")
_kind("SDB-PULL-DISK", "Free some disk, or set SDBRIDGE_HOME to a larger one.", "Nothing was fetched.")
_kind("SDB-PULL-DAMAGED", "Pull again; the damaged file has been deleted.")
# --- OSC ---
_kind("SDB-OSC-PORT", "Close the other program, or give another port with --port.", "Nothing was started.")
_kind(
    "SDB-OSC-MALFORMED",
    "Check that the sender speaks OSC 1.0 or 1.1.",
    "Nothing changed; the output goes on.",
)
_kind("SDB-OSC-UNKNOWN", "See `sdbridge osc` for every address.", "Nothing changed; the output goes on.")
_kind("SDB-OSC-USAGE", "See docs/osc.md for the arguments.", "Nothing changed; the output goes on.")
_kind("SDB-OSC-PATTERN", "Send a plain address or a simpler pattern.", "Nothing changed; the output goes on.")
_kind(
    "SDB-OSC-DATED",
    "Set both machines' clocks, or date bundles nearer.",
    "Nothing changed; the output goes on.",
)
_kind(
    "SDB-OSC-SUBSCRIBE",
    "Send /sdbridge/subscribe port prefix seconds.",
    "Nothing changed; the output goes on.",
)
# --- conditioning: files, LoRAs, ControlNets, style images, masks ---
_kind("SDB-FILE-MISSING", "Check the path.", "The slot stays as it was; the output goes on.")
_kind(
    "SDB-FILE-BROKEN",
    "Copy or download the file again.",
    "The slot stays as it was; the output goes on.",
)
_kind(
    "SDB-FILE-PICKLE",
    "Take a .safetensors file, or set engine.allow_pickle: true if you trust this one.",
    "The slot stays as it was; the output goes on.",
)
_kind(
    "SDB-PREPROCESS-NETWORK",
    "Pull or name a network of that kind, or take another preprocessor.",
    "That slot steers nothing meanwhile; the output goes on.",
)
_kind(
    "SDB-LORA-FAMILY",
    "Take a LoRA made for the model that runs.",
    "The slot stays as it was; the output goes on.",
)
_kind("SDB-LORA-KEYS", "Take a file that holds a LoRA.", "The slot stays as it was; the output goes on.")
_kind(
    "SDB-CONTROLNET-FAMILY",
    "Take one made for the model that runs.",
    "The slot stays as it was; the output goes on.",
)
_kind(
    "SDB-CONTROLNET-KIND",
    "Take a ControlNet or T2I-Adapter.",
    "The slot stays as it was; the output goes on.",
)
_kind(
    "SDB-IMAGE-FORMAT", "Take a PNG, JPEG or WebP picture.", "The former picture stays; the output goes on."
)
_kind(
    "SDB-STYLE-KIND", "Take an IP-Adapter, standard or plus.", "The former style stays; the output goes on."
)
_kind(
    "SDB-STYLE-FAMILY",
    "Take one made for the model that runs.",
    "The former style stays; the output goes on.",
)
_kind(
    "SDB-STYLE-ENCODER",
    "Set style_encoder to the folder of the encoder it was made with.",
    "The former style stays; the output goes on.",
)
_kind("SDB-MASK-SIZE", "Save the mask at the stream's size.", "The former mask stays; the output goes on.")
_kind("SDB-CONDITION-FAULT", "This is a bug: send the trace in the log.")

# --- MIDI and DMX ---
_kind(
    "SDB-MIDI-CONTROL", "See the list of MIDI controls on the page.", "Nothing changed; the output goes on."
)
_kind(
    "SDB-MIDI-WRITE",
    "Free some disk space or check the folder's rights.",
    "What was learnt holds until the end.",
)
_kind("SDB-DMX-PORT", "Close the other lighting program, or set dmx.protocol to off.", "Nothing was started.")


class SdbridgeError(Exception):
    """An error with a code from the table.

    ``str(error)`` reads ``CODE: what and the numbers. Next step. What the output shows.``
    ``what`` says what happened with the numbers, as half a sentence without a final stop.
    """

    def __init__(self, code: str, what: str, next_step: str | None = None, output: str | None = None) -> None:
        kind = ERROR_KINDS[code]
        self.code = code
        self.what = what.rstrip(".")
        self.next_step = next_step or kind.next_step
        self.output = output or kind.output
        # A question keeps its mark, and a list ends with its last line.
        end = "" if self.what.endswith("\n") else " " if self.what.endswith(("?", "!")) else ". "
        super().__init__(f"{code}: {self.what}{end}{self.next_step} {self.output}")

    def __reduce__(self) -> tuple[type[SdbridgeError], tuple[str, str, str, str]]:
        """Errors cross the pipe between engine and bridge whole."""
        return (type(self), (self.code, self.what, self.next_step, self.output))


def first_line(error: BaseException, most: int = 200, *, kind: bool = False) -> str:
    """What a person needs of an error, which libraries follow with pages; its kind where it says nothing.

    With ``kind`` that stands before the text too, for libraries whose texts mean little without it.
    """
    name = type(error).__name__
    lines = str(error).strip().splitlines()
    if not lines:
        return name
    return f"{name}: {lines[0][:most]}" if kind else lines[0][:most]
