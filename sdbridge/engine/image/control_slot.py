"""One slot for a ControlNet: what is set, what of it is loaded, what frames run with."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdbridge.engine.image.beside import Beside
from sdbridge.engine.image.control_networks import Hint, Network
from sdbridge.engine.image.still_file import StillFile
from sdbridge.engine.preprocess.base import Preprocessor, Settings


@dataclass(frozen=True)
class ControlMap:
    """One frame's control image for one slot, and what the slot's network made of it."""

    image: Tensor  # [3, H, W] 0..1
    network: Network | None
    hint: Hint


Luggage = Mapping[int, ControlMap]


@dataclass
class ControlSlot:
    """What is set, what is loaded for it, and what frames run with."""

    number: int
    models: Beside[Network]
    preprocessors: Beside[Preprocessor]
    stills: StillFile
    enabled: bool = True
    model: str = ""
    loaded: str = ""
    refused: bool = False  # the model that is set could not be used
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    source: str = "main"
    file: str = ""
    preprocessor: str = "passthrough"
    low: float = 0.1
    high: float = 0.3
    detail: float = 0.5
    network: Network | None = None
    make_map: Preprocessor | None = None
    taken_up: tuple[Network | None, Preprocessor | None] = (None, None)  # what frames run with
    #: What frames go on with until another network is there: a map that is meant for it is none for this one.
    kept: tuple[Network, Preprocessor] | None = None
    still: Tensor | None = None  # [1, 4, h, w], in its own size
    still_maps: tuple[tuple[Any, ...], tuple[ControlMap, ...]] | None = None
    missing_source: bool = False
    misses: str = ""  # start or end, where that leaves no row of the stream to it

    @property
    def settings(self) -> Settings:
        return Settings(self.low, self.high, self.detail)

    @property
    def steers(self) -> bool:
        return self.enabled and self.network is not None and self.scale > 0

    @property
    def rests(self) -> bool:
        """Whether nothing comes of it before something is set."""
        busy = self.models.busy or self.preprocessors.busy or self.stills.busy
        idle = not (self.model or self.file or self.loaded or busy)
        return idle and self.network is None and self.taken_up == self.wanted

    @property
    def wanted(self) -> tuple[Network | None, Preprocessor | None]:
        """What frames shall run with: the network where it steers, and what makes its control image."""
        network, make_map = self.kept or (self.network, self.make_map)
        return (network if self.steers and make_map is not None else None), make_map


@dataclass
class SharedNetworks:
    """Networks in use, by what was asked for: two slots with one model share its weights."""

    networks: weakref.WeakValueDictionary[str, Any] = field(default_factory=weakref.WeakValueDictionary)
    preprocessors: weakref.WeakValueDictionary[str, Any] = field(default_factory=weakref.WeakValueDictionary)
