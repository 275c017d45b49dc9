"""One frame from pixels to pixels: decide (skip, drain, bypass), encode, step the stream, decode."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdbridge.clock import Clock
from sdbridge.engine.accelerate import Acceleration, build_acceleration, choose_acceleration
from sdbridge.engine.accelerate.attention import choose_attention
from sdbridge.engine.accelerate.courtesy import queueing_a_frame
from sdbridge.engine.image.conditions import added_conditions, guidance_embedding
from sdbridge.engine.image.feature_bank import FeatureBank
from sdbridge.engine.image.feedback import feed_back
from sdbridge.engine.image.foresight import CallShape, TextGate
from sdbridge.engine.image.guidance import Guidance
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.outgoing import Outgoing
from sdbridge.engine.image.painting import Painting, as_generated, same_again
from sdbridge.engine.image.pictures import Roles, Staging
from sdbridge.engine.image.practice import practise
from sdbridge.engine.image.prompt import Conditioning, PromptCache, PromptMixer
from sdbridge.engine.image.rehearsal import Rehearsal
from sdbridge.engine.image.scratch import Scratch
from sdbridge.engine.image.seams import StreamExtension, UnetCall
from sdbridge.engine.image.seed import NoiseSource
from sdbridge.engine.image.settings import StreamSettings
from sdbridge.engine.image.similarity import SimilarityFilter
from sdbridge.engine.image.stream import StreamBatch
from sdbridge.engine.image.text import TextEncoder
from sdbridge.engine.image.travellers import Entering, FrameTag, Leaving
from sdbridge.engine.interface import ResetKind
from sdbridge.frame import Chunk, Frame, Role

Entry = Mapping[Role, Frame]


class Painter:
    """Holds the stream and everything around it. ``settle`` takes new settings, ``paint`` runs a frame."""

    def __init__(
        self,
        model: LoadedModel,
        acceleration: str,
        clock: Clock,
        *,
        wait_for_prompts: bool = False,
        attention: str = "auto",
    ) -> None:
        self.model = model
        name, why = choose_acceleration(acceleration, model.device)
        attend, why_attention = choose_attention(attention, model.device)
        self.why_acceleration = "; ".join(filter(None, (why, why_attention)))
        self.acceleration: Acceleration = build_acceleration(name, model, attend)
        self.extensions: tuple[StreamExtension, ...] = ()
        self.settings: StreamSettings | None = None
        self.skipped = 0
        self._clock = clock
        self._wait = wait_for_prompts
        self._staging = Staging(model.device)
        self._scratch = Scratch()
        self.outgoing = Outgoing(model.device)
        self._stream = StreamBatch(model, staging=self._staging)
        self._noise = NoiseSource()
        self._similarity = SimilarityFilter()
        self._bank = FeatureBank(model.unet, self.acceleration.wrap, attend)
        encoder = TextEncoder(model.text_encoders, model.tokenizers, model.device, model.dtype)
        self.prompts = PromptCache(encoder.encode, model.device)
        self._mixer = PromptMixer(self.prompts)
        self._texts = TextGate(clock)
        self._changed = True
        self._waiting: deque[Entry] = deque()
        self._nothing = torch.zeros(0)  # the clean latent of no input
        self._last_latent: Tensor | None = None
        self._last: Painting | None = None
        self._last_id = -1
        self._rehearsal: Rehearsal | None = None  # made when it is first needed
        self._ready_for: tuple[object, ...] = ()
        self._size = (0, 0, 0)
        self._noise_key: tuple[int, ...] = ()
        self._parts: dict[str, float] = {}

    # --- between frames ---

    def settle(self, settings: StreamSettings) -> None:
        """Take new settings. Buffers are made again only where a shape or a length changes."""
        before, self.settings = self.settings, settings
        model, per = self.model, self.model.pixels_per_latent
        shape = (model.latent_channels, settings.height // per, settings.width // per)
        if before is not None and "bypass" in (before.mode, settings.mode) and before.mode != settings.mode:
            self._forget_frames()
        self._stream.prepare(settings.plan, settings.frames, shape)
        size = (settings.width, settings.height, settings.frames)
        if size != self._size:
            self._size = size
            self._forget_frames()
            self.acceleration.prepare_pictures(settings.frames, settings.height, settings.width)
            for extension in self.extensions:
                extension.resized(*size)
        self._mixer.set(settings.prompts)
        self._bank.set(settings.bank)

    def is_ready_for(self, settings: StreamSettings, conditioning: Conditioning | None = None) -> bool:
        """Whether frames would run at full speed with these settings; else that is begun beside them."""
        known = conditioning or self._texts.shown
        if known is None or not self.acceleration.foresees:
            return True
        if self._rehearsal is None:
            self._rehearsal = Rehearsal(self.model, self.acceleration, self._bank)
        return self._rehearsal.ready(CallShape.of(settings), known, self.extensions)

    def picture_changed(self, layers: bool = True) -> None:
        """A parameter moved: the next frame is processed even if the input stands still.

        ``layers``: an extension may have changed what the UNet's layers do.
        """
        self._changed = True
        if layers:
            self._ready_for = ()

    @property
    def restless(self) -> bool:
        """True while the next picture of the same input may differ from the last one."""
        walks = self.settings is not None and self.settings.seeds.mode != "fixed"
        return self._changed or self._mixer.moving or self._texts.waiting or walks

    def weights_changed(self) -> None:
        """The model's tensors were written by an extension."""
        self.acceleration.weights_changed()
        self._changed = True

    def prompts_changed(self) -> None:
        """A text encoder's tensors were written by an extension."""
        self._mixer.texts_changed()
        self._changed = True

    def reset(self, how: ResetKind) -> None:
        """Forget the frames inside; recache: and latents and features; hard: and start chance anew."""
        self._forget_frames()
        if how != "soft":
            self._bank.forget()
        if how == "hard":
            self._noise.reset()
            self._similarity.reset()
            self._last = None

    def close(self) -> None:
        self.prompts.close()
        self._bank.close()
        self.acceleration.close()
        self.extensions = ()  # they hold on to us as we do to them
        self._last = self._last_latent = None

    # --- frames ---

    def paint(self, chunk: Chunk | None, settings: StreamSettings, revision: int) -> Chunk | None:
        """``begin``, finished: the oldest chunk, or None while the pipe fills."""
        painting = self.begin(chunk, settings, revision)
        return None if painting is None else painting.finish()

    @torch.inference_mode()
    def begin(self, chunk: Chunk | None, settings: StreamSettings, revision: int) -> Painting | None:
        """Take a chunk (None: no input) and begin the oldest one's picture; None while the pipe fills.

        On a GPU everything is queued and nothing waited for: the painting's ``finish`` does that.

        img2img without an input drains the pipe; txt2img goes on painting; bypass gives the input back.
        """
        with queueing_a_frame():
            return self._begin(chunk, settings, revision)

    def _begin(self, chunk: Chunk | None, settings: StreamSettings, revision: int) -> Painting | None:
        if settings.mode == "bypass":
            self._changed = False
            return None if chunk is None else self._give(as_generated(chunk, revision))
        entries = self._gather(chunk, settings)
        if entries is None and chunk is not None:
            return None  # the frame batch is not complete
        if entries is None and settings.mode == "img2img":
            return self._drain(settings, revision)
        moving = self.restless or settings.feedback > 0
        if settings.mode == "img2img" and entries is not None:
            newest = entries[-1]["main"]
            if moving:
                self._similarity.forget()
            others = [frame.pixels for role, frame in sorted(entries[-1].items()) if role != "main"]
            if settings.similarity.enabled:
                others += self._alphas(entries[-1])
            if self._similarity.skip(newest.pixels, settings.similarity, others):
                self.skipped += 1
                return self._skip(entries, settings, revision)
        self._changed = False
        return self._process(entries, settings, revision)

    def _alphas(self, entry: Entry) -> list[np.ndarray]:
        """The alpha that somebody reads as pictures of their own, which are compared by their colours."""
        roles = {extension.reads_alpha_of for extension in self.extensions}
        return [np.repeat(entry[role].pixels[..., 3:], 4, -1) for role in roles if role and role in entry]

    @torch.inference_mode()
    def flush(self, settings: StreamSettings, revision: int) -> tuple[Chunk, ...]:
        """Everything still inside, oldest first."""
        chunks: list[Chunk] = []
        while settings.mode != "bypass" and not self._stream.empty:
            made = self._drain(settings, revision)
            if made is not None:
                chunks.append(made.finish())
        return tuple(chunks)

    @torch.inference_mode()
    def warm_up(self, settings: StreamSettings) -> None:
        """Run a grey picture through every part, then forget it."""
        grey = np.full((settings.height, settings.width, 4), 127, dtype=np.uint8)
        entry: Entry = {"main": Frame(grey, 0, 0)}
        for _ in range(settings.plan.count + 1):  # so that txt2img, which fills its pipe, decodes too
            self._process([entry] * settings.frames, settings, 0)
        if self.model.device.type == "cuda":  # elsewhere an operation's first use costs nothing
            rows = settings.plan.count * settings.frames
            practise(self.model, self.extensions, settings.width, settings.height, rows)
        self.reset("hard")
        self._last_id = -1
        for extension in self.extensions:
            extension.reset("hard")
        self._changed = True

    def encode(self, image: Tensor) -> Tensor:
        """``[F, 3, H, W]`` in 0..1 -> clean latent in the stream's precision."""
        return self.acceleration.run_encode(image * 2 - 1).to(self._stream.precision, copy=True)

    def parts_ms(self) -> dict[str, float]:
        """What encode, denoise and decode took, smoothed. On a GPU: the time to queue them."""
        return dict(self._parts)

    # --- one frame ---

    def _process(
        self, entries: Sequence[Entry] | None, settings: StreamSettings, revision: int
    ) -> Painting | None:
        now_ns = self._clock.now_ns()
        room = self.acceleration.room_for_pixels
        roles = Roles(entries or (), self._staging, settings.width, settings.height, room)
        entering = self._entering(entries, roles, settings, now_ns)
        # A GPU encodes while the host draws noise and mixes prompts.
        self._refresh_noise(settings, now_ns)
        conditioning = self._conditioning(settings, now_ns)
        leaving = self._step(entering, settings, conditioning)
        painting = None if leaving is None else self._decode(leaving, revision)
        self._bank.end_frame()  # queued behind the picture, which need not wait for it
        return painting

    def _entering(
        self, entries: Sequence[Entry] | None, roles: Roles, settings: StreamSettings, now_ns: int
    ) -> Entering:
        began = time.perf_counter()
        stream = self._stream
        if settings.mode == "img2img":
            source = self._encode_input(roles, stays=settings.feedback > 0)
            latent = feed_back(source, self._last_latent, settings.feedback, self._scratch)
        else:
            shape = (settings.frames, self.model.latent_channels)
            size = (
                settings.height // self.model.pixels_per_latent,
                settings.width // self.model.pixels_per_latent,
            )
            source = latent = self._nothing
            if source.shape != (*shape, *size):
                source = torch.zeros(*shape, *size, device=self.model.device, dtype=stream.precision)
                self._nothing = latent = source
        luggage = [extension.enter(roles, source) for extension in self.extensions]
        names = self._names(entries, settings, now_ns)
        tags = [
            FrameTag(frame_id, received, tuple([own[index] for own in luggage]))
            for index, (frame_id, received) in enumerate(names)
        ]
        self._took("encode", began)
        return Entering(latent, source, tuple(tags), fills=settings.mode == "img2img")

    def _encode_input(self, roles: Roles, stays: bool) -> Tensor:
        """The main pictures' clean latents: straight from pixels where no extension wants to see those.

        Unless it ``stays`` it may be the acceleration's own tensor, in its dtype, until the next frame's.
        """
        editors = [extension for extension in self.extensions if extension.edits_input]
        rgba = None if editors else roles.rgba("main")
        if rgba is not None:
            latent = self.acceleration.run_encode_rgba(rgba)
            precision = self._stream.precision
            if not stays:
                return latent
            return self._scratch.room("source", latent.shape, precision, latent.device).copy_(latent)
        image = roles["main"][:, :3]
        for extension in editors:
            image = extension.before_encode(image, roles)
        return self.encode(image)

    def _names(
        self, entries: Sequence[Entry] | None, settings: StreamSettings, now_ns: int
    ) -> list[tuple[int, int]]:
        """Id and time of the entering frames; painted from the prompt alone, they count up by themselves."""
        if settings.mode == "img2img" and entries is not None:
            return [(entry["main"].frame_id, entry["main"].received_at_ns) for entry in entries]
        self._last_id += settings.frames
        first = self._last_id - settings.frames + 1
        return [(first + index, now_ns) for index in range(settings.frames)]

    def _step(
        self, entering: Entering | None, settings: StreamSettings, conditioning: Conditioning
    ) -> Leaving | None:
        began = time.perf_counter()
        model = self.model
        embedding = guidance_embedding(model, settings.guidance.scale)
        self.outgoing.await_room()
        leaving = self._stream.run(
            entering,
            # a model that takes the scale as an input has guidance inside and must not get it twice
            settings.guidance if embedding is None else Guidance("none"),
            conditioning,
            self._denoise,
            self.extensions,
            lambda pooled, rows: added_conditions(model, pooled, rows, settings.width, settings.height),
            embedding,
            self.acceleration.room_for_sample,
        )
        self._took("denoise", began)
        return leaving

    def _denoise(self, call: UnetCall) -> Tensor:
        if self._bank.enabled:
            call = replace(call, bank=self._bank.begin_frame(call))
        signature = (
            call.sample.shape,
            call.encoder_hidden_states.shape,
            call.down_residuals is not None,
            call.intrablock_residuals is not None,
            tuple(call.added_cond),
            None if call.bank is None else call.bank.key,
        )
        if signature != self._ready_for:
            self.acceleration.prepare_denoise(call)
            self._ready_for = signature
        return self.acceleration.run_denoise(call)

    def _conditioning(self, settings: StreamSettings, now_ns: int) -> Conditioning:
        """What the mixer says; a text of another length than the one before only once that is captured."""
        mixed = self._mixer.at_frame_edge(now_ns * 1e-9, wait=self._wait)
        return self._texts.choose(mixed, lambda: self.is_ready_for(settings, mixed))

    def _decode(self, leaving: Leaving, revision: int) -> Painting:
        began = time.perf_counter()
        self._last_latent = leaving.latent
        painting = self.outgoing.paint(leaving, self.acceleration, self.extensions, revision)
        self._took("decode", began)
        return self._give(painting)

    # --- frames that are not processed ---

    def _gather(self, chunk: Chunk | None, settings: StreamSettings) -> list[Entry] | None:
        """F entries with a main picture, or None when there are too few. The oldest surplus is dropped."""
        if chunk is None:
            return None
        if settings.mode == "txt2img":
            newest = chunk.frames[-1]
            return [newest] * settings.frames
        self._waiting.extend(entry for entry in chunk.frames if "main" in entry)
        while len(self._waiting) > 2 * settings.frames - 1:
            self._waiting.popleft()
        if len(self._waiting) < settings.frames:
            return None
        return [self._waiting.popleft() for _ in range(settings.frames)]

    def _skip(self, entries: Sequence[Entry], settings: StreamSettings, revision: int) -> Painting | None:
        """The input stands still: first bring out what is inside, then show the last picture again."""
        if not self._stream.empty:
            return self._drain(settings, revision)
        self._stream.clear()  # what left it must not come again, older than what is repeated here
        return None if self._last is None else self._give(same_again(self._last, entries, revision))

    def _drain(self, settings: StreamSettings, revision: int) -> Painting | None:
        """One step without a new frame; None when nothing is inside any more."""
        if self._stream.empty:
            return None
        now_ns = self._clock.now_ns()
        self._refresh_noise(settings, now_ns)
        conditioning = self._conditioning(settings, now_ns)
        leaving = self._step(None, settings, conditioning)
        painting = None if leaving is None else self._decode(leaving, revision)
        self._bank.end_frame()  # queued behind the picture, which need not wait for it
        return painting

    def _give(self, painting: Painting) -> Painting:
        self._last = painting
        self._last_id = max(self._last_id, painting.last_id)
        return painting

    def _forget_frames(self) -> None:
        self._stream.clear()
        self._waiting.clear()
        self._similarity.forget()
        self._last_latent = None
        self._changed = True

    def _refresh_noise(self, settings: StreamSettings, now_ns: int) -> None:
        per = self.model.pixels_per_latent
        shape = (
            settings.plan.count,
            self.model.latent_channels,
            settings.height // per,
            settings.width // per,
        )
        noise, changed = self._noise.noise(settings.seeds, shape, now_ns * 1e-9)
        key = (*shape, settings.frames)
        if changed or key != self._noise_key:
            self._stream.set_noise(noise)
            self._noise_key = key

    def _took(self, part: str, began: float) -> None:
        took = (time.perf_counter() - began) * 1e3
        self._parts[part] = took if part not in self._parts else 0.9 * self._parts[part] + 0.1 * took
