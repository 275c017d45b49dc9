"""What one parameter is, and how a value from outside becomes one of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sdbridge.errors import SdbridgeError

Value = bool | int | float | str
Kind = Literal["bool", "int", "float", "str", "enum", "trigger"]
Effect = Literal["live", "reencode", "reload", "bridge"]

LARGEST_TEXT = 20_000  # characters; a 10,000-word prompt still passes
_TRUE = {"1", "true", "on", "yes"}
_FALSE = {"0", "false", "off", "no", ""}


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    ``name`` is the address without ``/sdbridge/`` and with dots: ``prompt.2.text`` lives at
    ``/sdbridge/prompt/2/text``. In a template row ``#`` stands for the slot number and ``slots``
    says how many there are.

    ``effect`` says what a change costs: ``live`` shows in the next frame; ``reencode`` makes new
    embeddings beside the loop and swaps them in; ``reload`` loads a new engine beside the old;
    ``bridge`` never reaches the engine.
    """

    name: str
    kind: Kind
    default: Value = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    group: str = ""
    slots: int = 0
    effect: Effect = "live"
    fade: bool = False
    out_of_range: Literal["clamp", "refuse"] = "clamp"
    help: str = ""
    label: str = ""
    aliases: tuple[str, ...] = ()
    multiple_of: int = 0
    suggestions: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return "/sdbridge/" + self.name.replace(".", "/")

    @property
    def title(self) -> str:
        """What a person reads on a control: the label, or the name made readable."""
        return self.label or self.name.replace(".", " ").replace("_", " ").capitalize()

    def in_slot(self, slot: int) -> Parameter:
        """The concrete parameter of one slot, counted from 1."""
        return replace(
            self,
            name=self.name.replace("#", str(slot)),
            label=self.label.replace("#", str(slot)),
            default=self.default,
            aliases=self.aliases if slot == 1 else (),
            slots=0,
        )

    def coerce(self, value: object) -> Value:
        """Turn what a controller sent into a value of this parameter.

        int, float, bool and number-like strings are taken for one another where no meaning is lost.
        Out of range is clamped or refused as the row says. NaN and infinity are always refused.
        Raises SdbridgeError SDB-PARAM-TYPE, -RANGE or -NAN, naming address, value and range.
        """
        if self.kind == "trigger":
            return self._as_bool(value)  # a released button sends 0 and fires nothing
        if self.kind == "bool":
            return self._as_bool(value)
        if self.kind == "enum":
            return self._as_choice(value)
        if self.kind == "str":
            return self._as_text(value)
        return self._as_number(value)

    def _as_bool(self, value: object) -> bool:
        if isinstance(value, str):
            word = value.strip().lower()
            if word in _TRUE | _FALSE:
                return word in _TRUE
            raise self._wrong_type(value, "on or off")
        if isinstance(value, bool | int | float):
            if isinstance(value, float) and not math.isfinite(value):
                raise self._not_finite(value)
            return value >= 0.5
        raise self._wrong_type(value, "on or off")

    def _as_choice(self, value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in self.choices:
            return value.strip().lower()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.choices):
            return self.choices[value]
        raise SdbridgeError(
            "SDB-PARAM-RANGE",
            f"{self.address} takes one of {', '.join(self.choices)} or 0 to {len(self.choices) - 1}, "
            f"not {_short(value)}",
        )

    def _as_text(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong_type(value, "text")
        text = value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:g}"
        text = text.replace("\x00", "").encode("utf-8", "replace").decode()  # JSON may bring half a surrogate
        if len(text) > LARGEST_TEXT:
            raise SdbridgeError(
                "SDB-PARAM-RANGE", f"{self.address} takes up to {LARGEST_TEXT} characters, not {len(text)}"
            )
        return text

    def _as_number(self, value: object) -> int | float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self._wrong_type(value, "a number") from None
        if not isinstance(value, bool | int | float):
            raise self._wrong_type(value, "a number")
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if not math.isfinite(number):
            raise self._not_finite(number)
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= number <= high:
            if self.out_of_range == "refuse":
                raise SdbridgeError(
                    "SDB-PARAM-RANGE", f"{self.address} takes {self.range_text()}, not {number:g}"
                )
            number = min(max(number, low), high)
        if self.kind == "float":
            return number
        whole = math.floor(number + 0.5)
        if self.multiple_of:
            whole = max(self.multiple_of, round(whole / self.multiple_of) * self.multiple_of)
        return whole

    def adjusted(self, sent: object, value: Value) -> SdbridgeError | None:
        """What is to be said where a number came out of range or between two steps; else nothing.

        An error that nobody raises: the value was taken, only not as it was sent.
        """
        if self.kind not in ("int", "float"):
            return None
        if not isinstance(sent, int | float) or not isinstance(value, int | float):
            return None
        if sent == value or (self.kind == "int" and abs(sent - value) < 1):
            return None
        return SdbridgeError(
            "SDB-PARAM-RANGE",
            f"{self.address} was sent {sent:g} and is set to {value:g}, the range is {self.range_text()}",
            output="The output goes on.",
        )

    def range_text(self) -> str:
        """The range as a person reads it: ``0 to 1``, ``on or off``, ``none | full``."""
        if self.kind == "enum":
            return " | ".join(self.choices)
        if self.kind == "bool":
            return "on or off"
        if self.kind == "trigger":
            return "any value fires it, 0 does not"
        if self.kind == "str":
            return "text"
        low = "any" if self.minimum is None else f"{self.minimum:.12g}"
        high = "any" if self.maximum is None else f"{self.maximum:.12g}"
        text = f"{low} to {high}" if (low, high) != ("any", "any") else "any number"
        if self.multiple_of:
            text += f", in steps of {self.multiple_of}"
        return f"{text} {self.unit}".strip()

    def _wrong_type(self, value: object, wanted: str) -> SdbridgeError:
        return SdbridgeError(
            "SDB-PARAM-TYPE", f"{self.address} takes {wanted}, not {type(value).__name__} {_short(value)}"
        )

    def _not_finite(self, value: float) -> SdbridgeError:
        return SdbridgeError("SDB-PARAM-NAN", f"{self.address} was sent {value}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
