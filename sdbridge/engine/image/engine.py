"""The image engine as the engine loop sees it: load, warm up, apply, tick, reset, flush, unload."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

import torch

from sdbridge.clock import Clock, SystemClock
from sdbridge.engine.accelerate.courtesy import (
    before_the_next,
    frame_is_out,
    frames_rest,
    one_at_a_time,
)
from sdbridge.engine.accelerate.precompile import start_early
from sdbridge.engine.image.acceptance import check_prompts, take_size, take_steps
from sdbridge.engine.image.device import choose_placement, give_back_memory, gpu_load, take_device
from sdbridge.engine.image.extensions import build_extensions
from sdbridge.engine.image.foresight import Foresight, Wish
from sdbridge.engine.image.load import LoadedModel, load_model
from sdbridge.engine.image.loading import LoadingThread
from sdbridge.engine.image.painter import Painter
from sdbridge.engine.image.painting import Painting
from sdbridge.engine.image.seams import ExtensionContext, StreamExtension
from sdbridge.engine.image.settings import (
    ManualSteps,
    StreamSettings,
    complete,
    stream_settings,
    unused_parameters,
)
from sdbridge.engine.image.share import UnderWay
from sdbridge.engine.interface import (
    MOST_PENDING,
    EngineConfig,
    EngineSpec,
    EngineStats,
    Progress,
    ResetKind,
    WarmUpReport,
)
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection
from sdbridge.parameters.table import TABLE

log = logging.getLogger(__name__)

_TIMED_TICKS = 60
#: Parameters whose change does not touch the picture of a still input.
_NOT_PICTURE = ("similarity.",)
#: In a wish, what is not a parameter's value: the checked step indices.
_MANUAL = "step_indices (checked)"


class ImageEngine:
    """StreamDiffusion on one loaded model. All calls come from one thread (``interface.Engine``)."""

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.spec = EngineSpec(kind="image")
        self._clock = clock or SystemClock()
        self._progress: Callable[[Progress | None], None] = lambda progress: None
        self._under_way = UnderWay(lambda progress: self._progress(progress))
        self._trouble: Callable[[SdbridgeError], None] = lambda error: log.warning("%s", error)
        self._values: dict[str, Value] = complete({})
        self._manual = ManualSteps()
        self._revision = 0
        self._dirty = True
        self._foresight = Foresight(self._clock, self._settings_of)
        self._streaming = False
        self._model: LoadedModel | None = None
        self._painter: Painter | None = None
        self._extensions: tuple[StreamExtension, ...] = ()
        self._keepsakes: Mapping[str, bytes] = {}
        self._capable: frozenset[str] = frozenset()
        self._beside: LoadingThread | None = None
        self._load_s = 0.0
        self._tick_ms: deque[float] = deque(maxlen=_TIMED_TICKS)
        self._ticks = 0
        self._pending: deque[tuple[Painting | None, float]] = deque()
        self._collected_at = 0.0

    def report_progress(self, tell: Callable[[Progress | None], None]) -> None:
        """Who is told how far loading is, and None when work beside the stream is done; before ``load``."""
        self._progress = tell

    def report_trouble(self, tell: Callable[[SdbridgeError], None]) -> None:
        """Who is told of what went wrong beside the frame loop, such as a LoRA that does not fit."""
        self._trouble = tell

    def remember(self, keepsakes: Mapping[str, bytes]) -> None:
        """What another engine had that no parameter says; before ``load``."""
        self._keepsakes = keepsakes

    def keepsakes(self) -> dict[str, bytes]:
        """The same of this one (``interface.OverlappingEngine``)."""
        return {name: kept for extension in self._extensions for name, kept in extension.keepsakes().items()}

    @property
    def model(self) -> LoadedModel:
        """The loaded model; only after ``load``."""
        assert self._model is not None, "load comes first"
        return self._model

    @property
    def painter(self) -> Painter:
        """The frame loop's inside, for the library and for tests; only after ``load``."""
        assert self._painter is not None, "load comes first"
        return self._painter

    @property
    def wants_frame(self) -> bool:
        """True while the picture would change although the input stands still: the loop gives it again."""
        waiting = self._dirty or self._foresight.waiting
        return self._painter is not None and (waiting or self._painter.restless)

    @property
    def shows_up_to(self) -> int | None:
        """The revision up to which all values are in the newest tick; None: all that were given are."""
        return self._foresight.shows_up_to

    def frame_edge(self) -> None:
        """Take up what was given and can be; every tick does so too."""
        if self._painter is not None:
            self._settle()

    @property
    def gpu_output(self) -> Callable[[torch.Tensor], None] | None:
        """Who shows pictures where they are made, if anybody does; only after ``load``."""
        return self.painter.outgoing.show

    @gpu_output.setter
    def gpu_output(self, show: Callable[[torch.Tensor], None]) -> None:
        self.painter.outgoing.show = show

    def rests(self) -> None:
        """No frame is under way and none is there (``interface.OverlappingEngine``)."""
        frames_rest()

    def load(self, values: Mapping[str, Value]) -> None:
        """Read the model (never the network) and embed the first prompts.

        Raises SdbridgeError SDB-MODEL-* or SDB-ENGINE-*; nothing is held then.
        """
        began = time.perf_counter()
        self._streaming = False
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        placement = choose_placement(self.config.device, self.config.dtype)
        if placement.trouble:
            log.warning("%s", placement.trouble)
        take_device(self, placement.device)
        start_early(placement.device, self.config.acceleration)
        stages = iter((1.0, 2.0, 3.0))
        self._values = complete(values)
        self._model = load_model(
            self.config.model,
            placement,
            vae=self.config.vae,
            allow_pickle=bool(self.config.options.get("allow_pickle", False)),
            options=self.config.options,
            on_stage=lambda stage: self._progress(
                Progress("load", next(stages, 3.0), 4.0, f"Loading {stage}")
            ),
        )
        self._beside = LoadingThread(self._model.device)
        self._painter = Painter(
            self._model,
            self.config.acceleration,
            self._clock,
            wait_for_prompts=bool(self.config.options.get("wait_for_prompts", False)),
            attention=self.config.attention,
        )
        report = getattr(self._painter.acceleration, "report_progress", None)
        if report is not None:  # it goes on getting better while frames run
            report(partial(self._under_way.tell, "acceleration"))
        self._extensions = build_extensions(self._context(self._painter))
        self._painter.extensions = self._extensions
        for extension in self._extensions:
            extension.remember(self._keepsakes)
        self._capable = self._capabilities()
        for rejection in self.apply(dict(self._values), self._revision):
            log.warning("%s", rejection.message)
        self._settle()
        self._load_s = time.perf_counter() - began
        self._progress(Progress("load", 4.0, 4.0, "Model loaded"))

    def warm_up(self, width: int, height: int) -> WarmUpReport:
        """Run one frame of this size through everything, so that the first real one is as fast as any."""
        began = time.perf_counter()
        self._values["width"], self._values["height"] = width, height
        self._dirty, self._streaming = True, False
        settings = self._settle()
        self._progress(Progress("warm_up", 0.0, 1.0, "Warming up"))
        self.painter.warm_up(settings)
        self._progress(Progress("warm_up", 1.0, 1.0, "Ready"))
        model = self.model
        return WarmUpReport(
            load_s=self._load_s,
            warm_up_s=time.perf_counter() - began,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            acceleration=self.painter.acceleration.name,
            why=f"{model.why}; {self.painter.why_acceleration}",
        )

    def apply(self, changes: Mapping[str, Value], revision: int) -> tuple[Rejection, ...]:
        """Take accepted values between two frames; what cannot be done stays as it was, with the reason."""
        rejected: list[Rejection] = []
        taken = dict(changes)
        self._manual = take_steps(taken, self._values, rejected) or self._manual
        take_size(taken, rejected)
        self._values.update({name: value for name, value in taken.items() if name in self._values})
        check_prompts(taken, self._values, rejected)
        layers = False
        for extension in self._extensions:
            own = {name: value for name, value in taken.items() if name.startswith(extension.parameters)}
            if own and extension.parameters:
                rejected += extension.apply(own)
                layers = True
        self._revision = max(self._revision, revision)
        self._dirty = True
        if self._painter is not None and any(not name.startswith(_NOT_PICTURE) for name in taken):
            self._painter.picture_changed(layers)
        return tuple(rejected)

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        """One frame's work: F pictures in, F out, the oldest first. See ``painter.Painter.begin``."""
        self._queue(chunk)
        return self.collect(True)

    @property
    def pending(self) -> int:
        """Ticks submitted and not collected (``interface.OverlappingEngine``)."""
        return len(self._pending)

    @property
    def most_pending(self) -> int:
        """The same; one while something is loaded or captured beside the frames (``courtesy.py``)."""
        return 1 if one_at_a_time() else MOST_PENDING

    @property
    def submit(self) -> Callable[[Chunk | None], None] | None:
        """Queue a tick without waiting for the device; None where the device is the host itself."""
        overlaps = self._model is not None and self._model.device.type == "cuda"
        return self._queue if overlaps else None

    def collect(self, wait: bool) -> Chunk | None:
        """The oldest submitted tick's chunk (``interface.OverlappingEngine``)."""
        if not self._pending or not (wait or self._pending[0][0] is None or self._pending[0][0].ready):
            return None
        painting, began = self._pending.popleft()
        made = None if painting is None else painting.finish()
        frame_is_out(len(self._pending))
        now = time.perf_counter()
        # What a frame took: from the end of the one before it where they overlap.
        self._tick_ms.append((now - max(began, self._collected_at)) * 1e3)
        self._collected_at = now
        self._ticks += 1
        return made

    def _queue(self, chunk: Chunk | None) -> None:
        began = time.perf_counter()
        before_the_next(len(self._pending))
        self._streaming = True
        settings = self._settle()
        self._pending.append((self.painter.begin(chunk, settings, self._shown), began))

    def reset(self, how: ResetKind) -> None:
        """soft: forget the frames inside. recache: and everything remembered. hard: and all chance."""
        self.painter.reset(how)
        for extension in self._extensions:
            extension.reset(how)

    def flush(self) -> tuple[Chunk, ...]:
        """The frames still inside, oldest first."""
        return self.painter.flush(self._settle(), self._shown)

    def stats(self) -> EngineStats:
        times = list(self._tick_ms)
        model = self._model
        on_cuda = model is not None and model.device.type == "cuda"
        free, total = torch.cuda.mem_get_info(model.device) if on_cuda and model is not None else (0, 0)
        unused: tuple[str, ...] = ()
        if self._painter is not None and self._painter.settings is not None:
            unused = unused_parameters(self._values, self._painter.settings)
        return EngineStats(
            tick_ms=sum(times) / len(times) if times else 0.0,
            parts_ms=self._painter.parts_ms() if self._painter is not None else {},
            vram_mb=(total - free) / 2**20,
            vram_total_mb=total / 2**20,
            gpu_load=gpu_load(model.device) if on_cuda and model is not None else 0.0,
            ticks=self._ticks,
            skipped=self._painter.skipped if self._painter is not None else 0,
            unused=(*unused, *(name for extension in self._extensions for name in extension.unused())),
        )

    def unload(self) -> None:
        """Free everything. May be called at any time, also twice."""
        self._pending.clear()
        for extension in self._extensions:
            extension.unload()
        self._extensions = ()
        if self._beside is not None:
            self._beside.close()
            self._beside = None
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        on_cuda = self._model is not None and self._model.device.type == "cuda"
        self._model = None
        if on_cuda:
            gc.collect()  # diffusers' modules refer to each other in circles
            give_back_memory(self)

    # --- settings ---

    def _settle(self) -> StreamSettings:
        """The settings of the next frame; made again only after a change."""
        painter, waited = self.painter, self._foresight.waiting
        loaded = [extension.frame_edge() for extension in self._extensions]
        if any(loaded):
            painter.picture_changed()
            self._dirty = True
        others = [extension.awaits for extension in self._extensions]
        awaited = tuple(others) if any(others) else None
        if self._dirty or awaited or self._foresight.waiting or painter.settings is None:
            wish = {**self._values, _MANUAL: self._manual}
            settings = self._foresight.choose(wish, self._revision, self._is_ready_for, awaited)
            self._dirty = False
            if not self._foresight.waiting:
                for extension in self._extensions:
                    extension.take_up()
                if waited or awaited:  # what was said some frames ago is in the picture from here on
                    painter.picture_changed()
            if settings == painter.settings:
                return settings
            painter.settle(settings)
            self._state_spec(settings)
        assert painter.settings is not None
        return painter.settings

    def _state_spec(self, settings: StreamSettings) -> None:
        frames = settings.frames
        inside = 0 if settings.mode == "bypass" else settings.plan.count - 1
        now = self.spec
        if (frames, inside, self._capable) != (now.chunk_in, now.pipeline_ticks, now.capabilities):
            self.spec = EngineSpec(
                kind="image",
                chunk_in=frames,
                first_in=frames,
                chunk_out=frames,
                first_out=frames,
                size_multiple=8,
                pipeline_ticks=inside,
                capabilities=self._capable,
            )

    @property
    def _shown(self) -> int:
        shown = self._foresight.shows_up_to
        return self._revision if shown is None else shown

    def _settings_of(self, wish: Wish) -> StreamSettings:
        hint = next((e.scheduler_hint for e in self._extensions if e.scheduler_hint), "")
        values, manual = cast(Mapping[str, Value], wish), cast(ManualSteps, wish[_MANUAL])
        return stream_settings(values, manual, self.model.schedule, self.model.sampler, hint)

    def _is_ready_for(self, settings: StreamSettings) -> bool:
        """Before anything streams, nobody would see a stall."""
        return not self._streaming or self.painter.is_ready_for(settings)

    def _capabilities(self) -> frozenset[str]:
        groups = {row.group for row in TABLE if row.effect != "bridge"}
        from_extensions = {"controlnet", "lora", "style", "mask", "hooks"}
        have = {
            row.group
            for row in TABLE
            for extension in self._extensions
            if extension.parameters and row.name.startswith(extension.parameters)
        }
        return frozenset(groups - from_extensions | have)

    # --- what extensions are given ---

    def _context(self, painter: Painter) -> ExtensionContext:
        return ExtensionContext(
            model=self.model,
            beside=self._load_beside,
            weights_changed=painter.weights_changed,
            prompts_changed=painter.prompts_changed,
            report=lambda error: self._trouble(error),
            encode=painter.encode,
            accelerate=painter.acceleration.wrap,
            foresees=painter.acceleration.foresees,
            options=self.config.options,
            progress=self._under_way.tell,
        )

    def _load_beside(self, work: Callable[[], Any]) -> Future[Any]:
        assert self._beside is not None
        return self._beside.submit(work)
