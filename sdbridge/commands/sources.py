"""``sdbridge sources``: what can be received now, and why a backend cannot."""

from __future__ import annotations

from sdbridge.commands.say import ERR, OUT, print_json, print_table
from sdbridge.errors import SdbridgeError
from sdbridge.textures import registry


def run_sources(backend: str | None, as_json: bool) -> int:
    """List sources per receiver backend. Exit 2 for a backend that does not exist."""
    known = registry.receiver_names()
    if backend is not None and backend not in known:
        try:
            registry.receiver_class(backend)
        except SdbridgeError as error:
            ERR.print(str(error), soft_wrap=True)
        return 2
    found: list[dict[str, object]] = []
    for name in [backend] if backend else known:
        available, reason = registry.receiver_available(name)
        sources = registry.list_sources(name) if available else ()
        found.append(
            {
                "backend": name,
                "available": available,
                "reason": reason,
                "sources": [{"name": s.name, "detail": s.detail} for s in sources],
            }
        )
    if as_json:
        print_json(found)
        return 0
    rows = []
    for entry in found:
        listed = entry["sources"]
        assert isinstance(listed, list)
        for source in listed:
            rows.append((str(entry["backend"]), source["name"], source["detail"]))
        if not listed:
            none = "none to list now; " if entry["available"] else ""
            rows.append((str(entry["backend"]), "-", f"{none}{entry['reason']}"))
    print_table(("backend", "name to type", "what it is, or why there is none"), rows)
    OUT.print("\nPut a name under input.main in the config, or pick it on the page.")
    return 0
