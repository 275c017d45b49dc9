"""A UNet call as a row of tensors, which is what a captured graph takes, and back."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sdbridge.engine.image.seams import UnetCall


def brought(call: UnetCall) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """What a frame brings of its own: all that depends on more than the timesteps or the text."""
    found: list[tuple[str, Tensor]] = [("sample", call.sample)]
    if call.mid_residual is not None:
        found.append(("mid_residual", call.mid_residual))
    found += [(f"down.{i}", value) for i, value in enumerate(call.down_residuals or ())]
    return tuple(name for name, _ in found), tuple(tensor for _, tensor in found)


def with_brought(call: UnetCall, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> UnetCall:
    """``call`` with other tensors, in the order of ``brought``."""
    given = dict(zip(names, tensors, strict=True))
    return replace(
        call,
        sample=given["sample"],
        mid_residual=given.get("mid_residual"),
        down_residuals=tuple(given[name] for name in names if name.startswith("down.")) or None,
    )


def flat(call: UnetCall) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The call's tensors in a fixed order, and what each one is."""
    found: list[tuple[str, Tensor]] = [
        ("sample", call.sample),
        ("timesteps", call.timesteps),
        ("encoder_hidden_states", call.encoder_hidden_states),
    ]
    if call.timestep_cond is not None:
        found.append(("timestep_cond", call.timestep_cond))
    if call.mid_residual is not None:
        found.append(("mid_residual", call.mid_residual))
    found += [(f"added.{name}", value) for name, value in sorted(call.added_cond.items())]
    found += [(f"down.{i}", value) for i, value in enumerate(call.down_residuals or ())]
    found += [(f"intra.{i}", value) for i, value in enumerate(call.intrablock_residuals or ())]
    return tuple(name for name, _ in found), tuple(tensor for _, tensor in found)


def unflat(call: UnetCall, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> UnetCall:
    """``call`` with other tensors, in the order of ``flat``."""
    given = dict(zip(names, tensors, strict=True))

    def listed(prefix: str) -> tuple[Tensor, ...] | None:
        return tuple(given[name] for name in names if name.startswith(prefix)) or None

    return replace(
        call,
        sample=given["sample"],
        timesteps=given["timesteps"],
        encoder_hidden_states=given["encoder_hidden_states"],
        timestep_cond=given.get("timestep_cond"),
        mid_residual=given.get("mid_residual"),
        added_cond={name.removeprefix("added."): given[name] for name in names if name.startswith("added.")},
        down_residuals=listed("down."),
        intrablock_residuals=listed("intra."),
    )
