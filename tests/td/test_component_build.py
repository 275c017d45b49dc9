"""Building the components: three ways to one network, twice the same, and no name the documentation lacks."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sdbridge.parameters.table import TABLE
from sdbridge_td import network
from sdbridge_td.build import COMPONENTS as NAMES
from sdbridge_td.build import NODES, boot_text, code_texts, install, pages_of
from sdbridge_td.mapping import Schema
from sdbridge_td.pages import SequenceSpec, build_pages
from tests.td import fake_td
from tests.td.conftest import COMPONENTS, Desk
from tests.td.fake_td import MEMBERS, OPERATORS, Host, snapshot, tdError
from tests.td.fake_td.tree import drop

SCHEMA = Schema(json.loads((COMPONENTS / "schema" / "parameters.json").read_text(encoding="utf-8")))


def from_source(component: str) -> dict[str, Any]:
    with Host() as host:
        comp = install(host.root, component, code_texts(COMPONENTS, component), boot_text(COMPONENTS))
        host.step(2)
        return snapshot(comp)


@pytest.mark.parametrize("component", NAMES)
def test_three_ways_lead_to_one_network(
    component: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = from_source(component)
    with Host() as host:
        dropped = drop(host, host.root, COMPONENTS / "expanded" / f"{component}.tox.toc")
        assert [c.name for c in dropped.children] == ["boot", "code"]  # nothing else is in the tree
        host.step(2)  # a frame later it builds itself, and the next frame runs
        assert snapshot(dropped) == source
    with Host() as host:
        scope: dict[str, Any] = {"SDBRIDGE_TD": str(COMPONENTS), "SDBRIDGE_TD_NO_RUN": True}
        exec((COMPONENTS / "bootstrap.py").read_text(encoding="utf-8"), scope)
        made = scope["bootstrap"](COMPONENTS, save=False)[component]
        host.step(2)
        found = snapshot(made)
        found["at"] = source["at"]  # where it stands in the project is the bootstrap's own
        assert found == source


@pytest.mark.parametrize("component", NAMES)
def test_twice_is_once(component: str) -> None:
    with Host() as host:
        texts = code_texts(COMPONENTS, component)
        comp = install(host.root, component, texts, boot_text(COMPONENTS))
        before, ids = snapshot(comp), [op.id for op in host.every()]
        install(host.root, component, texts, boot_text(COMPONENTS))
        host.fire("start", "onStart")  # as when the project is opened again
        host.step(2)
        assert [op.id for op in host.every()] == ids
        ours = snapshot(comp)
        for shown in ("Status", "Picture", "Sent", "Alarm", "Pid"):
            before["pars"].pop(shown, None), ours["pars"].pop(shown, None)
        if component == "SdBridge":  # the running component sets its operators: only the wiring is compared
            before["children"], ours["children"] = sorted(before["children"]), sorted(ours["children"])
        elif component == "SdBridgeMonitor":
            before["children"].pop("words"), ours["children"].pop("words")
        assert ours == before


def test_what_is_missing_or_wrong_is_mended_and_the_users_own_stays(host: Host) -> None:
    desk = Desk(host)
    comp = desk.comp
    comp.op("fade").destroy()
    comp.op("hold").destroy()
    comp.create("flipTOP", "hold")  # another operator under our name
    own = comp.create("textDAT", "my_notes")
    install(host.root, "SdBridge", code_texts(COMPONENTS, "SdBridge"), boot_text(COMPONENTS))
    assert comp.op("hold").opType == "cacheTOP"
    assert [op.name for op in comp.op("fade").inputs] == ["hold", "fallback"]
    assert [op.name for op in comp.op("out1").inputs] == ["fade"]
    assert comp.op("my_notes") is own


def test_the_pages_are_those_that_were_asked_for() -> None:
    with Host() as host:
        comp = install(host.root, "SdBridge", code_texts(COMPONENTS, "SdBridge"), boot_text(COMPONENTS))
        assert [p.name for p in comp.customPages] == [
            "Bridge", "Prompt", "Generate", "Control", "Lora", "Safety", "Stats", "About",
        ]  # fmt: skip
        assert len(comp.inputConnectors) == 2
        assert [op.name for op in comp.children if op.opType == "outTOP"] == ["out1", "out2"]


def test_menus_ranges_defaults_and_help_come_from_the_table(desk: Desk) -> None:
    names = desk.ext.names
    for name, row in TABLE.rows.items():
        par = desk.par[names.par(name)]
        if par is None:
            assert names.block_of(name)[1] > 0, name  # only blocks past the first may wait
            continue
        assert row.help in par.help and row.range_text() in par.help
        if row.kind == "enum":
            assert par.menuNames == list(row.choices)
        if row.kind in ("int", "float"):
            for bound, value in (("min", row.minimum), ("max", row.maximum)):
                if value is not None:
                    assert getattr(par, bound) == value and getattr(par, "clamp" + bound.capitalize()) is True
        if row.kind != "trigger":
            assert par.default == row.default, name
        assert par.style == {
            "bool": "Toggle", "int": "Int", "float": "Float", "enum": "Menu", "trigger": "Pulse"
        }.get(row.kind, par.style)  # fmt: skip
        assert bool(par.enableExpr) == (row.effect == "reload")


def test_the_parameters_that_the_hold_needs_are_in_the_table(desk: Desk) -> None:
    used = "Holdaction Holdafter Holdfade Holdrecover Holdimage Outputfreeze Outputblack Width Height Panic"
    for name in used.split():
        assert desk.par[name] is not None, name
    assert set(desk.par.Holdaction.menuNames) == {"hold", "black", "image", "input"}


def test_what_was_set_survives_another_schema(desk: Desk) -> None:
    """An update of the component keeps values, expressions, bindings and blocks."""
    comp = desk.comp
    comp.seq.Prompt.numBlocks = 3
    comp.par.Prompt2text = "third"
    comp.par.Strength = 0.3
    comp.par.Delta.expr = "0.5 + 0.2"
    comp.par.Guidancescale.bindExpr = "me.par.Strength"
    comp.par.Transport = "ndi"
    document = json.loads((COMPONENTS / "schema" / "parameters.json").read_text(encoding="utf-8"))
    for row in document["parameters"]:
        if row["name"] == "strength":
            row["maximum"] = 2.0
    document["parameters"].append(
        {**document["parameters"][-1], "name": "quite_new", "help": "New.", "slots": 0}
    )
    assert build_pages(comp, pages_of("SdBridge", Schema({**document, "hash": "other"})))
    assert comp.par["Quitenew"] is not None
    assert comp.par.Strength.max == 2.0 and comp.par.Strength.eval() == 0.3
    assert comp.par.Prompt2text.eval() == "third"
    assert comp.par.Delta.eval() == 0.7 and comp.par.Delta.mode is fake_td.ParMode.EXPRESSION
    assert comp.par.Guidancescale.eval() == 0.3 and comp.par.Guidancescale.mode is fake_td.ParMode.BIND
    assert comp.par.Transport.eval() == "ndi"


def test_a_misspelt_parameter_of_an_operator_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tuple(
        dataclasses.replace(n, pars={"aktive": True}) if n.name == "hold" else n for n in network.BRIDGE_NODES
    )
    with Host() as host:
        assert network.build_network(host.root.create("baseCOMP", "x"), wrong) == ["cacheTOP.aktive"]
    wrong = tuple(
        dataclasses.replace(n, type="cachTOP") if n.name == "hold" else n for n in network.BRIDGE_NODES
    )
    with Host() as host:
        assert network.build_network(host.root.create("baseCOMP", "x"), wrong) == ["hold"]


@pytest.mark.parametrize("component", NAMES)
def test_no_name_is_misspelt(component: str) -> None:
    """The fake knows the documented names only, and has all that is built and all that is set later."""
    with Host() as host:
        assert network.build_network(host.root.create("baseCOMP", "x"), NODES[component]) == []
        desk = Desk(host, component)
        for transport in ("spoutsyphon", "ndi", "sharedmem") if component == "SdBridge" else ("",):
            if transport:
                desk.par.Transport = transport
            desk.later_s += 2
            host.step(2)
        assert component != "SdBridge" or desk.ext.pictures.missing == []
        assert "this TouchDesigner has no" not in desk.status
        assert "internal fault" not in desk.status


def test_the_monitor_sets_only_names_that_there_are(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: list[str] = []
    desk = Desk(host, "SdBridgeMonitor")
    module = sys.modules[type(desk.ext).__module__]
    real = module.set_par  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "set_par", lambda op, n, v: real(op, n, v) or absent.append(n))
    desk.later_s += 1
    host.step(2)
    assert absent == []


def test_what_touchdesigner_lacks_is_said_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPERATORS["syphonspoutinTOP"]["pars"], "usespoutactivesender")
    monkeypatch.delitem(OPERATORS["flipTOP"]["pars"], "flipy")
    with Host() as host:
        desk = Desk(host)
        host.step(2)
        assert "has no syphonspoutinTOP.usespoutactivesender" in desk.status or "flipTOP.flipy" in desk.status
        assert "internal fault" not in desk.status
        assert desk.comp.op("spout_generated_in").par.sendername.eval() == "sdbridge"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda comp: comp.create("syphonspoutInTOP", "x"),
        lambda comp: setattr(comp.create("fitTOP", "x").par, "fit", "fit_best"),
        lambda comp: setattr(comp.create("switchTOP", "x").par, "Index", 1),
        lambda comp: setattr(comp, "nodex", 3),
        lambda comp: comp.appendCustomPage("P").appendFloat("my_value"),
        lambda comp: comp.appendCustomPage("P").appendFloat("opacity"),
        lambda comp: comp.appendCustomPage("P").appendSlider("Value"),
        lambda comp: comp.create("crossTOP", "x").setInputs([comp, comp, comp]),
        lambda comp: comp.par.Nothing,
        lambda comp: comp.seq.nothing,
        lambda comp: comp.ext.Nobody,
    ],
)
def test_the_fake_refuses_what_is_not_documented(mistake: Any) -> None:
    with Host() as host, pytest.raises((AttributeError, tdError)):
        mistake(host.root.create("baseCOMP", "x"))


def test_every_operator_and_class_carries_the_address_it_was_read_from() -> None:
    for kind, about in OPERATORS.items():
        assert about["page"].startswith("https://docs.derivative.ca/"), kind
        assert about["page"].rpartition("/")[2].endswith(about["family"]), kind
    used = {node.type for nodes in NODES.values() for node in nodes}
    assert used | {"baseCOMP", "textDAT", "executeDAT", "parameterexecuteDAT"} == set(OPERATORS)
    for name, (page, _) in MEMBERS.items():
        assert page.startswith("https://docs.derivative.ca/"), name


def test_fake_and_type_stubs_know_the_same_members() -> None:
    import ast

    stub = ast.parse((COMPONENTS / "typings" / "td" / "__init__.pyi").read_text(encoding="utf-8"))
    for node in stub.body:
        if not isinstance(node, ast.ClassDef) or node.name in ("tdError", "ParMode"):
            continue
        page, members = MEMBERS[node.name]
        assert page in (ast.get_docstring(node) or ""), node.name
        named = {
            item.name if isinstance(item, ast.FunctionDef) else item.target.id  # type: ignore[union-attr]
            for item in node.body
            if isinstance(item, ast.FunctionDef | ast.AnnAssign)
        }
        assert {n for n in named if not n.startswith("__")} == set(members), node.name
        for member in members:
            assert hasattr(getattr(fake_td, node.name), member) or member in getattr(
                getattr(fake_td, node.name), "_settable", ()
            ) or node.name in ("ParCollection", "SequenceCollection"), (node.name, member)  # fmt: skip


def test_all_custom_parameter_names_are_legal() -> None:
    for component in NAMES:
        for _, specs in pages_of(component, SCHEMA):
            for spec in specs:
                for one in (spec, *getattr(spec, "block", ())):
                    assert fake_td.CUSTOM_NAME.fullmatch(one.name), one.name
                if not isinstance(spec, SequenceSpec):
                    assert spec.style in ("Pulse", "Toggle") or spec.help, spec.name


def test_the_package_imports_outside_touchdesigner() -> None:
    import subprocess
    import sys

    code = "import sdbridge_td.build, sys; assert 'td' not in sys.modules and 'sdbridge' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=COMPONENTS / "src", check=True)


@pytest.mark.slow
def test_types_are_strict() -> None:
    import os
    import subprocess
    import sys

    command = "mypy --strict --python-version 3.11 -p sdbridge_td --exclude callbacks"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=COMPONENTS,
        env={**os.environ, "MYPYPATH": os.pathsep.join(["typings", "src"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
