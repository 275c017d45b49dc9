"""What the table lets through and this engine cannot do: checked as it is told, answered with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from sdbridge.engine.image.schedule import parse_step_indices
from sdbridge.engine.image.settings import ManualSteps, weighted_texts
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection


def take_steps(
    taken: dict[str, Value], values: Mapping[str, Value], rejected: list[Rejection]
) -> ManualSteps | None:
    """The step indices among ``taken``, if there are any and they fit the schedule they will be used in.

    That schedule is remembered with them. Those that do not fit leave ``taken``.
    """
    if "step_indices" not in taken:
        return None
    schedule_steps = int(taken.get("schedule_steps", values["schedule_steps"]))
    try:
        indices = parse_step_indices(str(taken["step_indices"]), schedule_steps)
    except SdbridgeError as error:
        rejected.append(Rejection("step_indices", error.code, str(error)))
        del taken["step_indices"]
        return None
    return ManualSteps(indices, schedule_steps)


def take_size(taken: dict[str, Value], rejected: list[Rejection]) -> None:
    """A side that the VAE cannot divide by eight leaves ``taken``."""
    for name in ("width", "height"):
        if name in taken and int(taken[name]) % 8:
            error = SdbridgeError("SDB-ENGINE-SIZE", f"{name} must be a multiple of 8, {taken[name]} is not")
            rejected.append(Rejection(name, error.code, str(error)))
            del taken[name]


def check_prompts(taken: Mapping[str, Value], values: Mapping[str, Value], rejected: list[Rejection]) -> None:
    """All weights at 0 leave nothing to paint: the last blend stays, and the sender is told.

    ``values`` have ``taken`` in them.
    """
    weights = [name for name in taken if name.startswith("prompt.") and name.endswith(".weight")]
    if not weights:
        return
    filled = [weight for text, weight in weighted_texts(values) if text.strip()]
    if filled and max(filled) <= 0:
        error = SdbridgeError(
            "SDB-PROMPT-WEIGHTS", f"the weights of all {len(filled)} prompts with a text are 0"
        )
        rejected.append(Rejection(weights[-1], error.code, str(error)))
