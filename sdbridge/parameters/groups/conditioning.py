"""Rows: what else steers the picture - ControlNets, LoRAs, style images, masks, image hooks."""

from sdbridge.parameters.parameter import Parameter

PREPROCESSORS = (
    "passthrough",
    "canny",
    "softedge",
    "depth",
    "normal",
    "lineart",
    "scribble",
    "color",
    "tile",
    "grey",
    "invert",
)
SOURCES = ("main", "control", "file")

CONTROLNET_ROWS = (
    Parameter(
        "controlnet.#.enabled",
        "bool",
        True,
        slots=8,
        group="controlnet",
        label="ControlNet # on",
        help="Off keeps the network loaded and costs nothing.",
    ),
    Parameter(
        "controlnet.#.model",
        "str",
        "",
        slots=8,
        group="controlnet",
        label="ControlNet # model",
        help="ControlNet or T2I-Adapter: folder, .safetensors file or catalog id. Loaded beside the stream; "
        "empty frees the slot.",
    ),
    Parameter(
        "controlnet.#.scale",
        "float",
        1.0,
        0.0,
        2.0,
        slots=8,
        group="controlnet",
        fade=True,
        label="ControlNet # scale",
        help="How strongly the control image binds.",
    ),
    Parameter(
        "controlnet.#.start",
        "float",
        0.0,
        0.0,
        1.0,
        slots=8,
        group="controlnet",
        label="ControlNet # start",
        help="Share of the denoising, from pure noise (0) to the finished picture (1), where it sets in.",
    ),
    Parameter(
        "controlnet.#.end",
        "float",
        1.0,
        0.0,
        1.0,
        slots=8,
        group="controlnet",
        label="ControlNet # end",
        help="Share of the denoising where it lets go.",
    ),
    Parameter(
        "controlnet.#.source",
        "enum",
        "main",
        choices=SOURCES,
        slots=8,
        group="controlnet",
        label="ControlNet # source",
        help="Where the control image comes from: the main input, the second input, or a file.",
    ),
    Parameter(
        "controlnet.#.file",
        "str",
        "",
        slots=8,
        group="controlnet",
        label="ControlNet # file",
        help="Still image used when the source is file.",
    ),
    Parameter(
        "controlnet.#.preprocessor",
        "enum",
        "passthrough",
        choices=PREPROCESSORS,
        slots=8,
        group="controlnet",
        label="ControlNet # preprocessor",
        help="How the control image is made from its source.",
    ),
    Parameter(
        "controlnet.#.low",
        "float",
        0.1,
        0.0,
        1.0,
        slots=8,
        group="controlnet",
        label="ControlNet # low threshold",
        help="Preprocessor's lower threshold (canny, scribble), of full contrast.",
    ),
    Parameter(
        "controlnet.#.high",
        "float",
        0.3,
        0.0,
        1.0,
        slots=8,
        group="controlnet",
        label="ControlNet # high threshold",
        help="Preprocessor's upper threshold (canny, scribble), of full contrast.",
    ),
    Parameter(
        "controlnet.#.detail",
        "float",
        0.5,
        0.0,
        1.0,
        slots=8,
        group="controlnet",
        label="ControlNet # detail",
        help="Preprocessor's fineness: blur before edges, cells of the colour grid, network resolution.",
    ),
    Parameter(
        "depth_model",
        "str",
        "depth-anything-small",
        group="controlnet",
        help="Depth network of the depth and normal preprocessors: folder or catalog id.",
    ),
    Parameter(
        "softedge_model",
        "str",
        "",
        group="controlnet",
        help="HED network of the softedge preprocessor. Empty: edges are found without a network.",
    ),
    Parameter(
        "control_alignment",
        "enum",
        "aligned",
        choices=("aligned", "newest"),
        group="controlnet",
        help="aligned: each frame in the stream keeps its own control image; newest: all take the latest.",
    ),
    Parameter(
        "control_output",
        "int",
        0,
        0,
        8,
        group="controlnet",
        help="Slot whose control image is sent on the control output; 0 sends none.",
    ),
)

LORA_ROWS = (
    Parameter(
        "lora.#.file",
        "str",
        "",
        slots=8,
        group="lora",
        label="LoRA # file",
        help="LoRA file (.safetensors) or catalog id. Loaded beside the stream; empty frees the slot.",
    ),
    Parameter(
        "lora.#.weight",
        "float",
        1.0,
        -2.0,
        2.0,
        slots=8,
        group="lora",
        fade=True,
        label="LoRA # weight",
        help="How much of the LoRA is mixed in. A fader: 0 is exactly the model without it.",
    ),
)

STYLE_ROWS = (
    Parameter(
        "style_model",
        "str",
        "",
        group="style",
        help="IP-Adapter: .safetensors file, folder or catalog id. Loaded beside the stream.",
    ),
    Parameter(
        "style_encoder",
        "str",
        "",
        group="style",
        help="CLIP image encoder folder for the IP-Adapter. Empty: image_encoder beside it.",
    ),
    Parameter(
        "style_scale",
        "float",
        0.6,
        0.0,
        2.0,
        group="style",
        fade=True,
        help="How strongly style images steer.",
    ),
    Parameter(
        "style_type",
        "enum",
        "linear",
        choices=(
            "linear",
            "ease_in",
            "ease_out",
            "ease_in_out",
            "weak_input",
            "weak_output",
            "style",
            "composition",
            "style_and_composition",
        ),
        group="style",
        help="Which layers of the model the style images reach.",
    ),
    Parameter(
        "style.#.source",
        "enum",
        "off",
        choices=("off", "file", "input", "grab"),
        slots=4,
        group="style",
        label="Style # source",
        help="Style image: from a file, from the style input live, or what was grabbed from the main input.",
    ),
    Parameter(
        "style.#.file", "str", "", slots=4, group="style", label="Style # file", help="Style image file."
    ),
    Parameter(
        "style.#.weight",
        "float",
        1.0,
        0.0,
        2.0,
        slots=4,
        group="style",
        fade=True,
        label="Style # weight",
        help="Share of this style image among several.",
    ),
    Parameter(
        "style.#.grab",
        "trigger",
        slots=4,
        group="style",
        label="Style # grab",
        help="Take the main input's present frame as this style image.",
    ),
)

MASK_ROWS = (
    Parameter(
        "mask.source",
        "enum",
        "off",
        choices=("off", "alpha", "input", "file"),
        group="mask",
        help="Where the mask comes from: the main input's alpha, the mask input, or a file. "
        "White is repainted, black keeps the input exactly.",
    ),
    Parameter("mask.file", "str", "", group="mask", help="Mask image file."),
    Parameter("mask.invert", "bool", False, group="mask", help="Swap inside and outside."),
    Parameter(
        "mask.soft",
        "float",
        8.0,
        0.0,
        128.0,
        unit="px",
        group="mask",
        fade=True,
        help="Width of the soft edge.",
    ),
)

HOOK_ROWS = (
    Parameter(
        "pre.blur", "float", 0.0, 0.0, 20.0, unit="px", group="hooks", fade=True, help="Blur before encoding."
    ),
    Parameter(
        "pre.sharpen", "float", 0.0, 0.0, 3.0, group="hooks", fade=True, help="Sharpen before encoding."
    ),
    Parameter(
        "pre.feedback",
        "float",
        0.0,
        0.0,
        1.0,
        group="hooks",
        fade=True,
        help="Share of the last output mixed into the input picture.",
    ),
    Parameter(
        "post.blur", "float", 0.0, 0.0, 20.0, unit="px", group="hooks", fade=True, help="Blur after decoding."
    ),
    Parameter(
        "post.sharpen", "float", 0.0, 0.0, 3.0, group="hooks", fade=True, help="Sharpen after decoding."
    ),
    Parameter(
        "post.color_match",
        "float",
        0.0,
        0.0,
        1.0,
        group="hooks",
        fade=True,
        help="Pull the output's colours towards the input's.",
    ),
    Parameter(
        "post.upscale", "enum", "off", choices=("off", "2x"), group="hooks", help="Double the output's size."
    ),
)

ROWS = CONTROLNET_ROWS + LORA_ROWS + STYLE_ROWS + MASK_ROWS + HOOK_ROWS
