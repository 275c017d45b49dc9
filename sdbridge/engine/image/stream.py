"""The stream batch: n denoising steps of n different frames in one UNet call (section 2.2).

Row ``r = step * F + f`` is frame ``f`` of the chunk that entered ``step`` ticks ago. What is kept between
ticks is not the noised latent but every row's clean estimate x0 and predicted noise e, plus the source
latent of each frame. So a change of levels, of their number, of seed or of guidance meets nothing stale:

* levels change: the next tick noises x0 to the new level;
* more steps: the oldest estimates are noised again for the new rows; fewer: the oldest frames leave out;
* guidance: the closed form needs the source latent only.

All of it lies in buffers that are made when a shape changes and written in every frame (``scratch.py``).

An empty row is filled from the newest frame (a_i z + b_i eps_i), at the start and after standing still,
so no junk is ever decoded; outputs carry the tag of the frame they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.guidance import (
    Guidance,
    estimate,
    push,
    to_noise,
    virtual_clean,
    virtual_noise,
)
from sdbridge.engine.image.levels import Levels, levels_of
from sdbridge.engine.image.pictures import Staging
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.schedule import StepPlan
from sdbridge.engine.image.scratch import Scratch
from sdbridge.engine.image.seams import Rows, StreamExtension, UnetCall
from sdbridge.engine.image.travellers import Entering, FrameTag, Leaving


@dataclass(frozen=True)
class _RowsOfText:
    """What the rows of a call read, until another conditioning comes (the same object: the same text)."""

    conditioning: Conditioning
    count: int
    extra: int
    tokens: Tensor
    pooled: Tensor | None

    def fits(self, conditioning: Conditioning, count: int, extra: int) -> bool:
        return self.conditioning is conditioning and (self.count, self.extra) == (count, extra)


class StreamBatch:
    """Computes; decides nothing. One ``run`` is one UNet call."""

    def __init__(
        self, model: Any, precision: torch.dtype | None = None, staging: Staging | None = None
    ) -> None:
        """``precision`` of the sampler's own arithmetic: float32 (float64 for a float64 model)."""
        self._staging = staging or Staging(model.device)
        self._model = model
        self._device = model.device
        self.precision = precision or (torch.float64 if model.dtype == torch.float64 else torch.float32)
        self._plan: StepPlan | None = None
        self._replays = True  # whether any row is noised with its own predicted noise
        self._frames = 1
        nothing = torch.zeros(0)
        self._levels: Levels | None = None
        self._timesteps: Tensor = nothing  # [2 R]
        self._noise: Tensor = nothing  # this and all below [R, 4, h, w]
        self._clean: Tensor = nothing  # what each row was noised from
        self._predicted: Tensor = nothing
        self._source: Tensor = nothing
        self._virtual: Tensor = nothing  # as source; in mode initialize what the negative prompt leads to
        self._next_clean: Tensor = nothing  # estimates of the last run, for the rows after theirs
        #: Noises of the last run; most samplers never ask, so they are made when somebody does.
        self._predict: Callable[[], Tensor] = lambda: nothing
        self._shape = (0, 0, 0)
        self._tags: list[tuple[FrameTag, ...] | None] = []
        self._scratch = Scratch()
        self._text: _RowsOfText | None = None
        self._scale_rows: tuple[Tensor, Tensor] | None = None  # the guidance's embedding, and as rows
        self.prepared = 0  # times that shapes or lengths changed

    @property
    def steps(self) -> int:
        return len(self._tags)

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def empty(self) -> bool:
        """True when no frame is inside that has not left yet."""
        return all(tags is None for tags in self._tags[:-1])

    def clear(self) -> None:
        """Forget every frame; the next one fills all rows."""
        self._tags = [None] * len(self._tags)

    def prepare(self, plan: StepPlan, frames: int, shape: tuple[int, int, int]) -> None:
        """Follow a new plan, frame batch or latent shape ``(4, h, w)``. Cheap unless a length changes."""
        if frames != self._frames or shape != self._shape:
            self._frames, self._shape = frames, shape
            self._allocate(plan.count)
        elif plan.count != self.steps:
            self._change_length(plan.count)
        if self._levels is None or (plan is not self._plan and plan != self._plan):
            self._plan = plan
            self._replays = any(plan.replay)
            self._levels = levels_of(plan, self._model.prediction, frames, self.precision, self._device)
            once = torch.tensor(plan.timesteps, device=self._device).repeat_interleave(frames)
            self._timesteps = once.repeat(2)  # guidance rows are the first rows again

    def set_noise(self, noise: Tensor) -> None:
        """Noise ``[n, 4, h, w]`` for the steps; all F frames of a step share it, as they would one by one."""
        frames, (steps, *shape) = self._frames, noise.shape
        if self._noise.shape != (steps * frames, *shape):
            self._noise = torch.empty(steps * frames, *shape, device=self._device, dtype=self.precision)
        if frames == 1:
            self._staging.numbers_to_device(noise, self._noise)
        else:
            sent = self._scratch.like("noise sent", self._noise, noise.shape)
            self._staging.numbers_to_device(noise, sent)
            self._noise.unflatten(0, (steps, frames)).copy_(sent.unsqueeze(1))

    def run(
        self,
        entering: Entering | None,
        guidance: Guidance,
        conditioning: Conditioning,
        denoise: Callable[[UnetCall], Tensor],
        extensions: Sequence[StreamExtension] = (),
        added_cond: Callable[[Tensor | None, int], dict[str, Tensor]] | None = None,
        timestep_cond: Tensor | None = None,
        room_for_sample: Callable[[tuple[int, ...], torch.dtype], Tensor | None] = lambda shape, dtype: None,
    ) -> Leaving | None:
        """Advance every frame by one step; None when the oldest row was empty.

        ``entering`` None drains: row 0 stays empty and its result is thrown away.
        """
        plan, levels = self._plan, self._levels
        assert plan is not None and levels is not None
        self._shift_in(entering, guidance.active)
        latents = torch.mul(levels.fresh, self._noise, out=self._scratch.like("latents", self._noise))
        latents.addcmul_(levels.keep, self._clean)
        if self._replays:
            latents.addcmul_(levels.replay, self._predicted)
        frames = self._frames
        extra = guidance.extra_rows(self.steps, frames)
        sample = self._sample(latents, extra, room_for_sample)
        call = self._call(sample, extra, conditioning, added_cond, timestep_cond)
        steering = self._steering(extensions, levels, latents, extra)
        for extension, rows in steering:
            call = extension.unet_inputs(rows, call)
        out = self._scratch.operand("out", denoise(call), self.precision)
        if guidance.active:
            clean, noise = self._guided(out, latents, levels, guidance, extra)
            if plan.sampler == "lcm":
                clean.mul_(levels.c_out).addcmul_(levels.c_skip, latents)
        else:
            into = self._scratch.like("clean", latents, turns=2)
            clean = estimate(out, latents, levels.kept_of_latent, levels.kept_of_out, into)
            noise = self._noise_of(out, latents, levels)
        kept = clean
        for extension, rows in steering:
            kept = extension.after_x0(rows, kept)
        if kept is not clean:  # the noise that leads from the changed estimate back to this latent
            noise = partial(virtual_noise, latents, kept, levels.alpha, levels.sigma, self._scratch)
        self._next_clean, self._predict = kept, noise
        tags = self._tags[-1]
        if tags is None:
            return None
        share, rest = plan.finish
        last = kept if self.steps == 1 else kept[-frames:]
        if rest != 0.0:
            ended = torch.mul(last, share, out=self._scratch.like("leaving", last, turns=2))
            last = ended.add_(self._next_predicted()[-frames:], alpha=rest)
        return Leaving(last, tags)

    def _steering(
        self, extensions: Sequence[StreamExtension], levels: Levels, latents: Tensor, extra: int
    ) -> list[tuple[StreamExtension, Rows]]:
        """The extensions that have a part in this step, each with the rows as it knows them."""
        found = [(index, extension) for index, extension in enumerate(extensions) if extension.steers]
        if not found:
            return []
        count = latents.shape[0]
        rows = Rows(
            latents=latents,
            timesteps=self._timesteps[:count],
            timesteps_host=levels.timesteps,
            fraction=levels.fraction,
            luggage=(),
            source=self._source,
            mirrors=(*range(count), *range(extra)),
            guidance_rows=extra,
            alpha=levels.alpha,
            sigma=levels.sigma,
            frames=self._frames,
        )
        return [(extension, replace(rows, luggage=self._luggage(index))) for index, extension in found]

    def _noise_of(self, out: Tensor, latents: Tensor, levels: Levels, name: str = "") -> Callable[[], Tensor]:
        prediction, scratch = self._model.prediction, self._scratch
        return partial(to_noise, out, latents, levels.alpha, levels.sigma, prediction, scratch, name)

    def _guided(
        self, out: Tensor, latents: Tensor, levels: Levels, guidance: Guidance, extra: int
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Clean estimate of the conditioned rows, pushed, and how to come by their noise."""
        count, scratch, scale = latents.shape[0], self._scratch, guidance.scale
        alpha, sigma, of_latent, of_out = levels.alpha, levels.sigma, levels.of_latent, levels.of_out
        mine = out[:count] if extra else out
        clean = estimate(mine, latents, of_latent, of_out, scratch.like("clean", latents, turns=2))
        conditioned = self._noise_of(mine, latents, levels)
        if guidance.mode == "full":
            other = estimate(out[count:], latents, of_latent, of_out, scratch.like("clean without", latents))
            unconditioned = self._noise_of(out[count:], latents, levels, " without")
        else:
            if guidance.mode == "initialize":
                room = scratch.like("clean virtual", latents, (extra, *latents.shape[1:]))
                own = latents[:extra], of_latent[:extra], of_out[:extra]
                virtual = estimate(out[count:], *own, room)
                self._virtual = self._in_turn("virtual", virtual, self._virtual[extra:])
            source, delta = self._virtual, guidance.delta
            other = virtual_clean(latents, source, alpha, delta, scratch)

            def unconditioned() -> Tensor:
                return virtual_noise(latents, source, alpha, sigma, scratch).mul_(delta)

        def noise() -> Tensor:
            return push(scale, conditioned(), unconditioned(), scratch.like("guided", latents))

        return push(scale, clean, other, clean), noise

    @torch.inference_mode()
    def _next_predicted(self) -> Tensor:
        """Noises of the last run ``[R, 4, h, w]``; what they are made of stands until the next."""
        made = self._predict()
        self._predict = lambda: made
        return made

    def _shift_in(self, entering: Entering | None, guided: bool) -> None:
        """Move every frame one step on and put the entering ones, or nothing, into row 0.

        One row alone is read where it lies, except by guidance, which wants the stream's precision. Several
        are put together, which on a GPU is one call for tensors of one dtype.
        """
        frames, precision = self._frames, self.precision
        taken = self._scratch.cast if guided or self.steps > 1 else self._scratch.operand
        first = self._clean[:frames] if entering is None else taken("first", entering.latent, precision)
        if entering is None:
            source = self._source[:frames]
        elif entering.source is entering.latent:
            source = first
        else:
            source = taken("source", entering.source, precision)
        if self.steps == 1:
            self._clean = self._virtual = first
            self._source = source
        else:
            self._clean = self._in_turn("rows", first, self._next_clean[:-frames])
            if self._replays:
                noises = self._next_predicted()[:-frames]
                self._predicted = self._in_turn("predicted", self._noise[:frames], noises)
            self._source = self._in_turn("sources", source, self._source[:-frames])
            self._virtual = self._in_turn("virtual", first, self._virtual[:-frames])
        self._tags = [None if entering is None else entering.tags, *self._tags[:-1]]
        if entering is None or not entering.fills or None not in self._tags:
            return
        # all frames of a filled row are the first that enters, so that ids never go back
        filling, origin = (tensor[:1].expand_as(tensor) for tensor in (first, source))
        for step in range(1, self.steps):
            if self._tags[step] is None:
                here = slice(step * frames, (step + 1) * frames)
                self._clean[here], self._source[here], self._virtual[here] = filling, origin, filling
                if self._replays:
                    self._predicted[here] = self._noise[:frames]
                self._tags[step] = (entering.tags[0],) * frames

    def _sample(
        self, latents: Tensor, extra: int, room: Callable[[tuple[int, ...], torch.dtype], Tensor | None]
    ) -> Tensor:
        """What the model is given: the rows in its dtype, and the first ``extra`` of them once more."""
        count, dtype = latents.shape[0], self._model.dtype
        if not extra and dtype == latents.dtype:
            return latents
        shape = (count + extra, *latents.shape[1:])
        sample = room(shape, dtype)
        if sample is None:
            sample = self._scratch.room("sample", shape, dtype, latents.device)
        (sample[:count] if extra else sample).copy_(latents)
        if extra:
            sample[count:].copy_(latents[:extra])
        return sample

    def _call(
        self,
        sample: Tensor,
        extra: int,
        conditioning: Conditioning,
        added_cond: Callable[[Tensor | None, int], dict[str, Tensor]] | None,
        timestep_cond: Tensor | None,
    ) -> UnetCall:
        assert self._levels is not None
        host, timesteps, count = self._levels.timesteps, self._timesteps, sample.shape[0] - extra
        text = self._text
        if text is None or not text.fits(conditioning, count, extra):
            text = self._text = self._text_of_rows(conditioning, count, extra)
        return UnetCall(
            sample=sample,
            timesteps=timesteps[: count + extra],
            encoder_hidden_states=text.tokens,
            added_cond={} if added_cond is None else added_cond(text.pooled, count + extra),
            timestep_cond=self._guided_rows(timestep_cond, count + extra),
            timesteps_host=host + host[:extra],
            text_of=text,
        )

    def _guided_rows(self, embedding: Tensor | None, rows: int) -> Tensor | None:
        """The same for every row: the same tensor as long as it is the same embedding."""
        if embedding is None:
            return None
        known = self._scale_rows
        if known is None or known[0] is not embedding or known[1].shape[0] != rows:
            known = self._scale_rows = (embedding, embedding.expand(rows, -1))
        return known[1]

    def _text_of_rows(self, conditioning: Conditioning, count: int, extra: int) -> _RowsOfText:
        """The positive text for the rows, the negative one for the extra rows."""
        positive, negative = conditioning.positive, conditioning.negative
        tokens = positive.tokens.expand(count, -1, -1)
        pooled = None if positive.pooled is None else positive.pooled.expand(count, -1)
        if extra:
            tokens = self._beside("tokens", tokens, negative.tokens.expand(extra, -1, -1))
            if pooled is not None and negative.pooled is not None:
                pooled = self._beside("pooled", pooled, negative.pooled.expand(extra, -1))
        return _RowsOfText(conditioning, count, extra, tokens, pooled)

    def _beside(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Rows of both. Each time another tensor, though of the same buffer: ``Compiled`` keeps what it made
        of a tensor that it knows again, and must not know one again that was written over.
        """
        rows = self._scratch.like(name, a, (a.shape[0] + b.shape[0], *a.shape[1:]))
        return torch.cat([a, b], out=rows)[:]

    def _in_turn(self, name: str, first: Tensor, following: Tensor) -> Tensor:
        """Both, one after the other, where neither of them lies: the buffers of ``name`` take turns."""
        return torch.cat([first, following], out=self._scratch.like(name, self._noise, turns=2))

    def _luggage(self, extension: int) -> tuple[Any, ...]:
        found: list[Any] = []
        for tags in self._tags:
            found += [None] * self._frames if tags is None else [tag.luggage[extension] for tag in tags]
        return tuple(found)

    def _allocate(self, steps: int) -> None:
        """New shapes: nothing that was inside fits any more."""
        self.prepared += 1
        count = steps * self._frames
        zeros = torch.zeros(count, *self._shape, device=self._device, dtype=self.precision)
        # Only the noise is ever written where it lies; the others are put into buffers of their own.
        self._clean = self._predicted = self._source = self._virtual = self._next_clean = zeros
        self._predict = lambda: zeros
        self._noise = zeros.clone()
        self._levels = None
        self._tags = [None] * steps

    def _change_length(self, steps: int) -> None:
        """More rows get the oldest estimates again; with fewer the oldest frames leave without a picture."""
        self.prepared += 1
        old, frames = self.steps, self._frames
        # after the next shift row i holds what row i - 1 holds now, so the last row's values are spare:
        # there and beyond stands its last frame, the newest that has left
        rows = torch.tensor(
            [
                step * frames + frame if step < old - 1 else old * frames - 1
                for step in range(steps)
                for frame in range(frames)
            ],
            device=self._device,
        )
        noises = self._next_predicted()[rows]
        self._predict = lambda: noises
        self._levels = None
        for name in ("_clean", "_source", "_virtual", "_next_clean"):
            setattr(self, name, getattr(self, name)[rows])
        self._noise = self._noise[rows]
        spare = self._tags[-1]
        again = None if spare is None else (spare[-1],) * frames
        self._tags = [self._tags[step] if step < old - 1 else again for step in range(steps)]
