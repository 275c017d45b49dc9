"""The flat addresses and JSON strings of StreamDiffusionTD, so that existing patches work unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from sdbridge.control.osc_decode import Argument
from sdbridge.errors import SdbridgeError

Pairs = list[tuple[str, object]]
_PROMPTS, _SEEDS, _CONTROLNETS = 8, 4, 8


def is_theirs(address: str) -> bool:
    """Whether StreamDiffusionTD knows this address."""
    return any(address in table for table in (_PLAIN, _TRIGGERS, _SPECIAL, _IGNORED))


def translate(address: str, args: Sequence[Argument]) -> Pairs:
    """The parameters that one of their addresses sets. Raises SDB-PARAM-TYPE if its arguments do not fit."""
    if address in _PLAIN:
        return [(_PLAIN[address], _first(address, args))]
    if address in _TRIGGERS:
        return [(_TRIGGERS[address], args[0] if args and args[0] is not None else True)]
    if address in _SPECIAL:
        return _SPECIAL[address](address, args)
    return []


_PLAIN: Mapping[str, str] = {
    "/prompt": "prompt.1.text",
    "/negative_prompt": "negative_prompt",
    "/seed": "seed.1.value",
    "/guidance_scale": "guidance_scale",
    "/delta": "delta",
    "/num_inference_steps": "schedule_steps",
    "/latent_feedback_strength": "latent_feedback",
    "/ipadapter_scale": "style_scale",
    "/sdmode": "mode",
}

_TRIGGERS: Mapping[str, str] = {
    "/start_streaming": "engine.start",
    "/stop_streaming": "engine.stop",
    "/stop": "engine.stop",
    "/ipadapter_update": "style.1.grab",
}

#: Their handshake for shared memory, which has no counterpart here and does no harm.
_IGNORED = frozenset({"/process_frame", "/frame_ack", "/get_status"})


def _first(address: str, args: Sequence[Argument]) -> object:
    if not args:
        raise SdbridgeError("SDB-PARAM-TYPE", f"{address} takes a value")
    return args[0]


def _json(address: str, args: Sequence[Argument]) -> object:
    text = _first(address, args)
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SdbridgeError("SDB-PARAM-TYPE", f"{address} holds no valid JSON: {error}") from None


def _weighted(address: str, args: Sequence[Argument]) -> list[tuple[object, object]]:
    """``[["text", 0.7], ["other", 0.3]]`` or ``{"text": 0.7}``, as they send prompts and seeds."""
    tree = _json(address, args)
    entries = list(tree.items()) if isinstance(tree, dict) else tree
    if not isinstance(entries, list) or not all(
        isinstance(entry, list | tuple) and len(entry) == 2 for entry in entries
    ):
        raise SdbridgeError("SDB-PARAM-TYPE", f"{address} takes a JSON list of [value, weight]")
    return [(content, weight) for content, weight in entries]


def _slots(address: str, args: Sequence[Argument], content: str, weight: str, slots: int) -> Pairs:
    entries = _weighted(address, args)
    if len(entries) > slots:
        raise SdbridgeError(
            "SDB-PARAM-RANGE", f"{address} holds {len(entries)} entries; {slots} are the most"
        )
    pairs: Pairs = []
    for slot in range(1, slots + 1):
        if slot <= len(entries):
            pairs.append((content.replace("#", str(slot)), entries[slot - 1][0]))
            pairs.append((weight.replace("#", str(slot)), entries[slot - 1][1]))
        else:
            pairs.append((weight.replace("#", str(slot)), 0.0))
    return pairs


def _prompt_list(address: str, args: Sequence[Argument]) -> Pairs:
    return _slots(address, args, "prompt.#.text", "prompt.#.weight", _PROMPTS)


def _seed_list(address: str, args: Sequence[Argument]) -> Pairs:
    return _slots(address, args, "seed.#.value", "seed.#.weight", _SEEDS)


def _t_list(address: str, args: Sequence[Argument]) -> Pairs:
    indices = _json(address, args) if len(args) == 1 else list(args)
    if not isinstance(indices, list):
        indices = [indices]
    numbers = [index for index in indices if isinstance(index, int | float) and abs(index) < 1e6]
    if not numbers or len(numbers) < len(indices):
        raise SdbridgeError("SDB-PARAM-TYPE", f"{address} takes step indices")
    return [("steps", len(numbers)), ("step_indices", ",".join(str(int(number)) for number in numbers))]


def _blend(name: str) -> Callable[[str, Sequence[Argument]], Pairs]:
    def pairs(address: str, args: Sequence[Argument]) -> Pairs:
        word = str(_first(address, args)).strip().lower()
        return [(name, "linear" if word == "linear" else "slerp" if word.endswith("slerp") else word)]

    return pairs


def _controlnets(address: str, args: Sequence[Argument]) -> Pairs:
    entries = _json(address, args)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SdbridgeError("SDB-PARAM-TYPE", f"{address} takes a JSON list of ControlNets")
    keys = {
        "model_id": "model",
        "conditioning_scale": "scale",
        "enabled": "enabled",
        "preprocessor": "preprocessor",
    }
    pairs: Pairs = []
    for slot, entry in enumerate(entries[:_CONTROLNETS], 1):
        pairs += [
            (f"controlnet.{slot}.{ours}", entry[theirs]) for theirs, ours in keys.items() if theirs in entry
        ]
    return pairs


def _use_controlnet(address: str, args: Sequence[Argument]) -> Pairs:
    on = _first(address, args)
    return [(f"controlnet.{slot}.enabled", on) for slot in range(1, _CONTROLNETS + 1)]


def _ipadapter_enable(address: str, args: Sequence[Argument]) -> Pairs:
    on = _first(address, args)
    return [("style.1.source", "grab" if on else "off")]


def _cached_attention(address: str, args: Sequence[Argument]) -> Pairs:
    tree = _json(address, args)
    if not isinstance(tree, dict):
        return [("feature_bank.enabled", tree)]
    keys = {
        "enabled": "feature_bank.enabled",
        "use_cached_attn": "feature_bank.enabled",
        "cache_maxframes": "feature_bank.frames",
        "cache_interval": "feature_bank.interval",
        "fi_strength": "feature_bank.strength",
        "fi_threshold": "feature_bank.threshold",
    }
    return [(ours, tree[theirs]) for theirs, ours in keys.items() if theirs in tree]


def _pause(address: str, args: Sequence[Argument]) -> Pairs:
    return [("output.freeze", address == "/pause")]


_SPECIAL: Mapping[str, Callable[[str, Sequence[Argument]], Pairs]] = {
    "/prompt_list": _prompt_list,
    "/seed_list": _seed_list,
    "/t_list": _t_list,
    "/prompt_interpolation_method": _blend("prompt_blend"),
    "/seed_interpolation_method": _blend("seed_blend"),
    "/controlnets": _controlnets,
    "/use_controlnet": _use_controlnet,
    "/ipadapter_enable": _ipadapter_enable,
    "/cached_attention": _cached_attention,
    "/pause": _pause,
    "/play": _pause,
}
