"""The custom parameters of every component: which pages, in which order, and how they come to be.

What belongs to the daemon is made from its schema; only what belongs to TouchDesigner stands here.
Building again with the same schema touches nothing; with another schema the pages are made anew and
everything that was set, driven by an expression or bound comes back under its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .mapping import SCHEMA_PAGES, Names, Row, Schema, Value

if TYPE_CHECKING:
    import td

STORED_AS = "sdbridge_pages"
#: Blocks that a fresh component shows of each sequence; more appear when they are used.
_FIRST_BLOCKS = 1


@dataclass(frozen=True)
class Spec:
    """One custom parameter."""

    name: str
    style: str  # the method of Page that makes it is append + style
    label: str
    help: str = ""
    default: Value | None = None
    low: float | None = None
    high: float | None = None
    menu: tuple[str, ...] = ()
    read_only: bool = False
    enable: str = ""
    section: bool = False


@dataclass(frozen=True)
class SequenceSpec:
    """A sequence and the parameters of one of its blocks."""

    name: str
    label: str
    block: tuple[Spec, ...]


PageSpec = tuple[str, tuple[Spec | SequenceSpec, ...]]

BRIDGE = (
    Spec("Active", "Toggle", "Active", "Off: nothing is sent or received, the last picture stays.", True),
    Spec("Status", "Str", "Status", "What is going on, and what to do about it.", "", read_only=True),
    Spec(
        "Connection",
        "Menu",
        "Connection",
        "auto: the daemon that runs on this machine, found by its discovery file, else host and port. "
        "manual: host and port.",
        "auto",
        menu=("auto", "manual"),
        section=True,
    ),
    Spec("Host", "Str", "Host", "Machine that the daemon runs on.", "127.0.0.1"),
    Spec("Oscport", "Int", "OSC Port", "UDP port of the daemon.", 9000, 1, 65535),
    Spec(
        "Feedbackport",
        "Int",
        "Feedback Port",
        "UDP port that answers come to. 0 takes a free one, which is right unless a firewall wants to know.",
        0,
        0,
        65535,
    ),
    Spec(
        "Onconnect",
        "Menu",
        "On Connect",
        "pull: take the daemon's values. push: send all of ours. auto: pull, but push to a daemon that was "
        "started anew while this component was running.",
        "auto",
        menu=("auto", "pull", "push"),
    ),
    Spec(
        "Reconnect", "Pulse", "Reconnect", "Begin anew: look the host up again, subscribe, fetch everything."
    ),
    Spec(
        "Transport",
        "Menu",
        "Transport",
        "How pictures travel. spoutsyphon: same machine, no copy through memory. ndi: any machine. "
        "sharedmem: same Windows machine; not with a Non-Commercial licence.",
        "spoutsyphon",
        menu=("spoutsyphon", "ndi", "sharedmem"),
        section=True,
    ),
    Spec("Inputname", "Str", "Image Sender", "Name under which this component sends its image.", "TD image"),
    Spec(
        "Controlname", "Str", "Control Sender", "Name under which it sends its control image.", "TD control"
    ),
    Spec(
        "Outputname",
        "Str",
        "Generated Source",
        "Name of the daemon's output. With NDI: MACHINE (name).",
        "sdbridge",
    ),
    Spec(
        "Controlsource",
        "Str",
        "Control Source",
        "Name of the daemon's control output, if it has one.",
        "sdbridge control",
    ),
    Spec("Ndiextraips", "Str", "NDI Extra IPs", "Addresses to look for NDI sources at, with spaces.", ""),
    Spec(
        "Fitmode",
        "Menu",
        "Fit",
        "How the image is brought to the engine's size: fill crops, fit leaves bars, stretch distorts, "
        "native sends it as it is and leaves the fitting to the daemon.",
        "fill",
        menu=("fill", "fit", "stretch", "native"),
        section=True,
    ),
    Spec("Flipinput", "Toggle", "Flip Image Sent", "Turn what is sent upside down.", False),
    Spec("Flipoutput", "Toggle", "Flip Image Received", "Turn what is received upside down.", False),
)
PROMPT_EXTRA = (
    Spec(
        "Liveprompt",
        "Toggle",
        "Live Prompt",
        "On: texts go out as they change. Off: they wait for Apply Prompt, all together.",
        True,
    ),
    Spec("Applyprompt", "Pulse", "Apply Prompt", "Send the texts that wait."),
)
GENERATE_EXTRA = (
    Spec(
        "Allowreload",
        "Toggle",
        "Allow Reload",
        "Unlocks the parameters that load a new engine beside the running one.",
        False,
    ),
)
STATS_EXTRA = (
    Spec("Picture", "Str", "Picture", "What this component shows now.", "", read_only=True),
    Spec("Sent", "Int", "Datagrams Sent", "UDP datagrams sent since the line was opened.", 0, read_only=True),
)
ABOUT = (
    Spec("Version", "Str", "Version", "Version of sdbridge this component belongs to.", "", read_only=True),
    Spec("Schema", "Str", "Schema", "The parameter table this component was made from.", "", read_only=True),
    Spec("Touchbuild", "Str", "Touch Build", "TouchDesigner that built it.", "", read_only=True),
    Spec("Help", "Pulse", "Help", "Print where the guide is and what this component knows to the textport."),
    Spec(
        "Callbackdat",
        "DAT",
        "Callback DAT",
        "A Text DAT with onStatus(info), onPicture(info) or onDaemon(info); each gets a dictionary.",
    ),
)


def bridge_pages(schema: Schema) -> tuple[PageSpec, ...]:
    """All pages of SdBridge."""
    first: dict[str, tuple[Spec, ...]] = {"Prompt": PROMPT_EXTRA, "Generate": GENERATE_EXTRA}
    pages: list[PageSpec] = [("Bridge", BRIDGE)]
    for page in SCHEMA_PAGES:
        pages.append((page, (*first.get(page, ()), *schema_specs(schema, page))))
    topics = tuple(
        Spec(
            "Daemon" + topic.name.replace("_", ""),
            {"f": "Float", "i": "Int"}.get(topic.type, "Str"),
            topic.name.replace("_", " ").title() + (f" ({topic.unit})" if topic.unit else ""),
            topic.help,
            {"f": 0.0, "i": 0}.get(topic.type, ""),
            read_only=True,
        )
        for topic in schema.topics
    )
    return (*pages, ("Stats", (*STATS_EXTRA, *topics)), ("About", ABOUT))


def schema_specs(schema: Schema, page: str) -> list[Spec | SequenceSpec]:
    """One page's share of the daemon's table; slots become sequences where their first row stands."""
    specs: list[Spec | SequenceSpec] = []
    done: set[str] = set()
    rows = schema.page(page)
    for row in rows:
        if not row.slots:
            specs.append(row_spec(row))
        elif row.sequence not in done:
            done.add(row.sequence)
            block = tuple(row_spec(r) for r in rows if r.sequence == row.sequence)
            specs.append(SequenceSpec(row.sequence, row.name.split(".")[0].title(), block))
    return specs


def row_spec(row: Row) -> Spec:
    """A row of the daemon's table as a parameter: menu, range, default and help come from there."""
    style = {"bool": "Toggle", "int": "Int", "float": "Float", "enum": "Menu", "trigger": "Pulse"}.get(
        row.kind
    )
    if style is None:
        is_file = row.name.endswith((".file", ".image"))
        style = "File" if is_file else "StrMenu" if row.suggestions else "Str"
    numeric = style in ("Int", "Float")
    label = " ".join(row.title.replace("#", " ").split())
    unit = f" ({row.unit})" if row.unit else ""
    return Spec(
        row.par,
        style,
        label + unit,
        f"{row.help} [{row.range}]",
        None if style == "Pulse" else row.default,
        row.minimum if numeric else None,
        row.maximum if numeric else None,
        row.choices or row.suggestions,
        enable="bool(me.par.Allowreload)" if row.effect == "reload" else "",
    )


def build_pages(comp: td.COMP, pages: Sequence[PageSpec]) -> bool:
    """Make the pages if they are not there as they should be. True if anything was made."""
    mark = hashlib.sha256(repr(tuple(pages)).encode()).hexdigest()[:16]
    if comp.fetch(STORED_AS, "", search=False) == mark and _complete(comp, pages):
        return False
    kept = _keep(comp)
    comp.destroyCustomPars()
    made = {name: comp.appendCustomPage(name) for name, _ in pages}
    for name, specs in pages:  # sequences first: until it is in its block, a "Model" would be another "Model"
        for spec in specs:
            if isinstance(spec, SequenceSpec):
                _append_sequence(comp, made[name], spec)
    for name, specs in pages:
        for spec in specs:
            if isinstance(spec, Spec):
                _append(made[name], spec)
    comp.sortCustomPages(*(name for name, _ in pages))
    _give_back(comp, kept)
    comp.store(STORED_AS, mark)
    return True


def find_par(comp: td.COMP, name: str) -> td.Par | None:
    """A parameter by name; a block's parameter also if TouchDesigner keeps its capital."""
    par = comp.par[name]
    if par is None and any(c.isdigit() for c in name):
        head = name.rstrip("abcdefghijklmnopqrstuvwxyz")
        par = comp.par[head + name[len(head) :].capitalize()]
    return par


def blocks(comp: td.COMP, sequence: str) -> int:
    """How many blocks a sequence shows; 0 if there is none of that name."""
    found = comp.seq[sequence]
    return 0 if found is None else int(found.numBlocks)


def set_blocks(comp: td.COMP, names: Names, sequence: str, count: int) -> None:
    """Show so many blocks; later slots get the defaults that the daemon has for them."""
    found = comp.seq[sequence]
    before = blocks(comp, sequence)
    if found is None or count == before:
        return
    found.numBlocks = count
    for block in range(before, count):
        for name in names.in_block(sequence, block):
            row = names.rows[name]
            par = find_par(comp, names.par(name))
            if par is not None and row.kind != "trigger" and par.isDefault:
                par.val = names.default(name)


def _append(page: td.Page, spec: Spec) -> td.Par:
    group: Any = getattr(page, "append" + spec.style)(spec.name, label=spec.label)
    par: td.Par = group[0]
    par.help = spec.help
    if spec.menu:
        par.menuNames = list(spec.menu)
        par.menuLabels = [word.replace("_", " ") for word in spec.menu]
    if spec.low is not None:
        par.min, par.clampMin, par.normMin = spec.low, True, spec.low
    if spec.high is not None:
        par.max, par.clampMax, par.normMax = spec.high, True, spec.high
    if spec.default is not None:
        par.default = spec.default
        par.val = spec.default
    if spec.read_only:
        par.readOnly = True
    if spec.enable:
        par.enableExpr = spec.enable
    if spec.section:
        par.startSection = True
    return par


def _append_sequence(comp: td.COMP, page: td.Page, spec: SequenceSpec) -> None:
    page.appendSequence(spec.name, label=spec.label)
    for block_spec in spec.block:
        _append(page, block_spec)
    made = comp.seq[spec.name]
    if made is not None:
        made.blockSize = len(spec.block)
        made.numBlocks = _FIRST_BLOCKS


def _complete(comp: td.COMP, pages: Sequence[PageSpec]) -> bool:
    there = [page.name for page in comp.customPages]
    if there != [name for name, _ in pages]:
        return False
    return all(
        blocks(comp, spec.name) > 0
        if isinstance(spec, SequenceSpec)
        else find_par(comp, spec.name) is not None
        for _, specs in pages
        for spec in specs
    )


def _keep(comp: td.COMP) -> dict[str, tuple[str, Any]]:
    """What is set, by name in lower case: how it is driven, and by what."""
    import td

    kept: dict[str, tuple[str, Any]] = {}
    for par in comp.customPars:
        if par.isSequence:
            kept[par.name.lower()] = ("blocks", blocks(comp, par.name))
        elif par.mode == td.ParMode.EXPRESSION:
            kept[par.name.lower()] = ("expr", par.expr)
        elif par.mode == td.ParMode.BIND:
            kept[par.name.lower()] = ("bindExpr", par.bindExpr)
        elif not (par.isPulse or par.isDefault or par.readOnly):
            kept[par.name.lower()] = ("val", par.val)
    return kept


def _give_back(comp: td.COMP, kept: dict[str, tuple[str, Any]]) -> None:
    for par in comp.customPars:  # blocks first: their parameters are given back afterwards
        if par.isSequence and kept.get(par.name.lower(), ("", 0))[0] == "blocks":
            found = comp.seq[par.name]
            if found is not None:
                found.numBlocks = max(1, int(kept[par.name.lower()][1]))
    for par in comp.customPars:
        how, what = kept.get(par.name.lower(), ("", None))
        if how in ("expr", "bindExpr"):
            setattr(par, how, what)
        elif (
            how == "val" and not par.isSequence and (not par.isMenu or what in par.menuNames or par.isString)
        ):
            try:
                par.val = what
            except (TypeError, ValueError):
                continue  # the parameter is of another kind now: its default stands
