"""The image engine as a library: pictures in, pictures out, parameters by name, in ten lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig, ResetKind
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.table import TABLE

log = logging.getLogger(__name__)


class Stream:
    """One live stream of generated pictures.

    >>> from sdbridge.engine.image import Stream
    >>> with Stream("models/sd-turbo", prompt="a fox in the snow") as stream:
    ...     for picture in pictures:                       # uint8 [H, W, 3]
    ...         painted = stream(picture)                  # uint8 [height, width, 3]
    ...         stream.set(strength=0.7, guidance_scale=1.3)

    Parameters are those of ``sdbridge osc``, with a dot (in keywords two underscores) for a slash:
    ``strength`` 0..1 how much is repainted; ``steps`` 1..8 rows of the stream batch (StreamDiffusion,
    section 3.1; each adds one frame of latency); ``step_indices`` such as ``"16,32"``; ``guidance_mode``
    none | full | self | initialize with ``guidance_scale`` 0..12 and ``delta`` (residual CFG, section 3.2);
    ``prompt`` or ``prompt.2.text`` and ``prompt.2.weight``; ``seed``; ``similarity.enabled`` (section 3.4);
    ``latent_feedback``; ``feature_bank.enabled`` (StreamV2V, section 4); ``mode`` img2img | txt2img | bypass.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        prompt: str = "",
        width: int = 512,
        height: int = 512,
        device: str = "auto",
        dtype: str = "auto",
        vae: str = "auto",
        acceleration: str = "auto",
        clock: Clock | None = None,
        options: Mapping[str, object] | None = None,
        **parameters: object,
    ) -> None:
        """Load ``model``: a diffusers-layout folder, one ``.safetensors``, the id of something pulled, or
        ``embedded`` (the model in the package, for 256x256); the network is never used.

        ``width`` and ``height`` are multiples of 8. ``device`` auto | cuda | mps | cpu, ``dtype`` auto |
        float16 | bfloat16 | float32 | float64, ``vae`` auto | tiny | full | folder. Raises SdbridgeError
        SDB-MODEL-*, SDB-ENGINE-* or SDB-PARAM-*.
        """
        values = _named({"prompt": prompt, "width": width, "height": height, **parameters})
        self._clock = clock or SystemClock()
        self._next_id = 0
        self._channels = 3
        self.engine = ImageEngine(
            EngineConfig(
                model=str(_local(model)),
                device=device,
                dtype=dtype,
                vae=vae,
                acceleration=acceleration,
                options={"wait_for_prompts": True, **(options or {})},
            ),
            self._clock,
        )
        with ExitStack() as undo:
            undo.callback(self.engine.unload)  # if this fails nobody gets the stream, so nobody could
            self.engine.load(values)
            self.engine.warm_up(int(values["width"]), int(values["height"]))
            undo.pop_all()

    def set(self, values: Mapping[str, object] | None = None, /, **parameters: object) -> None:
        """Change parameters; they hold from the next picture on, texts too.

        Raises SdbridgeError SDB-PARAM-* for a value the parameter does not take, or the engine's code
        for one this model cannot do; the other values of the call are set all the same.
        """
        rejected = self.engine.apply(_named({**(values or {}), **parameters}), 0)
        if rejected:
            first = rejected[0]
            raise SdbridgeError(first.code, first.message.removeprefix(f"{first.code}: "))

    def __call__(self, picture: np.ndarray | None = None, **others: np.ndarray) -> np.ndarray | None:
        """One tick: ``picture`` uint8 ``[H, W, 3 or 4]`` (None: txt2img, draining) -> the oldest finished.

        The answer is uint8 with the channels of the input, at the stream's size; it was made from the
        picture given ``steps - 1`` calls ago, and None while there is none. ``others`` are further inputs
        by role: ``control``, ``mask``, ``style``.
        """
        made = self.engine.tick(None if picture is None else self._chunk(picture, others))
        return None if made is None else self._plain(made)

    def paint(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Every picture painted, in order, also the last ones that are still inside at the end.

        The first ``steps - 1`` answers, made while the pipe fills, are left out: one answer per picture
        (with ``frame_batch`` 1).
        """
        waiting = self.engine.spec.pipeline_ticks
        for picture in pictures:
            painted = self(picture)
            if waiting > 0:
                waiting -= 1
            elif painted is not None:
                yield painted
        yield from self.flush()

    def flush(self) -> list[np.ndarray]:
        """The pictures still inside, oldest first."""
        return [self._plain(chunk) for chunk in self.engine.flush()]

    def reset(self, how: ResetKind = "hard") -> None:
        """soft: forget the pictures inside; recache: also features; hard: also start all chance anew."""
        self.engine.reset(how)

    def close(self) -> None:
        """Free the model. Also at the end of a ``with``."""
        self.engine.unload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chunk(self, picture: np.ndarray, others: Mapping[str, np.ndarray]) -> Chunk:
        self._channels = picture.shape[2] if picture.ndim == 3 else 3
        self._next_id += 1
        now = self._clock.now_ns()
        frames = {role: Frame(_rgba(pixels), self._next_id, now) for role, pixels in others.items()}
        return Chunk.of(Frame(_rgba(picture), self._next_id, now), **frames)

    def _plain(self, chunk: Chunk) -> np.ndarray:
        role: Role = "generated"
        return chunk.frames[-1][role].pixels[..., : self._channels]


def _local(model: str | Path) -> str | Path:
    """Where the model lies that was asked for. Raises SDB-MODEL-MISSING for one that was not pulled."""
    from sdbridge.models import catalog, embedded_model

    if str(model) == "embedded":
        return embedded_model.EMBEDDED_DIR
    if Path(model).expanduser().exists():
        return model
    pulled = catalog.local_path(str(model))
    if pulled is None and catalog.find(str(model)) is not None:
        raise SdbridgeError(
            "SDB-MODEL-MISSING", f"{model} is in the catalog, but not here", f"Run `sdbridge pull {model}`."
        )
    return model if pulled is None else pulled


def _named(values: Mapping[str, object]) -> dict[str, Value]:
    """Accepted values by the table's names; ``similarity__enabled`` stands for ``similarity.enabled``."""
    accepted: dict[str, Value] = {}
    for name, value in values.items():
        row = TABLE.find(name.replace("__", "."))
        accepted[row.name] = row.coerce(value)
    return accepted


def _rgba(pixels: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3 or 4]`` as the contract wants it. Raises SDB-FRAME-FORMAT."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise SdbridgeError(
            "SDB-FRAME-FORMAT",
            f"a picture must be uint8 [height, width, 3 or 4], not {pixels.dtype} {pixels.shape}",
        )
    if pixels.shape[2] == 4:
        return np.ascontiguousarray(pixels)
    full = np.full((*pixels.shape[:2], 4), 255, dtype=np.uint8)
    full[..., :3] = pixels
    return full
