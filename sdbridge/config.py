"""The configuration: a YAML file, checked whole, with every mistake named by path and line at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from sdbridge.config_mistakes import Place, sentences
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.table import TABLE

ENVIRONMENT_PREFIX = "SDBRIDGE_"


class _Section(BaseModel):
    """A part of the file. Unknown keys are refused, so that a misspelt one never passes in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class TextureConfig(_Section):
    """One input or output: a backend's name, the source or sender name, and the backend's own options."""

    backend: str = "auto"
    name: Text = ""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    fit: Literal["fill", "fit", "stretch", "native"] = "fill"
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotate: Literal[0, 90, 180, 270] = 0
    swap_red_blue: bool = False
    alpha: Literal["keep", "opaque", "input"] = "keep"


class OutputConfig(TextureConfig):
    """A sender. ``role`` chooses the generated picture or the control image."""

    role: Literal["generated", "control"] = "generated"
    fit: Literal["fill", "fit", "stretch", "native"] = "native"
    width: int = Field(default=0, ge=0, le=8192)
    height: int = Field(default=0, ge=0, le=8192)


class InputsConfig(_Section):
    """What comes in, by role."""

    main: TextureConfig = TextureConfig()
    control: TextureConfig | None = None
    mask: TextureConfig | None = None
    style: TextureConfig | None = None


class EngineSection(_Section):
    """Which engine, which model, on what."""

    kind: str = "image"
    model: str = ""
    width: int = Field(default=512, ge=64, le=2048)
    height: int = Field(default=512, ge=64, le=2048)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    vae: str = "auto"
    acceleration: Literal["auto", "eager", "compile", "tensorrt"] = "auto"
    attention: Literal["auto", "pytorch", "xformers"] = "auto"
    in_process: bool = False
    threads: int = Field(default=0, ge=0, le=256)
    allow_pickle: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class HoldSection(_Section):
    """Supervision that no controller changes: how long silence lasts before the engine is restarted."""

    stall_s: float = Field(default=10.0, gt=0, le=600)
    restarts_a_minute: int = Field(default=5, ge=1, le=60)


class LogSection(_Section):
    """Where and how much is logged. An empty folder means the system's place for logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    folder: str = ""


class CueConfig(_Section):
    """One line of the cue list: a preset or values, recalled with a fade, perhaps followed by the next."""

    name: Text
    preset: Text = ""
    values: dict[str, bool | int | float | str] = Field(default_factory=dict)
    fade: float = Field(default=0.0, ge=0, le=3600)
    follow: float | None = Field(default=None, ge=0)


class OscSection(_Section):
    """OSC beyond the one port: OSC over TCP, being found by zeroconf, surfaces that cannot subscribe."""

    tcp_port: int | None = Field(default=None, ge=0, le=65535)
    advertise: bool = True
    feedback: tuple[str, ...] = ()

    @field_validator("feedback")
    @classmethod
    def _feedback_names_ports(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            host, _, port = target.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{target!r} must read address:port, such as 192.168.1.20:9001")
        return targets


class MidiSection(_Section):
    """MIDI devices: all that are there, or those whose names contain one of these words."""

    enabled: bool = True
    devices: tuple[Text, ...] = ()


class DmxChannel(_Section):
    """One parameter on a DMX channel, or on two (16 bit, coarse first)."""

    channel: int = Field(ge=1, le=512)
    parameter: str
    fine: bool = False

    @field_validator("parameter")
    @classmethod
    def _parameter_is_known(cls, name: str) -> str:
        try:
            return TABLE.find(name).name
        except SdbridgeError as error:
            raise ValueError(error.what) from None


class DmxSection(_Section):
    """One universe by Art-Net or sACN, its channels mapped to parameters."""

    protocol: Literal["off", "artnet", "sacn"] = "off"
    universe: int = Field(default=1, ge=0, le=63999)
    channels: tuple[DmxChannel, ...] = ()


class Config(_Section):
    """The whole file. Features add keys under their own key only."""

    name: Text = "sdbridge"
    port: int = Field(default=9000, ge=0, le=65535)
    lan: bool = False
    token: Text = ""
    input: InputsConfig = InputsConfig()
    output: tuple[OutputConfig, ...] = (OutputConfig(),)
    engine: EngineSection = EngineSection()
    parameters: dict[str, Any] = Field(default_factory=dict)
    presets_dir: str = ""
    cues: tuple[CueConfig, ...] = ()
    first_cue: Text = ""
    hold: HoldSection = HoldSection()
    log: LogSection = LogSection()
    compat: tuple[Literal["streamdiffusiontd"], ...] = ()
    osc: OscSection = OscSection()
    midi: MidiSection = MidiSection()
    dmx: DmxSection = DmxSection()
    _remarks: tuple[str, ...] = PrivateAttr(default=())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was read otherwise than it was written, to be said once there is a log."""
        return self._remarks

    @field_validator("name")
    @classmethod
    def _name_is_printable(cls, name: str) -> str:
        if not name.strip() or not name.isprintable() or len(name) > 64:
            raise ValueError("must be 1 to 64 printable characters: other programs show it")
        return name.strip()

    @field_validator("parameters")
    @classmethod
    def _parameters_are_known(cls, values: dict[str, Any]) -> dict[str, Any]:
        accepted: dict[str, Any] = {}
        wrong: list[str] = []
        for name, value in values.items():
            try:
                row = TABLE.find(str(name))
                accepted[row.name] = row.coerce(value)
            except SdbridgeError as error:
                wrong.append(f"{name}: {error.what}")
        if wrong:
            raise ValueError("\n".join(wrong))
        return accepted


def load_config(
    path: Path | None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read ``path`` (None: all defaults) and lay environment and flags over it.

    Precedence: ``overrides`` (command-line flags, dotted keys such as ``engine.model``) over
    ``SDBRIDGE_ENGINE__MODEL`` style variables over the file over the defaults.
    Raises SdbridgeError SDB-CONFIG-MISSING or SDB-CONFIG-INVALID, the latter with every mistake.
    """
    tree: dict[str, Any] = {}
    lines: dict[tuple[str | int, ...], int] = {}
    if path is not None:
        tree, lines = _read_yaml(path)
    given: dict[Place, str] = {}
    environment = os.environ if environment is None else environment
    for place, (variable, value) in _from_environment(environment).items():
        _lay(tree, place, value)
        given[place] = variable
    for key, value in (overrides or {}).items():
        if value is not None:
            place = tuple(key.split("."))
            _lay(tree, place, value)
            given[place] = f"--{place[-1]}"
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        mistakes = sentences(error.errors(), Config, lines, given)
        in_file = path if any(mistake.startswith("line ") for mistake in mistakes) else None
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        text = f"{count} in {in_file or 'what was given'}\n  " + "\n  ".join(mistakes) + "\n"
        raise SdbridgeError("SDB-CONFIG-INVALID", text) from None
    sides = {"width": config.engine.width, "height": config.engine.height}
    config._remarks = (
        *_misspelt(environment),
        *_adjusted("engine", sides, {name: TABLE.find(name).coerce(side) for name, side in sides.items()}),
        *_adjusted("parameters", tree.get("parameters") or {}, config.parameters),
    )
    return config


def _adjusted(section: str, given: Mapping[str, object], taken: Mapping[str, object]) -> Iterator[str]:
    """What was out of range or between two steps, and what is taken instead."""
    for name, value in given.items():
        row = TABLE.find(str(name))
        now = taken[row.name]
        numbers = isinstance(value, int | float) and isinstance(now, int | float)
        if numbers and not isinstance(value, bool) and value != now:
            yield f"{section}.{name} is {value}, taken as {now}: {row.address} goes from {row.range_text()}"


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """The file's tree and the line of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SdbridgeError("SDB-CONFIG-MISSING", f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SdbridgeError("SDB-CONFIG-INVALID", f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        tree, node = _parse(text)
    except yaml.YAMLError as error:
        raise SdbridgeError("SDB-CONFIG-INVALID", f"{path} is no valid YAML{_where(error)}") from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise SdbridgeError(
            "SDB-CONFIG-INVALID", f"{path} must hold keys and values, not {type(tree).__name__}"
        )
    lines: dict[tuple[str | int, ...], int] = {}
    _collect_lines(node, (), lines)
    return tree, lines


def _where(error: yaml.YAMLError) -> str:
    """The place and the complaint in one line, without the parser's own words for the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    words = ", ".join(part for part in said if part) or " ".join(str(error).split())
    return f"{place}: {words}"


def _parse(text: str) -> tuple[Any, yaml.Node | None]:
    """The content and the nodes it was made of, in one go, by libyaml if it is there."""
    loader = yaml.CSafeLoader(text) if yaml.__with_libyaml__ else yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    finally:
        loader.dispose()


def _collect_lines(
    node: yaml.Node | None, at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, index)] = value.start_mark.line + 1
            _collect_lines(value, (*at, index), lines)


def _from_environment(environment: Mapping[str, str]) -> dict[tuple[str, ...], tuple[str, Any]]:
    """``SDBRIDGE_PORT=9100`` and ``SDBRIDGE_ENGINE__DEVICE=cpu``; other SDBRIDGE_ names are left alone."""
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        key = tuple(part.lower() for part in name.removeprefix(ENVIRONMENT_PREFIX).split("__"))
        if key[0] in Config.model_fields:
            try:
                found[key] = name, yaml.safe_load(text) if text.strip() else text
            except yaml.YAMLError:
                found[key] = name, text  # a name such as "[left", meant as it stands
    return found


def _misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables that look like one of ours; any other program may have some that begin so."""
    for name in environment:
        first, *rest = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and first not in Config.model_fields:
            near = difflib.get_close_matches(first, Config.model_fields, n=1, cutoff=0.75)
            for meant in near:
                whole = "__".join((meant, *rest)).upper()
                yield f"{name} is no setting; did you mean {ENVIRONMENT_PREFIX}{whole}?"


def _lay(tree: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    for part in key[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    tree[key[-1]] = value
