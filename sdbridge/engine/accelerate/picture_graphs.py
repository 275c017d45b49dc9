"""The VAE's calls from graphs: pictures to latents and back, for each size in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdbridge.engine.accelerate import precompile
from sdbridge.engine.accelerate.cuda_graph import cut_anywhere
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.graphs import Graphs
from sdbridge.engine.accelerate.replay import Key, TensorCall

if TYPE_CHECKING:
    from sdbridge.engine.image.load import LoadedModel

_KEPT_SIZES = 3
#: What most frames take comes first.
_CALLS = ("encode_rgba", "decode_rgba", "encode", "decode")
_Size = tuple[int, int, int]  # frames, height, width


class PictureGraphs:
    """The four ways through the VAE, on our own kernels where they know it (``use_own_kernels``)."""

    def __init__(self, model: LoadedModel, eager: Eager, graphs: Graphs) -> None:
        self._model = model
        self._eager = eager
        self._graphs = graphs
        self._size: _Size = (0, 0, 0)
        self._size_ahead: _Size = (0, 0, 0)
        self._tiny: dict[str, TensorCall] | None = None

    def use_own_kernels(self) -> None:
        """For the tiny VAE; another one stays with PyTorch's operations, which is said."""
        from sdbridge.engine.accelerate.kernels import tiny_vae

        model = self._model
        able, why = tiny_vae.supports(model.vae)
        if not able or model.vae_dtype != torch.float16:
            self._graphs.say(f"the VAE runs on PyTorch's operations: {why if not able else model.vae_dtype}")
            return
        encoder = tiny_vae.TinyEncoder(model.vae, model.latent_scale, model.latent_shift)
        decoder = tiny_vae.TinyDecoder(model.vae, model.latent_scale, model.latent_shift)
        self._tiny = {
            "encode": encoder,
            "encode_rgba": encoder,
            "decode": decoder,
            "decode_rgba": lambda latent: decoder(latent, rgba=True),
        }

    def prepare(self, frames: int, height: int, width: int) -> None:
        self._size = (frames, height, width)
        self._provide(self._size, self._graphs.streams("encode"))

    def foresee(self, frames: int, height: int, width: int) -> bool:
        """Whether this size runs at full speed, or never will."""
        self._size_ahead = (frames, height, width)
        self._provide(self._size_ahead, beside=True)
        return all(self._graphs.ready((kind, *self._size_ahead)) for kind in _CALLS)

    def is_wanted(self, key: Key) -> bool:
        """Whether frames are of that size, or are to be."""
        return key[1:] in (self._size, self._size_ahead)

    def _provide(self, size: _Size, beside: bool) -> None:
        there = [self._graphs.is_there((kind, *size)) for kind in _CALLS]
        if all(there):
            return
        model, per = self._model, self._model.pixels_per_latent
        frames, height, width = size
        device = model.device
        image = torch.zeros(frames, 3, height, width, device=device)
        rgba = torch.zeros(frames, height, width, 4, dtype=torch.uint8, device=device)
        latent = torch.zeros(frames, model.latent_channels, height // per, width // per, device=device)
        given = {"encode": image, "encode_rgba": rgba, "decode": latent, "decode_rgba": latent}
        eager = self._eager
        plain: dict[str, TensorCall] = {
            "encode": eager.run_encode,
            "encode_rgba": eager.run_encode_rgba,
            "decode": eager.run_decode,
            "decode_rgba": eager.run_decode_rgba,
        }
        spec = precompile.pictures_spec(model.vae, model.vae_dtype, *size) if self._tiny else None
        for kind in _CALLS:
            key: Key = (kind, *size)
            if key not in self._graphs.by_key:
                faster = None if self._tiny is None else self._tiny[kind]
                self._graphs.provide(
                    key,
                    cut_anywhere(plain[kind]),
                    (given[kind],),
                    beside,
                    faster,
                    spec and {**spec, "way": kind},
                )
            self._graphs.drop_oldest(kind, _KEPT_SIZES)

    # --- frames ---

    def run_encode(self, image: Tensor) -> Tensor:
        return self._run("encode", image, self._eager.run_encode)

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        return self._run("encode_rgba", rgba, self._eager.run_encode_rgba)

    def run_decode(self, latent: Tensor) -> Tensor:
        return self._run("decode", latent, self._eager.run_decode)

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        return self._run("decode_rgba", latent, self._eager.run_decode_rgba)

    def room_for_pixels(self, *size: int) -> Tensor | None:
        """The recorded encoder's own input, as long as that is the encoder."""
        graph = self._graphs.by_key.get(("encode_rgba", *self._size)) if size == self._size else None
        given: tuple[Tensor, ...] | None = getattr(graph, "inputs", None)
        return given[0] if given else None

    def _run(self, kind: str, given: Tensor, plain: TensorCall) -> Tensor:
        graph = self._graphs.by_key.get((kind, *self._size))
        made: Tensor = plain(given) if graph is None or not graph.takes(given) else graph.run((given,))
        return made
