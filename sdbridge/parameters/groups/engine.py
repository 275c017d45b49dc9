"""Rows: which engine runs, at which size, and the commands that start and stop it."""

from sdbridge.parameters.parameter import Parameter

G = "engine"

ROWS = (
    Parameter("engine.start", "trigger", group=G, effect="bridge", help="Start the engine if it is stopped."),
    Parameter(
        "engine.stop",
        "trigger",
        group=G,
        effect="bridge",
        help="Stop the engine; the output follows the hold policy.",
    ),
    Parameter(
        "engine.restart",
        "trigger",
        group=G,
        effect="bridge",
        help="Load a fresh engine beside the running one and swap.",
    ),
    Parameter(
        "engine.reset",
        "trigger",
        group=G,
        effect="bridge",
        help="Forget what the stream remembers: latents, feature bank, feedback.",
    ),
    Parameter(
        "model",
        "str",
        "",
        group=G,
        effect="reload",
        help="Model folder, single .safetensors file or catalog id. Empty: the one the config names.",
    ),
    Parameter(
        "mode",
        "enum",
        "img2img",
        choices=("img2img", "txt2img", "bypass"),
        group=G,
        help="img2img paints over the input, txt2img paints from the prompt alone, "
        "bypass sends the input through untouched.",
    ),
    Parameter(
        "width",
        "int",
        512,
        64,
        2048,
        unit="px",
        multiple_of=8,
        group=G,
        help="Width of the generated picture, a multiple of 8 (64 is best with SDXL).",
    ),
    Parameter(
        "height",
        "int",
        512,
        64,
        2048,
        unit="px",
        multiple_of=8,
        group=G,
        help="Height of the generated picture, a multiple of 8 (64 is best with SDXL).",
    ),
    Parameter(
        "acceleration",
        "enum",
        "auto",
        choices=("auto", "eager", "compile", "tensorrt"),
        group=G,
        effect="reload",
        help="How the model is run; auto takes compile on CUDA and eager elsewhere.",
    ),
    Parameter(
        "vae",
        "enum",
        "auto",
        choices=("auto", "tiny", "full"),
        group=G,
        effect="reload",
        help="Tiny decoder (fast) or the model's own full decoder (fine).",
    ),
    Parameter(
        "frame_batch",
        "int",
        1,
        1,
        4,
        group=G,
        help="Frames per step of the stream. More raise throughput and add as many frames of latency.",
    ),
)
