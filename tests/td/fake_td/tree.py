"""Makes operators in the fake from an expanded tree, as dropping the collapsed ``.tox`` would.

Uses the independent reader, not the project's writer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.td.expanded_reader import read_tree
from tests.td.fake_td import COMP, Host

_TYPES = {"COMP:base": "baseCOMP", "DAT:text": "textDAT", "DAT:execute": "executeDAT"}


def drop(host: Host, parent: COMP, toc: Path) -> Any:
    """Load a tree into ``parent`` and fire onCreate of its Execute DATs."""
    nodes = read_tree(toc)
    made: dict[str, Any] = {}
    top = None
    for path, node in nodes.items():
        above, _, name = path.rpartition("/")
        op = (made[above] if above else parent).create(_TYPES[node.type], name)
        op.nodeX, op.nodeY = node.tile[0], node.tile[1]
        for par, value in node.parms.items():
            op.par[par].val = {"on": True, "off": False}.get(value, value)
        if node.text is not None:
            op.text = node.text
        made[path] = op
        top = top or op
    for op in made.values():
        if op.opType == "executeDAT":
            host.fire("create", "onCreate", only=op)
    return top
