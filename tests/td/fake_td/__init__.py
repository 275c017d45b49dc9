"""A stand-in for TouchDesigner's ``td`` module that knows only what the documentation names.

Operator types, their parameters and the parameters' menus stand in ``operators.json``, each operator with
the address of the page it was read from; classes and members stand in ``MEMBERS`` below, likewise. A name
that is not there raises, as it does in TouchDesigner, so a misspelt one fails a test. What the pages do not
say (default values, the order of events within a frame) is this file's own and nothing may rely on it.
"""

from __future__ import annotations

import enum
import json
import re
import sys
import types
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPERATORS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("operators.json").read_text(encoding="utf-8")
)
DOCS = "https://docs.derivative.ca/"
#: Class -> (page, members that the fake has of it).
MEMBERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "OP": (
        DOCS + "OP_Class",
        ("name", "path", "id", "valid", "par", "seq", "op", "parent", "children", "customPars", "customPages",
         "opType", "type", "family", "isDAT", "isCOMP", "isTOP", "nodeX", "nodeY", "color", "inputs",
         "inputConnectors", "outputConnectors", "setInputs", "destroy", "store", "fetch", "errors", "warnings",
         "ext", "storage"),
    ),
    "COMP": (
        DOCS + "COMP_Class",
        ("create", "appendCustomPage", "destroyCustomPars", "sortCustomPages", "initializeExtensions", "save"),
    ),
    "DAT": (
        DOCS + "DAT_Class",
        ("text", "module", "run", "numRows", "numCols", "appendRow", "appendRows", "clear"),
    ),
    "Cell": (DOCS + "Cell_Class", ("val",)),
    "Par": (
        DOCS + "Par_Class",
        ("owner", "name", "label", "help", "val", "default", "expr", "bindExpr", "mode", "min", "max", "clampMin",
         "clampMax", "normMin", "normMax", "menuNames", "menuLabels", "menuIndex", "readOnly", "enable", "enableExpr",
         "startSection", "page", "style", "isDefault", "isPulse", "isMenu", "isSequence", "isString", "isCustom",
         "isToggle", "isNumber", "eval", "pulse"),
    ),
    "ParGroup": (DOCS + "ParGroup", ()),
    "ParCollection": (DOCS + "ParCollection_Class", ("owner",)),
    "Page": (
        DOCS + "Page_Class",
        ("name", "owner", "pars", "appendStr", "appendStrMenu", "appendMenu", "appendFloat", "appendInt",
         "appendToggle", "appendPulse", "appendFile", "appendFolder", "appendDAT", "appendCOMP", "appendSequence"),
    ),
    "Sequence": (DOCS + "Sequence_Class", ("name", "owner", "numBlocks", "blockSize", "maxBlocks")),
    "SequenceCollection": (DOCS + "SequenceCollection_Class", ("owner",)),
    "Connector": (DOCS + "Connector_Class", ("index", "owner", "connections", "connect", "disconnect")),
    "App": (DOCS + "App_Class", ("version", "build", "osName", "product", "pythonExecutable")),
    "Project": (DOCS + "Project_Class", ("folder",)),
}  # fmt: skip

CUSTOM_NAME = re.compile("[A-Z][a-z0-9]*")
Change = namedtuple("Change", "par prev")


class tdError(Exception):
    """What TouchDesigner raises."""


class ParMode(enum.Enum):
    CONSTANT = 0
    EXPRESSION = 1
    EXPORT = 2
    BIND = 3


class Host:
    """One TouchDesigner process: the root, the frame counter, and what waits for a later moment."""

    def __init__(self, licence: str = "Commercial") -> None:
        self.licence = licence
        self.frame = 0
        self.delayed: list[tuple[int, DAT]] = []
        self.changes: dict[tuple[int, str], Change] = {}
        self.ids = 0
        self.printed: list[str] = []
        self.root = COMP(self, None, "baseCOMP", "")
        self.module = _module(self)

    def __enter__(self) -> Host:
        self._before = sys.modules.get("td")
        sys.modules["td"] = self.module
        return self

    def __exit__(self, *_: object) -> None:
        self.exit()
        if self._before is None:
            sys.modules.pop("td", None)
        else:
            sys.modules["td"] = self._before

    def next_id(self) -> int:
        self.ids += 1
        return self.ids

    def every(self, comp: OP | None = None) -> Iterator[OP]:
        for child in list((comp or self.root)._children.values()):
            yield child
            yield from self.every(child)

    def step(self, frames: int = 1) -> None:
        """Frames go by: delayed scripts, onFrameStart, then what changed to the Parameter Execute DATs."""
        for _ in range(frames):
            self.frame += 1
            due = [dat for at, dat in self.delayed if at <= self.frame]
            self.delayed = [(at, dat) for at, dat in self.delayed if at > self.frame]
            for dat in due:
                if dat.valid:
                    dat._exec()
            self.fire("framestart", "onFrameStart", self.frame)
            changes, self.changes = list(self.changes.values()), {}
            for dat in self._listeners("valueschanged"):
                mine = [c for c in changes if dat._watches(c.par)]
                if mine:
                    dat.module.onValuesChanged(mine)

    def fire(self, toggle: str, function: str, *args: object, only: OP | None = None) -> None:
        """Call an Execute DAT's callback wherever its toggle is on."""
        for dat in [only] if only is not None else list(self.every()):
            if dat.opType == "executeDAT" and dat.valid and dat.par.active.eval() and dat.par[toggle].eval():
                callback = getattr(dat.module, function, None)
                if callback is not None:
                    callback(*args)

    def exit(self) -> None:
        self.fire("exit", "onExit")

    def changed(self, par: Par, before: object) -> None:
        key = (par.owner.id, par.name)
        self.changes.setdefault(key, Change(par, before))

    def pulsed(self, par: Par) -> None:
        for dat in self._listeners("onpulse"):
            if dat._watches(par):
                dat.module.onPulse(par)

    def _listeners(self, toggle: str) -> list[DAT]:
        return [
            dat
            for dat in self.every()
            if dat.opType == "parameterexecuteDAT" and dat.par.active.eval() and dat.par[toggle].eval()
        ]


class Documented:
    """Only what is written in a class, with its leading underscores aside, can be set."""

    _settable: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self._settable:
            raise AttributeError(f"{type(self).__name__} has no member {name!r} that can be set")
        object.__setattr__(self, name, value)


class Par(Documented):
    _settable = (
        "name", "label", "help", "val", "default", "expr", "bindExpr", "mode", "min", "max", "clampMin", "clampMax",
        "normMin", "normMax", "menuNames", "menuLabels", "menuIndex", "readOnly", "enable", "enableExpr",
        "startSection", "page",
    )  # fmt: skip

    def __init__(self, owner: OP, name: str, style: str, custom: bool, page: Page | None = None) -> None:
        self._owner, self._name, self._style, self._custom = owner, name, style, custom
        self._val: object = {"Toggle": False, "Int": 0, "Float": 0.0, "Sequence": 0}.get(style, "")
        self._default = self._val
        self._expr = self._bind = ""
        self._mode = ParMode.CONSTANT
        self._exported: object = None
        self._made = False
        self.page = page
        self.label, self.help, self.enableExpr = name, "", ""
        self.min, self.max, self.normMin, self.normMax = 0, 1, 0, 1
        self.clampMin = self.clampMax = self.readOnly = self.startSection = False
        self.enable = True
        self.menuNames, self.menuLabels = [], []
        self._made = True

    owner = property(lambda self: self._owner)
    style = property(lambda self: self._style)
    isCustom = property(lambda self: self._custom)
    isPulse = property(lambda self: self._style == "Pulse")
    isMenu = property(lambda self: self._style in ("Menu", "StrMenu"))
    isSequence = property(lambda self: self._style == "Sequence")
    isString = property(lambda self: self._style in ("Str", "StrMenu", "File", "Folder"))
    isToggle = property(lambda self: self._style == "Toggle")
    isNumber = property(lambda self: self._style in ("Int", "Float", "Toggle"))
    isDefault = property(lambda self: self._mode is ParMode.CONSTANT and self._val == self._default)

    @property
    def name(self) -> str:
        return self._name

    @property
    def default(self) -> Any:
        return self._default

    @default.setter
    def default(self, value: object) -> None:
        self._default = self._as(value)

    @property
    def val(self) -> Any:
        return self._val

    @val.setter
    def val(self, value: object) -> None:
        before = self.eval() if self._mode is not ParMode.EXPRESSION else None
        self._val = self._as(value)
        self._mode = ParMode.CONSTANT
        if self._val != before and self._made:
            self._owner._host.changed(self, before)

    def _as(self, value: object) -> object:
        """The value as this style keeps it; raises where TouchDesigner could make no sense of it."""
        style = self._style
        if isinstance(value, Par):
            value = value.eval()
        if style == "Toggle":
            return bool(value)
        if style in ("Int", "Float", "Sequence"):
            number = float(value)  # type: ignore[arg-type]
            if self.clampMin:
                number = max(number, self.min)
            if self.clampMax:
                number = min(number, self.max)
            return number if style == "Float" else int(number)
        if style == "Menu":
            if isinstance(value, int) and 0 <= value < len(self.menuNames):
                return self.menuNames[value]
            if value not in self.menuNames:
                raise tdError(f"{self._name}: no menu entry {value!r}, only {self.menuNames}")
            return value
        if style in ("DAT", "COMP", "TOP", "OP"):
            return value
        if value is not None and not isinstance(value, str | int | float | OP):
            raise tdError(f"{self._name} takes a string, not {value!r}")
        return value if isinstance(value, str | OP) else str(value)

    @property
    def menuIndex(self) -> int:
        return self.menuNames.index(self.eval())

    @menuIndex.setter
    def menuIndex(self, index: int) -> None:
        self.val = self.menuNames[index]

    @property
    def expr(self) -> str:
        return self._expr

    @expr.setter
    def expr(self, text: str) -> None:
        self._expr, self._mode = text, ParMode.EXPRESSION
        self._owner._host.changed(self, self._val)

    @property
    def bindExpr(self) -> str:
        return self._bind

    @bindExpr.setter
    def bindExpr(self, text: str) -> None:
        self._bind, self._mode = text, ParMode.BIND

    @property
    def mode(self) -> ParMode:
        return self._mode

    @mode.setter
    def mode(self, mode: ParMode) -> None:
        self._mode = mode

    def eval(self) -> Any:
        if self._mode is ParMode.EXPRESSION:
            return self._as(self._owner._evaluate(self._expr))
        if self._mode is ParMode.BIND:
            return self._as(self._owner._evaluate(self._bind))
        if self._mode is ParMode.EXPORT:
            return self._as(self._exported)
        if self._style in ("DAT", "COMP", "TOP", "OP") and isinstance(self._val, str):
            return self._owner._find(self._val) if self._val else None
        return self._val

    def pulse(self) -> None:
        if not self.isPulse:
            raise tdError(f"{self._name} is no pulse")
        self._owner._host.pulsed(self)

    def __bool__(self) -> bool:
        return bool(self.eval())

    def __repr__(self) -> str:
        return f"par:{self._name} owner:{self._owner.path}"


def export_to(par: Par, value: object) -> None:
    """What a CHOP's export does to a parameter."""
    par._exported, par._mode = value, ParMode.EXPORT
    par._owner._host.changed(par, par._val)


class ParGroup(Documented):
    def __init__(self, pars: list[Par]) -> None:
        self._pars = pars

    def __getitem__(self, index: int) -> Par:
        return self._pars[index]

    def __len__(self) -> int:
        return len(self._pars)


class ParCollection:
    def __init__(self, owner: OP) -> None:
        object.__setattr__(self, "owner", owner)

    def __getitem__(self, name: str) -> Par | None:
        return self.owner._pars.get(name)

    def __getattr__(self, name: str) -> Par:
        found = self.owner._pars.get(name)
        if found is None:
            page = OPERATORS[self.owner.opType]["page"]
            raise AttributeError(f"{self.owner.opType} has no parameter {name!r}: see {page}")
        return found

    def __setattr__(self, name: str, value: object) -> None:
        getattr(self, name).val = value


class Sequence(Documented):
    _settable = ("numBlocks", "blockSize")

    def __init__(self, owner: OP, name: str, templates: list[Par] | None = None) -> None:
        self._owner, self._name = owner, name
        self._templates = templates or []
        self._count = 1

    name = property(lambda self: self._name)
    owner = property(lambda self: self._owner)
    maxBlocks = property(lambda self: None)

    @property
    def blockSize(self) -> int:
        return len(self._templates)

    @blockSize.setter
    def blockSize(self, size: int) -> None:
        """The parameters that follow the header on its page become the block."""
        header = self._owner._pars[self._name]
        names = list(self._owner._pars)
        after = [n for n in names[names.index(self._name) + 1 :] if self._owner._pars[n].page is header.page]
        if len(after) < size:
            raise tdError(f"{self._name}: {size} parameters in a block, but {len(after)} follow the header")
        self._templates = [self._owner._pars[name] for name in after[:size]]
        for par in self._templates:
            self._rename(par, 0, par._name.lower())
        self._owner._reorder()

    def _rename(self, par: Par, block: int, base: str) -> None:
        pars = self._owner._pars
        renamed = {(f"{self._name}{block}{base}" if p is par else n): p for n, p in pars.items()}
        par._name = f"{self._name}{block}{base}"
        pars.clear()
        pars.update(renamed)

    @property
    def numBlocks(self) -> int:
        return self._count

    @numBlocks.setter
    def numBlocks(self, count: int) -> None:
        if count < 1:
            raise tdError("a sequence has at least one block")
        bases = [t._name[len(self._name) + 1 :] for t in self._templates]
        for block in range(self._count, count):
            for template, base in zip(self._templates, bases, strict=True):
                par = Par(
                    self._owner,
                    f"{self._name}{block}{base}",
                    template._style,
                    template._custom,
                    template.page,
                )
                for what in ("label", "help", "min", "max", "normMin", "normMax", "clampMin", "clampMax", "menuNames",
                             "menuLabels", "readOnly", "enableExpr", "startSection"):  # fmt: skip
                    setattr(par, what, getattr(template, what))
                par._default = par._val = template._default
                self._owner._pars[par._name] = par
        for block in range(count, self._count):
            for base in bases:
                del self._owner._pars[f"{self._name}{block}{base}"]
        self._count = count

    def __len__(self) -> int:
        return self._count


class SequenceCollection:
    def __init__(self, owner: OP) -> None:
        object.__setattr__(self, "owner", owner)

    def __getitem__(self, name: str) -> Sequence | None:
        return self.owner._sequences.get(name)

    def __getattr__(self, name: str) -> Sequence:
        found = self.owner._sequences.get(name)
        if found is None:
            raise AttributeError(f"no sequence {name!r}")
        return found


class Page(Documented):
    _settable = ("name",)

    def __init__(self, owner: COMP, name: str) -> None:
        self._owner = owner
        self.name = name

    owner = property(lambda self: self._owner)
    pars = property(lambda self: [p for p in self._owner._pars.values() if p.page is self])

    def _append(self, style: str, name: str, label: str | None) -> ParGroup:
        if not CUSTOM_NAME.fullmatch(name):
            raise tdError(f"{name!r}: a capital letter, then small letters and digits ({DOCS}Page_Class)")
        if name in OPERATORS[self._owner.opType]["pars"]:
            raise tdError(f"{name!r} is a built-in parameter")
        par = Par(self._owner, name, style, True, self)
        par.label = label or name
        self._owner._pars[name] = par
        return ParGroup([par])

    def appendStr(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Str", name, label)

    def appendStrMenu(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("StrMenu", name, label)

    def appendMenu(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Menu", name, label)

    def appendFloat(
        self, name: str, label: str | None = None, size: int = 1, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Float", name, label)

    def appendInt(
        self, name: str, label: str | None = None, size: int = 1, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Int", name, label)

    def appendToggle(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Toggle", name, label)

    def appendPulse(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Pulse", name, label)

    def appendFile(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("File", name, label)

    def appendFolder(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("Folder", name, label)

    def appendDAT(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("DAT", name, label)

    def appendCOMP(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        return self._append("COMP", name, label)

    def appendSequence(
        self, name: str, label: str | None = None, order: Any = None, replace: bool = True
    ) -> ParGroup:
        group = self._append("Sequence", name, label)
        self._owner._sequences[name] = Sequence(self._owner, name)
        return group


class Connector(Documented):
    def __init__(self, owner: OP, index: int) -> None:
        self._owner, self._index = owner, index
        self._connections: list[OP] = []

    owner = property(lambda self: self._owner)
    index = property(lambda self: self._index)
    connections = property(lambda self: list(self._connections))

    def connect(self, target: OP) -> None:
        self._connections = [target]

    def disconnect(self) -> None:
        self._connections = []


class _Ext:
    def __init__(self, owner: OP) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        at: OP | None = self._owner
        while at is not None:
            if at.opType == "baseCOMP" and at.path != "/" and at.par.ext0object.eval():
                if at._extension is None:
                    at.initializeExtensions()  # type: ignore[attr-defined]
                if name in (at.par.ext0name.eval(), type(at._extension).__name__):
                    return at._extension
            at = at.parent()
        raise AttributeError(f"no extension {name!r} here or above")


class OP(Documented):
    _settable = ("nodeX", "nodeY", "color", "name")

    def __init__(self, host: Host, parent: COMP | None, op_type: str, name: str) -> None:
        self._host, self._parent, self._type = host, parent, op_type
        self._children: dict[str, OP] = {}
        self._sequences: dict[str, Sequence] = {}
        self._inputs: list[OP | None] = []
        self._storage: dict[str, Any] = {}
        self._said = {"errors": "", "warnings": ""}
        self._valid = True
        self._extension: Any = None
        self._connectors: list[Connector] = []
        self._id = host.next_id()
        self.name = name
        self.nodeX = self.nodeY = 0
        self.color = (0.55, 0.55, 0.55)
        self._pages: list[Page] = []
        self._pars: dict[str, Par] = {}
        for par_name, about in OPERATORS[op_type]["pars"].items():
            par = Par(self, par_name, about["style"], False)
            par._made = False
            par.menuNames = list(about.get("menu", []))
            if about["default"] is not None:
                par.default = par.val = about["default"]
            par._made = True
            self._pars[par_name] = par
        if op_type == "baseCOMP":
            self._sequences["ext"] = Sequence(self, "ext")

    opType = property(lambda self: self._type)
    family = property(lambda self: OPERATORS[self._type]["family"])
    type = property(lambda self: self._type.removesuffix(self.family))
    isDAT = property(lambda self: self.family == "DAT")
    isCOMP = property(lambda self: self.family == "COMP")
    isTOP = property(lambda self: self.family == "TOP")
    id = property(lambda self: self._id)
    valid = property(lambda self: self._valid)
    storage = property(lambda self: self._storage)
    par = property(lambda self: ParCollection(self))
    seq = property(lambda self: SequenceCollection(self))
    ext = property(lambda self: _Ext(self))
    children = property(lambda self: list(self._children.values()))
    customPars = property(lambda self: [p for p in self._pars.values() if p.isCustom])
    customPages = property(lambda self: list(self._pages))
    inputs = property(lambda self: [op for op in self._inputs if op is not None])

    @property
    def path(self) -> str:
        above = self._parent.path.rstrip("/") if self._parent is not None else ""
        return f"{above}/{self.name}" if self._parent is not None else "/"

    @property
    def inputConnectors(self) -> list[Connector]:
        count = (
            len([c for c in self._children.values() if c.opType == "inTOP"])
            if self._type == "baseCOMP"
            else OPERATORS[self._type]["inputs"]
        )
        while len(self._connectors) < count:
            self._connectors.append(Connector(self, len(self._connectors)))
        return self._connectors[:count]

    @property
    def outputConnectors(self) -> list[Connector]:
        return [Connector(self, 0)]

    def parent(self, n: int = 1) -> COMP | None:
        at: Any = self
        for _ in range(n):
            at = at._parent if at is not None else None
        return at

    def op(self, path: str) -> OP | None:
        return self._find(path, inside=True)

    def _find(self, path: str, inside: bool = False) -> OP | None:
        at: Any = (
            self._host.root
            if path.startswith("/")
            else self
            if inside or path.startswith("./")
            else self._parent
        )
        for part in path.split("/"):
            if part in ("", "."):
                continue
            at = at._parent if part == ".." else at._children.get(part)
            if at is None:
                return None
        return at

    def _evaluate(self, text: str) -> Any:
        scope = {"me": self, "op": self._find, "parent": self.parent, "td": self._host.module}
        return eval(text, scope)

    def setInputs(self, inputs: list[OP | None]) -> None:
        if len(inputs) > OPERATORS[self._type]["inputs"]:
            raise tdError(f"{self.path} takes {OPERATORS[self._type]['inputs']} inputs, not {len(inputs)}")
        self._inputs = list(inputs)

    def destroy(self) -> None:
        if not self._valid:
            raise tdError("destroyed already")
        _end(self._extension)
        for child in list(self._children.values()):
            child.destroy()
        self._valid = False
        assert self._parent is not None
        del self._parent._children[self.name]

    def store(self, key: str, value: Any) -> Any:
        self._storage[key] = value
        return value

    def fetch(self, key: str, default: Any = None, search: bool = True, storeDefault: bool = False) -> Any:
        at: OP | None = self
        while at is not None:
            if key in at._storage:
                return at._storage[key]
            at = at._parent if search else None
        return default

    def errors(self, recurse: bool = False) -> str:
        return self._said["errors"]

    def warnings(self, recurse: bool = False) -> str:
        return self._said["warnings"]

    def _reorder(self) -> None:
        """Blocks keep their places; nothing to do, since renaming keeps the order."""


def _end(extension: Any) -> None:
    """An extension hears of its end, also when it is initialised anew (derivative.ca/UserGuide/Extensions)."""
    if hasattr(extension, "onDestroyTD"):
        extension.onDestroyTD()


def say(op: OP, errors: str = "", warnings: str = "") -> None:
    """What TouchDesigner would report of an operator."""
    op._said = {"errors": errors, "warnings": warnings}


class COMP(OP):
    def create(self, opType: Any, name: str | None = None, initialize: bool = True) -> Any:
        kind = opType if isinstance(opType, str) else opType.__name__
        if kind not in OPERATORS:
            raise tdError(f"there is no operator type {kind!r}")
        if OPERATORS[kind]["licensed"] and self._host.licence == "Non-Commercial":
            raise tdError(
                f"{kind} is not available with a Non-Commercial licence ({OPERATORS[kind]['page']})"
            )
        name = name or kind
        while name in self._children:
            head = name.rstrip("0123456789")
            name = f"{head}{int(name[len(head) :] or 0) + 1}"
        cls = {"COMP": COMP, "DAT": DAT}.get(OPERATORS[kind]["family"], OP)
        made = cls(self._host, self, kind, name)
        self._children[name] = made
        return made

    def appendCustomPage(self, name: str) -> Page:
        page = next((p for p in self._pages if p.name == name), None)
        if page is None:
            page = Page(self, name)
            self._pages.append(page)
        return page

    def destroyCustomPars(self) -> int:
        gone = [n for n, p in self._pars.items() if p.isCustom]
        for name in gone:
            del self._pars[name]
            self._sequences.pop(name, None)
        self._pages.clear()
        return len(gone)

    def sortCustomPages(self, *names: str) -> None:
        self._pages.sort(key=lambda page: names.index(page.name) if page.name in names else len(names))

    def initializeExtensions(self, index: int | None = None) -> Any:
        _end(self._extension)
        expression = self._pars["ext0object"].eval()
        self._extension = self._evaluate(expression) if expression else None
        return self._extension

    def save(self, filepath: str, createFolders: bool = False, password: str | None = None) -> str:
        Path(filepath).write_bytes(b"fake")
        return filepath

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._type == "baseCOMP" and self.__dict__.get("_extension") is not None and name[0].isupper():
            if self._pars["ext0promote"].eval() and hasattr(self._extension, name):
                return getattr(self._extension, name)
        raise AttributeError(f"COMP has no member {name!r}")


class Cell(Documented):
    _settable = ("val",)

    def __init__(self, text: str) -> None:
        self.val = text

    def __str__(self) -> str:
        return self.val


class DAT(OP):
    _settable = (*OP._settable, "text")

    def __init__(self, host: Host, parent: COMP | None, op_type: str, name: str) -> None:
        super().__init__(host, parent, op_type, name)
        self._text = ""
        self._compiled: tuple[str, types.ModuleType] | None = None

    @property
    def text(self) -> str:
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._text = text

    @property
    def module(self) -> types.ModuleType:
        if self._compiled is None or self._compiled[0] != self._text:
            made = types.ModuleType(self.name)
            made.__dict__.update(self._scope())
            exec(compile(self._text, self.path, "exec"), made.__dict__)
            self._compiled = (self._text, made)
        return self._compiled[1]

    def _scope(self) -> dict[str, Any]:
        return {"me": self, "op": self._find, "parent": self.parent, "td": self._host.module}

    def run(self, *args: Any, delayFrames: int = 0, **rest: Any) -> None:
        if delayFrames:
            self._host.delayed.append((self._host.frame + delayFrames, self))
        else:
            self._exec()

    def _exec(self) -> None:
        exec(compile(self._text, self.path, "exec"), self._scope())

    def _watches(self, par: Par) -> bool:
        watched = self.par.op.eval()
        if isinstance(watched, str):
            watched = self._find(watched) if watched else None
        kinds = ("custom" if par.isCustom else "builtin",)
        return watched is par.owner and self.par.pars.eval() == "*" and all(self.par[k].eval() for k in kinds)

    def _rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self._text.split("\n")] if self._text else []

    numRows = property(lambda self: len(self._rows()))
    numCols = property(lambda self: max((len(row) for row in self._rows()), default=0))

    def __getitem__(self, place: tuple[int, int]) -> Cell:
        return Cell(self._rows()[place[0]][place[1]])

    def clear(self) -> None:
        self._text = ""

    def appendRow(self, vals: list[Any]) -> int:
        self._text += ("\n" if self._text else "") + "\t".join(str(v) for v in vals)
        return self.numRows - 1

    def appendRows(self, rows: list[list[Any]]) -> int:
        for row in rows:
            self.appendRow(row)
        return self.numRows - 1


class App:
    """https://docs.derivative.ca/App_Class"""

    version, build, osName, product, pythonExecutable = (
        "2025",
        "32460",
        "fake",
        "TouchDesigner",
        sys.executable,
    )


class Project:
    """https://docs.derivative.ca/Project_Class"""

    folder = ""


def _module(host: Host) -> types.ModuleType:
    module = types.ModuleType("td")
    module.__dict__.update(
        ParMode=ParMode, tdError=tdError, app=App(), project=Project(), op=host.root.op, root=host.root, OP=OP,
        COMP=COMP, DAT=DAT, Par=Par, Page=Page, ParGroup=ParGroup, Sequence=Sequence,
    )  # fmt: skip
    return module


def snapshot(op: OP, root: OP | None = None) -> dict[str, Any]:
    """Everything that makes a network: types, places, wires, parameters that are not default, texts."""
    root = root or op
    pars = {
        p.name: (
            p.mode.name,
            _plain(p.val, root),
            p.expr,
            p.bindExpr,
            p.label,
            p.help,
            p.menuNames,
            p.min,
            p.max,
        )
        for p in op._pars.values()
        if p.isCustom or (not p.isDefault and p.name != "language")
    }
    return {
        "type": op.opType,
        "at": (op.nodeX, op.nodeY),
        "color": op.color,
        "pars": pars,
        "pages": [(page.name, [p.name for p in page.pars]) for page in op.customPages],
        "text": getattr(op, "text", None),
        "inputs": [i.name for i in op.inputs],
        "blocks": {name: seq.numBlocks for name, seq in op._sequences.items()},
        "children": {
            child.name: snapshot(child, root) for child in sorted(op.children, key=lambda c: c.name)
        },
    }


def _plain(value: object, root: OP) -> object:
    return "op:" + value.path.removeprefix(root.path) if isinstance(value, OP) else value
