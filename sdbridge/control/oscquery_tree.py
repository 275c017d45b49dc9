"""The OSCQuery tree: every address as a node with its type, value, range and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdbridge.control.subscriptions import addresses_of
from sdbridge.control.view import BridgeView
from sdbridge.parameters.addresses import COMMANDS, HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.status import Status

Node = dict[str, Any]

#: Attributes that a query may name. HOST_INFO is answered apart from them.
ATTRIBUTES = (
    "FULL_PATH",
    "CONTENTS",
    "TYPE",
    "ACCESS",
    "VALUE",
    "RANGE",
    "DESCRIPTION",
    "TAGS",
    "UNIT",
    "CRITICAL",
    "CLIPMODE",
)
NONE, READ, WRITE, READ_WRITE = 0, 1, 2, 3

_TYPES = {"float": "f", "int": "i", "str": "s", "enum": "s", "trigger": "I"}
_UNITS = {"s": "time.second", "px": "distance.pixel"}
#: Nodes whose children come and go with presets and cues.
CHANGING = ("/sdbridge/preset/recall", "/sdbridge/cue/go")


def build(view: BridgeView) -> Node:
    """The whole tree as it stands, root first."""
    values, _ = view.store.snapshot()
    status = view.status()
    root = _container("/")
    root["DESCRIPTION"] = f"{view.config.name}: all that can be steered"
    for row in view.store.table:
        for address in addresses_of(row):
            _place(root, address, _parameter_node(row, values.get(row.name)))
    for address, value, kind, help_text, unit in _topics(status):
        node: Node = {"TYPE": kind, "ACCESS": READ, "VALUE": [value], "DESCRIPTION": help_text}
        if unit in _UNITS:
            node["UNIT"] = [_UNITS[unit]]
        _place(root, address, node)
    for command in COMMANDS:
        node = {
            "TYPE": command.types or "I",
            "ACCESS": WRITE,
            "DESCRIPTION": f"{command.example()}: {command.help}",
            "CRITICAL": True,
        }
        _place(root, command.address, node)
    _place_choices(root, view)
    return root


def find(root: Node, path: str) -> Node | None:
    """The node at ``path``, or None."""
    node = root
    for part in path.strip("/").split("/") if path.strip("/") else ():
        below = node.get("CONTENTS", {})
        if part not in below:
            return None
        node = below[part]
    return node


def readable_addresses(view: BridgeView) -> Mapping[str, Parameter | None]:
    """Every address that has a value to listen to; None for status topics."""
    found: dict[str, Parameter | None] = {
        address: row for row in view.store.table if row.kind != "trigger" for address in addresses_of(row)
    }
    found.update(dict.fromkeys((HEARTBEAT, *(t.address for t in STATUS_TOPICS))))
    return found


def _topics(status: Status) -> list[tuple[str, Value, str, str, str]]:
    beat = (HEARTBEAT, int(status.uptime_s), "i", "Counts up once a second while sdbridge lives.", "")
    return [beat, *((t.address, t.value(status), t.type, t.help, t.unit) for t in STATUS_TOPICS)]


def _parameter_node(row: Parameter, value: Value | None) -> Node:
    node: Node = {
        "TYPE": ("T" if value else "F") if row.kind == "bool" else _TYPES[row.kind],
        "ACCESS": WRITE if row.kind == "trigger" else READ_WRITE,
        "DESCRIPTION": row.help or row.title,
        "TAGS": [row.group],
    }
    if row.kind == "trigger":
        node["CRITICAL"] = True  # lost on the way, it would never be noticed
        return node
    node["VALUE"] = [value]
    if row.kind == "enum":
        node["RANGE"] = [{"VALS": list(row.choices)}]
    elif row.kind in ("int", "float") and (row.minimum is not None or row.maximum is not None):
        bounds = {"MIN": row.minimum, "MAX": row.maximum}
        whole = row.kind == "int"
        node["RANGE"] = [{k: int(v) if whole else v for k, v in bounds.items() if v is not None}]
        node["CLIPMODE"] = ["both" if row.out_of_range == "clamp" else "none"]
    if row.unit in _UNITS:
        node["UNIT"] = [_UNITS[row.unit]]
    return node


def _place_choices(root: Node, view: BridgeView) -> None:
    """Presets and cues by name in RANGE, and each as a button of its own below."""
    presets = [preset for preset in view.show.list() if not preset.error]
    for address, entries in (
        (CHANGING[0], [(preset.number, preset.name) for preset in presets]),
        (CHANGING[1], [(place, cue.name) for place, cue in enumerate(view.show.cues, 1)]),
    ):
        node = find(root, address)
        if node is None:
            continue
        strings = len(node["TYPE"])
        node["RANGE"] = [{"VALS": [name for _, name in entries]}, *({} for _ in range(strings - 1))]
        for number, name in entries:
            button = {"TYPE": "I", "ACCESS": WRITE, "DESCRIPTION": name, "CRITICAL": True}
            _place(root, f"{address}/{number}", button)


def _place(root: Node, address: str, attributes: Node) -> None:
    node, path = root, ""
    for part in address.strip("/").split("/"):
        path += f"/{part}"
        node = node.setdefault("CONTENTS", {}).setdefault(part, _container(path))
    node.update(attributes)


def _container(path: str) -> Node:
    return {"FULL_PATH": path, "ACCESS": NONE}
