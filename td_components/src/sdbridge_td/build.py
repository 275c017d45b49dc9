"""Makes a component: its code, its operators, its pages, its extension. Doing it twice changes nothing.

Three ways lead here and end at the same network: ``install`` called from Python, the textport's
bootstrap, and the Execute DAT of the collapsed tree when it is dropped into a project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ext_bridge import BridgeExt
from .ext_cues import CUES_PAGES, CuesExt
from .ext_launcher import LAUNCHER_PAGES, LauncherExt
from .ext_monitor import MONITOR_PAGES, MonitorExt
from .mapping import Schema
from .network import BRIDGE_NODES, CUES_NODES, LAUNCHER_NODES, MONITOR_NODES, Node, build_network
from .pages import PageSpec, bridge_pages, build_pages, find_par

if TYPE_CHECKING:
    import td

COMPONENTS = ("SdBridge", "SdBridgeCues", "SdBridgeMonitor", "SdBridgeLauncher")
#: The operators of each component.
NODES: Mapping[str, tuple[Node, ...]] = {
    "SdBridge": BRIDGE_NODES,
    "SdBridgeCues": CUES_NODES,
    "SdBridgeMonitor": MONITOR_NODES,
    "SdBridgeLauncher": LAUNCHER_NODES,
}
_EXTENSIONS: Mapping[str, Any] = {
    "SdBridge": BridgeExt,
    "SdBridgeCues": CuesExt,
    "SdBridgeMonitor": MonitorExt,
    "SdBridgeLauncher": LauncherExt,
}
_VIEWS = {
    "SdBridge": "./out1",
    "SdBridgeMonitor": "./out1",
    "SdBridgeLauncher": "./log",
    "SdBridgeCues": "./cues",
}
_COLOR = (0.35, 0.3, 0.55)

#: The DATs that call the extension: type, toggles that are on, and text from ``callbacks/``.
CALLBACKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("frames", "executeDAT", ("framestart", "exit")),
    ("changes", "parameterexecuteDAT", ("valueschanged", "onpulse", "custom")),
)
BOOT_TOGGLES = ("create", "start")


def code_texts(folder: Path, component: str) -> dict[str, str]:
    """Every text that a component carries, by the name of its DAT. ``folder`` is ``td_components``."""
    source = folder / "src" / "sdbridge_td"
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(source.glob("*.py"))
        if path.stem != "__init__"
    }
    texts |= {
        "callback_" + path.stem: path.read_text(encoding="utf-8")
        for path in sorted((source / "callbacks").glob("*.py"))
        if path.stem not in ("boot", "start")
    }
    texts["start"] = (source / "callbacks" / "start.py").read_text(encoding="utf-8")
    schema = json.loads((folder / "schema" / "parameters.json").read_text(encoding="utf-8"))
    if component != "SdBridge":  # the others say which table they belong to, but show nothing of it
        schema |= {"parameters": [], "status": []}
    texts["schema"] = json.dumps(schema, indent=1, sort_keys=True) + "\n"
    texts["component"] = component + "\n"
    return dict(sorted(texts.items()))


def boot_text(folder: Path) -> str:
    """The text of the Execute DAT that builds a dropped component."""
    return (folder / "src" / "sdbridge_td" / "callbacks" / "boot.py").read_text(encoding="utf-8")


def install(parent: td.COMP, component: str, texts: Mapping[str, str], boot: str, name: str = "") -> td.COMP:
    """Make the component inside ``parent``, or bring the one of that name up to date."""
    comp: Any = parent.op(name or component)
    if comp is None:
        comp = parent.create("baseCOMP", name or component)
    code = _ensure(comp, "baseCOMP", "code", -1100, 600)
    for place, (dat, text) in enumerate(texts.items()):
        made = _ensure(code, "textDAT", dat, 0, -100 * place)
        if made.text != text:
            made.text = text
    for child in list(code.children):
        if child.name not in texts:
            child.destroy()
    starter = _ensure(comp, "executeDAT", "boot", -1100, 450)
    if starter.text != boot:
        starter.text = boot
    for toggle in BOOT_TOGGLES:
        getattr(starter.par, toggle).val = True
    finish(comp, component)
    built: td.COMP = comp
    return built


def finish(comp: td.COMP, component: str) -> None:
    """Everything that is not code: operators, pages, callbacks, extension."""
    code: Any = comp.op("code")
    for place, child in enumerate(sorted(code.children, key=lambda c: c.name)):
        child.nodeX, child.nodeY = 0, -100 * place
    code.nodeX, code.nodeY = -1100, 600
    boot: Any = comp.op("boot")
    boot.nodeX, boot.nodeY = -1100, 450
    schema = Schema(json.loads(code.op("schema").text))
    missing = build_network(comp, NODES[component])
    build_pages(comp, pages_of(component, schema))
    _about(comp, schema)
    for place, (name, kind, toggles) in enumerate(CALLBACKS):
        dat = _ensure(comp, kind, name, -1100, 300 - 150 * place)
        text = code.op("callback_" + name).text
        if dat.text != text:
            dat.text = text
        for toggle in toggles:
            getattr(dat.par, toggle).val = True
        if kind == "parameterexecuteDAT":
            for toggle in ("valuechange", "builtin"):
                getattr(dat.par, toggle).val = False
            dat.par.op = comp
            dat.par.pars = "*"
    comp.color = _COLOR
    comp.par.opviewer.val = _VIEWS[component]
    if comp.par["ext0object"] is None:
        comp.seq.ext.numBlocks = 1
    comp.par.ext0object.val = "op('./code/loader').module.extension(me)"
    comp.par.ext0name.val = "Sdbridge"
    comp.par.ext0promote.val = True
    comp.initializeExtensions()
    comp.ext.Sdbridge.Built(missing)


def pages_of(component: str, schema: Schema) -> tuple[PageSpec, ...]:
    """The pages of one component."""
    if component == "SdBridge":
        return bridge_pages(schema)
    pages: Mapping[str, tuple[PageSpec, ...]] = {
        "SdBridgeCues": CUES_PAGES,
        "SdBridgeMonitor": MONITOR_PAGES,
        "SdBridgeLauncher": LAUNCHER_PAGES,
    }
    return pages[component]


def extension(comp: td.COMP, component: str) -> Any:
    """A fresh extension object for the component."""
    return _EXTENSIONS[component](comp)


def _ensure(comp: Any, kind: str, name: str, x: int, y: int) -> Any:
    there = comp.op(name)
    if there is not None and there.opType != kind:
        there.destroy()
        there = None
    if there is None:
        there = comp.create(kind, name)
        there.nodeX, there.nodeY = x, y
        if kind.endswith("DAT"):
            there.text = ""
    return there


def _about(comp: td.COMP, schema: Schema) -> None:
    import td

    for name, value in (
        ("Version", schema.version),
        ("Schema", schema.hash),
        ("Touchbuild", f"{td.app.version}.{td.app.build}"),
    ):
        par = find_par(comp, name)
        if par is not None and par.val != value:
            par.val = value
