"""Run inside TouchDesigner: what of the components works there, as one JSON file that can be sent to us.

    SDBRIDGE_TD = r'C:/path/to/sdbridge/td_components'; exec(open(SDBRIDGE_TD + '/selftest_td.py').read())

It makes a COMP ``sdbridge_selftest`` at the root, builds the components in it, looks at every operator and
parameter, sends three OSC messages to a socket of its own and back, and removes the COMP again. No daemon is
needed; with one running, its heartbeat is waited for as well. Nothing is sent anywhere but to this machine.
"""

import json
import os
import platform
import socket
import sys
import time
import traceback
from pathlib import Path

COMP_NAME = "sdbridge_selftest"


def _folder():
    named = globals().get("SDBRIDGE_TD") or os.environ.get("SDBRIDGE_TD") or globals().get("__file__", "")
    if named:
        return Path(named).parent if str(named).endswith(".py") else Path(named)
    import td

    for start in (Path(td.project.folder or "."), Path.cwd()):
        for folder in (start, start / "td_components", *(p / "td_components" for p in start.parents)):
            if (folder / "selftest_td.py").is_file():
                return folder
    raise FileNotFoundError("enter  SDBRIDGE_TD = r'...folder td_components...'  first")


class Report:
    """Checks one after another; a failing one is written down and the next goes on."""

    def __init__(self):
        self.checks = []

    def check(self, name, function):
        try:
            self.checks.append({"check": name, "ok": True, "found": function()})
        except Exception:  # noqa: BLE001 - a report must hold every failure
            self.checks.append({"check": name, "ok": False, "found": traceback.format_exc(limit=4)})


def run_selftest(folder, to=None):
    """All checks; returns the report and writes it to ``to`` (selftest.json beside the sources)."""
    import td

    build = _sources(folder)
    report = Report()
    old = td.op("/").op(COMP_NAME)
    if old is not None:
        old.destroy()
    room = td.op("/").create("baseCOMP", COMP_NAME)
    try:
        for component in build.COMPONENTS:
            _check_component(report, build, folder, room, component)
        bridge = room.op("SdBridge")
        if bridge is not None:
            report.check("OSC: three messages out and back", lambda: _osc(bridge))
            report.check("errors that TouchDesigner reports", lambda: bridge.errors(recurse=True))
            report.check("how a parameter's mode reads", lambda: str(bridge.par.Strength.mode))
            report.check("saved as .tox", lambda: _save(bridge, folder))
    finally:
        room.destroy()
    answer = {
        "what": "sdbridge self-test inside TouchDesigner",
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "touchdesigner": f"{td.app.version}.{td.app.build}",
        "product": td.app.product,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "passed": sum(c["ok"] for c in report.checks),
        "failed": sum(not c["ok"] for c in report.checks),
        "checks": report.checks,
    }
    to = Path(to) if to else folder / "selftest.json"
    to.write_text(json.dumps(answer, indent=1, default=str), encoding="utf-8")
    print(f"{answer['passed']} passed, {answer['failed']} failed: {to}")
    return answer


def _sources(folder):
    """The module that builds components, from ``src``."""
    sys.path.insert(0, str(folder / "src"))
    try:
        from sdbridge_td import build
    finally:
        sys.path.remove(str(folder / "src"))
    return build


def _check_component(report, build, folder, room, component):
    def install():
        return build.install(room, component, build.code_texts(folder, component), build.boot_text(folder))

    report.check(f"{component}: builds", lambda: len(install().children))
    comp = room.op(component)
    if comp is None or not report.checks[-1]["ok"]:
        return
    checks = {
        "building twice changes nothing": lambda: _same_twice(comp, install),
        "operators": lambda: _operators(comp, build.NODES[component]),
        "parameter names of operators": lambda: _parameter_names(comp, build.NODES[component]),
        "custom parameters": lambda: _custom_parameters(comp, build, component),
        "three frames": lambda: _frames(comp),
    }
    for name, function in checks.items():
        report.check(f"{component}: {name}", function)


def _same_twice(comp, install):
    before = sorted((child.name, child.opType, child.id) for child in comp.children)
    install()
    after = sorted((child.name, child.opType, child.id) for child in comp.children)
    assert before == after, (before, after)
    return f"{len(after)} operators"


def _operators(comp, nodes):
    there = {child.name: child.opType for child in comp.children}
    missing = [node.name for node in nodes if there.get(node.name) != node.type]
    wrong = [node.name for node in nodes if node.name in missing and not node.licensed]
    assert not wrong, (wrong, there)
    return {"not with this licence": missing} if missing else "all there"


def _parameter_names(comp, nodes):
    wrong = [
        f"{node.type}.{name}"
        for node in nodes
        if comp.op(node.name) is not None
        for name in node.pars
        if comp.op(node.name).par[name] is None
    ]
    assert not wrong, wrong
    return "all are known"


def _custom_parameters(comp, build, component):
    schema = build.Schema(json.loads(comp.op("code").op("schema").text))
    missing = []
    for _, specs in build.pages_of(component, schema):
        for spec in specs:
            block = getattr(spec, "block", ())
            if block and (comp.seq[spec.name] is None or int(comp.seq[spec.name].blockSize) != len(block)):
                missing.append(f"sequence {spec.name}")
            names = [f"{spec.name}0{part.name.lower()}" for part in block] or [spec.name]
            missing += [name for name in names if build.find_par(comp, name) is None]
    assert not missing, missing
    blocks = [par.name for par in comp.customPars if "0" in par.name]
    return {"parameters": len(comp.customPars), "names in blocks": blocks}


def _frames(comp):
    for _ in range(3):
        comp.ext.Sdbridge.Frame()
    status = str(comp.par.Status.eval())
    assert "internal fault" not in status, status
    return status


def _osc(comp):
    """The component speaks to a socket of ours, and hears it."""
    ext = comp.ext.Sdbridge
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(2)
        comp.par.Connection, comp.par.Oscport = "manual", peer.getsockname()[1]
        ext.Frame()
        subscribe, us = peer.recvfrom(65535)
        assert b"/sdbridge/subscribe" in subscribe, subscribe
        from_us = sys.modules[type(ext.link).__module__.rpartition(".")[0] + ".osc_codec"]
        beat = from_us.encode_message("/sdbridge/status/heartbeat", (1,))
        values = from_us.encode_bundles(
            [
                from_us.encode_message("/sdbridge/strength", (0.25,)),
                from_us.encode_message("/sdbridge/prompt/1/text", ("selftest",)),
                from_us.encode_message("/sdbridge/guidance_mode", ("full",)),
            ]
        )[0]
        for packet in (beat, values):
            peer.sendto(packet, us)
        deadline = time.monotonic() + 2
        while comp.par.Strength.eval() != 0.25 and time.monotonic() < deadline:
            ext.Frame()
        found = (comp.par.Strength.eval(), comp.par.Prompt0text.eval(), comp.par.Guidancemode.eval())
        assert found == (0.25, "selftest", "full"), (found, comp.par.Status.eval())
        status = comp.par.Status.eval()
        ext.Close()
        return {"values": found, "status": status}


def _save(comp, folder):
    dist = folder / "dist"
    dist.mkdir(exist_ok=True)
    saved = Path(comp.save(str(dist / "SdBridge.tox")))
    return {"file": str(saved), "bytes": saved.stat().st_size}


if "SDBRIDGE_TD_NO_RUN" not in globals():
    run_selftest(_folder())
