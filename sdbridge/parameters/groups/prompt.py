"""Rows: what the picture shall show."""

from sdbridge.parameters.parameter import Parameter

G = "prompt"

ROWS = (
    Parameter(
        "prompt.#.text",
        "str",
        "",
        slots=8,
        group=G,
        effect="reencode",
        label="Prompt #",
        aliases=("prompt",),
        help="Text of this prompt. (word:1.2) weighs a word; any length is read.",
    ),
    Parameter(
        "prompt.#.weight",
        "float",
        1.0,
        0.0,
        2.0,
        slots=8,
        group=G,
        fade=True,
        label="Prompt # weight",
        help="Share of this prompt in the blend. Prompts without text or weight are left out.",
    ),
    Parameter(
        "negative_prompt",
        "str",
        "",
        group=G,
        effect="reencode",
        help="What to move away from. Used by guidance modes full and initialize only.",
    ),
    Parameter(
        "prompt_blend",
        "enum",
        "slerp",
        choices=("linear", "slerp"),
        group=G,
        help="How several prompts are mixed: straight, or turned with the norm kept.",
    ),
    Parameter(
        "prompt_normalize",
        "bool",
        True,
        group=G,
        help="Weights are shares that add up to 1; off: they amplify.",
    ),
    Parameter(
        "prompt_transition",
        "float",
        0.0,
        0.0,
        60.0,
        unit="s",
        group=G,
        help="Seconds over which a new prompt takes over from the old one. 0 switches at once.",
    ),
    Parameter(
        "clip_skip",
        "int",
        0,
        0,
        4,
        group=G,
        effect="reencode",
        help="How many of the text encoder's last layers to leave out.",
    ),
)
