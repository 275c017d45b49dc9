"""Which conditioning the next frame gets: texts embedded beside the loop, blended, faded, swapped in."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from sdbridge.engine.accelerate.streams import own_stream
from sdbridge.engine.image.blend import Blend, Blender, Lengths, lengthened
from sdbridge.engine.image.scratch import Scratch
from sdbridge.engine.image.text import TextEmbedding

log = logging.getLogger(__name__)

_KEPT_TEXTS = 64


@dataclass(frozen=True)
class PromptSettings:
    """What the picture shall show: weighted texts and how they are mixed."""

    texts: tuple[tuple[str, float], ...] = ()
    negative: str = ""
    blend: Blend = "slerp"
    normalize: bool = True
    transition_s: float = 0.0
    clip_skip: int = 0


@dataclass(frozen=True)
class Conditioning:
    """Embeddings for one frame: ``[1, tokens, width]``, pooled ``[1, width]``; equal lengths.

    A blend's tensors are written again by the next frames: what is kept for longer is copied.
    """

    positive: TextEmbedding
    negative: TextEmbedding


class PromptCache:
    """Embeds texts in a thread of its own and keeps the results, by text, clip skip and model state.

    ``get`` never waits. One thread, so that an encoder never runs twice at once.
    """

    def __init__(self, encode: Callable[[str, int], TextEmbedding], device: torch.device) -> None:
        self._encode = encode
        self._device = device
        self._known: OrderedDict[tuple[str, int], TextEmbedding] = OrderedDict()
        self._under_way: dict[tuple[str, int], Future[TextEmbedding]] = {}
        self._failed: set[tuple[str, int]] = set()
        self._state = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompt")
        # One for all texts: PyTorch keeps a cuBLAS workspace for each stream that ever multiplied.
        self._stream = own_stream(device) if device.type == "cuda" else None
        self.encoded = 0  # texts embedded so far, for tests and status

    def get(self, text: str, clip_skip: int) -> TextEmbedding | None:
        """The embedding, or None while it is being made."""
        key = (text, clip_skip)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            under_way = self._under_way.get(key)
            if under_way is None:
                self._under_way[key] = self._thread.submit(self._make, key, self._state)
            elif under_way.done() and under_way.exception() is not None and key not in self._failed:
                self._failed.add(key)  # said once; the embedding before it stays
                log.error("the prompt %.60r cannot be embedded: %s", text, under_way.exception())
            return None

    def get_now(self, text: str, clip_skip: int) -> TextEmbedding:
        """The embedding, waited for. Only where no frame waits: at load and in synchronous use."""
        while True:
            found = self.get(text, clip_skip)
            if found is not None:
                return found
            with self._lock:
                future = self._under_way.get((text, clip_skip))
            if future is not None:
                future.result()

    @property
    def busy(self) -> bool:
        """True while texts are being embedded."""
        with self._lock:
            return any(not future.done() for future in self._under_way.values())

    def keep_only(self, wanted: set[tuple[str, int]]) -> None:
        """Let go of waiting texts that nobody wants any more, such as the letters of one being typed."""
        with self._lock:
            for key in [key for key in self._under_way if key not in wanted]:
                if self._under_way[key].cancel():  # the one that is being embedded is not cancelled
                    del self._under_way[key]

    def forget(self) -> None:
        """The text encoder changed: what is known is wrong from now on."""
        with self._lock:
            self._state += 1
            self._known.clear()
            self._under_way.clear()
            self._failed.clear()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make(self, key: tuple[str, int], state: int) -> TextEmbedding:
        embedding = self._encode_beside(*key)
        self.encoded += 1
        if embedding.cut:
            log.warning("the prompt is too long: its last %d tokens are left out", embedding.cut)
        with self._lock:
            if state == self._state:
                self._known[key] = embedding
                self._under_way.pop(key, None)
                while len(self._known) > _KEPT_TEXTS:
                    self._known.popitem(last=False)
        return embedding

    def _encode_beside(self, text: str, clip_skip: int) -> TextEmbedding:
        stream = self._stream
        if stream is None:
            return self._encode(text, clip_skip)
        # A LoRA may have written into the text encoder a moment ago, on the frame loop's stream.
        frames = torch.cuda.default_stream(self._device)
        stream.wait_stream(frames)
        with torch.cuda.stream(stream):
            embedding = self._encode(text, clip_skip)
        for tensor in (embedding.tokens, embedding.pooled):
            if tensor is not None:  # let go, its memory is not written while a frame still reads it
                tensor.record_stream(frames)
        stream.synchronize()  # in this thread, so that the frame loop finds a finished tensor
        return embedding


class PromptMixer:
    """Decides at each frame edge what the embeddings are. Weights are live; texts come when ready."""

    def __init__(self, cache: PromptCache) -> None:
        self._cache = cache
        self._settings = PromptSettings()
        self._ready: dict[int, TextEmbedding] = {}  # by slot: the newest text that is embedded
        self._ready_texts: dict[int, tuple[str, int]] = {}
        self._fresh: set[int] = set()  # slots whose text was embedded since the encoder changed
        self._encoder_changed = False
        self._negative: TextEmbedding | None = None
        self._empty: TextEmbedding | None = None
        self._shown: TextEmbedding | None = None
        self._from: TextEmbedding | None = None
        self._started_s = 0.0
        self._blend, self._transition = Blender(), Blender(steady=False)
        self._lengths, self._scratch = Lengths(), Scratch()
        self._result: Conditioning | None = None
        self._stale = True
        self._texts_stale = True  # a weight that moves asks for no text

    def set(self, settings: PromptSettings) -> None:
        """Take new settings; they show as soon as their texts are embedded."""
        before = self._settings
        if settings != before:
            self._settings = settings
            self._stale = True
            self._texts_stale = self._texts_stale or _wanted(settings) != _wanted(before)

    def texts_changed(self) -> None:
        """The text encoder changed: embed everything again, showing the old until then.

        A LoRA's fader may say so in every frame. While a round of texts is being embedded the next one
        waits, so that none piles up and the picture follows as fast as texts can be embedded.
        """
        self._encoder_changed = self._stale = self._texts_stale = True

    @property
    def moving(self) -> bool:
        """True while the next frame's conditioning may differ from this one's."""
        return self._stale or self._from is not None

    def at_frame_edge(self, now_s: float, *, wait: bool = False) -> Conditioning:
        """The conditioning of the next frame. The same object as before means: nothing changed.

        ``wait`` embeds missing texts on the spot (at load, or in synchronous library use).
        """
        if not self.moving and self._result is not None:
            return self._result
        first = self._result is None
        if self._encoder_changed and (wait or not self._cache.busy):
            self._encoder_changed = False
            self._cache.forget()
            self._fresh.clear()
        arrived, complete = False, True
        if first or self._texts_stale:
            arrived, complete = self._collect(wait or first)
        target = self._mix()
        if arrived and not first and self._settings.transition_s > 0 and self._shown is not None:
            self._from, self._started_s = copied(self._shown), now_s
        shown = target
        if self._from is not None:
            share = (now_s - self._started_s) / max(self._settings.transition_s, 1e-9)
            if share >= 1.0 or self._settings.transition_s <= 0:
                self._from = None
            else:
                shares = [1.0 - share, share]
                shown = self._transition.mix([self._from, target], shares, self._settings.blend)
        self._shown = shown
        self._result = self._equally_long(shown)
        self._texts_stale = self._encoder_changed or not complete
        self._stale = self._texts_stale
        return self._result

    def _collect(self, wait: bool) -> tuple[bool, bool]:
        """Take what the cache has: (did a text change, are all texts there)."""
        settings, arrived, complete = self._settings, False, True
        get = self._cache.get_now if wait else self._cache.get
        self._cache.keep_only({(text, settings.clip_skip) for text in ("", *_wanted(settings)[0])})
        if self._empty is None:
            self._empty = self._cache.get_now("", settings.clip_skip)
        self._empty = get("", settings.clip_skip) or self._empty
        for slot, (text, _) in enumerate(settings.texts):
            key = (text, settings.clip_skip)
            same = self._ready_texts.get(slot) == key
            if same and slot in self._fresh:
                continue
            embedding = get(*key)
            if embedding is None:
                complete = False
                continue
            arrived |= not same  # the same text by a changed encoder starts no transition
            self._ready[slot], self._ready_texts[slot] = embedding, key
            self._fresh.add(slot)
        for slot in [slot for slot in self._ready if slot >= len(settings.texts)]:
            arrived = True
            del self._ready[slot]
            self._ready_texts.pop(slot, None)
        negative = get(settings.negative, settings.clip_skip)
        if negative is None:
            complete = False
        else:
            self._negative = negative
        if self._negative is None:
            self._negative = self._cache.get_now(settings.negative, settings.clip_skip)
        return arrived, complete

    def _mix(self) -> TextEmbedding:
        settings = self._settings
        shares = [
            (self._ready[slot], weight)
            for slot, (text, weight) in enumerate(settings.texts)
            if slot in self._ready and weight > 0 and self._ready_texts.get(slot, (text,))[0].strip()
        ]
        if not shares:
            if self._shown is not None and any(text.strip() for text, _ in settings.texts):
                return self._shown  # all weights are 0: the last good blend stays
            return self._blank()
        return self._blend.mix(
            [embedding for embedding, _ in shares],
            [weight for _, weight in shares],
            settings.blend,
            normalize=settings.normalize,
            blank=self._blank(),
        )

    def _equally_long(self, shown: TextEmbedding) -> Conditioning:
        negative, blank = self._negative, self._blank()
        assert negative is not None
        missing = negative.tokens.shape[1] - shown.tokens.shape[1]
        if missing > 0:  # into a buffer, since a blend is another one in every frame
            tokens = shown.tokens
            room = self._scratch.like(
                "longer", tokens, (1, negative.tokens.shape[1], tokens.shape[2]), turns=2
            )
            shown = TextEmbedding(lengthened(tokens, room.shape[1], blank, room), shown.pooled, shown.cut)
        return Conditioning(shown, self._lengths.at_least(negative, shown.tokens.shape[1], blank))

    def _blank(self) -> TextEmbedding:
        assert self._empty is not None
        return self._empty


def _wanted(settings: PromptSettings) -> tuple[list[str], int]:
    """The texts that are to be embedded, slot by slot and the negative one, and how."""
    return [text for text, _ in settings.texts] + [settings.negative], settings.clip_skip


def copied(embedding: TextEmbedding) -> TextEmbedding:
    """The same in tensors of its own, for longer than a blend's stand."""
    pooled = None if embedding.pooled is None else embedding.pooled.clone()
    return TextEmbedding(embedding.tokens.clone(), pooled, embedding.cut)
