"""The operators inside each component and the wires between them, as plain lists, and how they come to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import td


@dataclass(frozen=True)
class Node:
    """One operator: type, place in the network, what feeds it, what its parameters are set to."""

    name: str
    type: str
    x: int
    y: int
    inputs: tuple[str, ...] = ()
    pars: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    rows: tuple[tuple[str, ...], ...] = ()
    licensed: bool = False  # a Non-Commercial licence has no such operator


#: Inputs of the transport switches, by the value of Transport.
TRANSPORT_INPUT = {"spoutsyphon": 0, "ndi": 1, "sharedmem": 2}


def _transport(prefix: str, x: int, y: int, source: str) -> tuple[Node, ...]:
    """A sender of each kind, fed by ``source``."""
    return (
        Node(f"spout_{prefix}_out", "syphonspoutoutTOP", x, y, (source,), {"active": False}),
        Node(
            f"ndi_{prefix}_out",
            "ndioutTOP",
            x,
            y - 130,
            (source,),
            {"active": False, "lowperformancebehavior": "skipframes", "includealpha": True},
        ),
        Node(
            f"sharedmem_{prefix}_out",
            "sharedmemoutTOP",
            x,
            y - 260,
            (source,),
            {"active": False, "memtype": "local", "downloadtype": "nextframe"},
            licensed=True,
        ),
    )


def _receivers(prefix: str, x: int, y: int) -> tuple[Node, ...]:
    """A receiver of each kind and the switch between them."""
    return (
        Node(f"spout_{prefix}_in", "syphonspoutinTOP", x, y, pars={"usespoutactivesender": False}),
        Node(f"ndi_{prefix}_in", "ndiinTOP", x, y - 130, pars={"active": False, "bandwidth": "high"}),
        Node(
            f"sharedmem_{prefix}_in", "sharedmeminTOP", x, y - 260, pars={"memtype": "local"}, licensed=True
        ),
        Node(
            f"{prefix}_transport",
            "switchTOP",
            x + 200,
            y,
            (f"spout_{prefix}_in", f"ndi_{prefix}_in", f"sharedmem_{prefix}_in"),
            {"index": 0},
        ),
    )


BRIDGE_NODES: tuple[Node, ...] = (
    Node("in1", "inTOP", -800, 400, pars={"label": "Image"}),
    Node("in2", "inTOP", -800, -100, pars={"label": "Control image"}),
    Node("fit_image", "fitTOP", -600, 400, ("in1",), {"fit": "fitoutside"}),
    Node("fit_control", "fitTOP", -600, -100, ("in2",), {"fit": "fitoutside"}),
    Node("flip_image", "flipTOP", -400, 400, ("fit_image",), {"flipy": False}),
    Node("flip_control", "flipTOP", -400, -100, ("fit_control",), {"flipy": False}),
    *_transport("image", -200, 400, "flip_image"),
    *_transport("control", -200, -100, "flip_control"),
    *_receivers("generated", 100, 400),
    *_receivers("processed", 100, -100),
    Node("flip_generated", "flipTOP", 500, 400, ("generated_transport",), {"flipy": False}),
    Node("flip_processed", "flipTOP", 500, -100, ("processed_transport",), {"flipy": False}),
    Node(
        "hold",
        "cacheTOP",
        700,
        400,
        ("flip_generated",),
        {"active": True, "cachesize": 1, "alwayscook": True},
    ),
    Node(
        "black",
        "constantTOP",
        500,
        270,
        pars={
            "colorr": 0.0,
            "colorg": 0.0,
            "colorb": 0.0,
            "alpha": 1.0,
            "outputresolution": "custom",
            "resolutionw": 512,
            "resolutionh": 512,
        },
    ),
    Node("fallback_image", "moviefileinTOP", 500, 140, pars={"file": ""}),
    Node("fallback", "switchTOP", 700, 140, ("black", "fallback_image", "fit_image"), {"index": 0}),
    Node("fade", "crossTOP", 900, 400, ("hold", "fallback"), {"cross": 0.0, "size": "input1"}),
    Node("out1", "outTOP", 1100, 400, ("fade",), {"label": "Generated"}),
    Node("out2", "outTOP", 1100, -100, ("flip_processed",), {"label": "Processed control"}),
)

MONITOR_NODES: tuple[Node, ...] = (
    Node("in1", "inTOP", -600, 200, pars={"label": "Image"}),
    Node("in2", "inTOP", -600, 0, pars={"label": "Generated"}),
    Node(
        "side_by_side",
        "layoutTOP",
        -300,
        200,
        ("in1", "in2"),
        {
            "align": "horizlr",
            "fit": "fitbest",
            "outputresolution": "custom",
            "resolutionw": 1280,
            "resolutionh": 640,
        },
    ),
    Node(
        "words",
        "textTOP",
        -300,
        0,
        pars={
            "text": "",
            "alignx": "left",
            "aligny": "bottom",
            "fontautosize": "fitiffat",
            "bgalpha": 0.6,
            "outputresolution": "custom",
            "resolutionw": 1280,
            "resolutionh": 80,
        },
    ),
    Node("monitor", "layoutTOP", -100, 100, ("side_by_side", "words"), {"align": "verttb", "fit": "fitbest"}),
    Node("out1", "outTOP", 100, 100, ("monitor",), {"label": "Monitor"}),
)

CUE_COLUMNS = ("id", "name", "preset", "fade", "follow", "prompt", "strength", "seed")
CUES_NODES: tuple[Node, ...] = (
    Node(
        "cues",
        "tableDAT",
        -300,
        200,
        rows=(
            CUE_COLUMNS,
            ("1", "Open", "", "2", "", "a quiet forest at dawn", "0.5", "2"),
            ("2", "Storm", "", "0.5", "8", "a storm of paint", "0.8", "7"),
            ("3", "Close", "", "4", "", "a quiet forest at dawn", "0.2", "2"),
        ),
    ),
)
LAUNCHER_NODES: tuple[Node, ...] = (Node("log", "textDAT", -300, 200, text=""),)


def build_network(comp: td.COMP, nodes: Sequence[Node]) -> list[str]:
    """Make what is missing, put right what is wrong; returns what this TouchDesigner does not have.

    That is an operator's name, or ``type.parameter``; the rest works without. What a user changed on
    an operator of the right type stays, and so does everything that is not ours. Contents of DATs are
    written only into a DAT that was just made.
    """
    missing: list[str] = []
    for node in nodes:
        there = comp.op(node.name)
        if there is not None and there.opType == node.type:
            continue
        if there is not None:
            there.destroy()
        try:
            made: Any = comp.create(node.type, node.name)
        except Exception:  # noqa: BLE001 - TouchDesigner's own tdError, for a licence or a system without it
            missing.append(node.name)
            continue
        made.nodeX, made.nodeY = node.x, node.y
        for name, value in node.pars.items():
            if not set_par(made, name, value):
                missing.append(f"{node.type}.{name}")
        if node.text is not None:
            made.text = node.text
        if node.rows:
            made.clear()
            made.appendRows([list(row) for row in node.rows])
    for node in nodes:
        there = comp.op(node.name)
        wanted = [comp.op(source) for source in node.inputs]
        if there is None or not node.inputs:
            continue
        if [op.id for op in there.inputs] != [op.id for op in wanted if op is not None]:
            there.setInputs(wanted)
    return missing


def set_par(op: td.OP, name: str, value: Any) -> bool:
    """Set an operator's parameter if it says something else; False if there is none of that name."""
    par = op.par[name]
    if par is None:
        return False
    if par.val != value:
        par.val = value
    return True
