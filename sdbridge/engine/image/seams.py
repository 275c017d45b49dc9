"""Where conditioning plugs into the stream: the extension base class and the values it is handed.

The stream batch has ``n`` steps times ``F`` frames; row ``r = step * F + f`` holds frame ``f`` of the
chunk that entered ``step`` ticks ago. Tensors are on the engine's device. An extension never
decides the order of rows, never synchronises with the host in the hooks, and never raises in them:
what is wrong is found in ``apply`` and answered with a Rejection there.

Attention layers are shared property: the stream owns the processors of self-attention (``attn1``,
for the feature bank), extensions those of cross-attention (``attn2``, for IP-Adapters). Change single
modules' ``processor``, never the whole UNet's with ``set_attn_processor``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from sdbridge.engine.interface import Progress, ResetKind
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbridge.engine.image.bank_memory import BankForm

#: What came in, by role: float32 RGBA ``[F, 4, H, W]`` in 0..1, at the engine's size. ``main`` is
#: missing in txt2img without an input; the others are missing when nothing is connected.
RoleImages = Mapping[Role, "Tensor"]

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Rows:
    """The rows of one UNet call. ``n`` steps, ``F`` frames, ``R = n * F`` conditioned rows.

    The next frame's are written over these tensors: copy what must stay.

    latents           ``[R, 4, h, w]`` noised, float32 (float64 in float64 tests), as the sampler keeps them
    timesteps         ``[R]`` the model's noise index of each row
    timesteps_host    the same as ints, so that a decision needs no device synchronisation
    fraction          per row, 0.0 = pure noise .. 1.0 = finished: ``1 - (t + 1) / 1000``
    luggage           per row, what this extension's ``enter`` gave for the frame in that row (None: the
                      row is empty, its result is thrown away)
    source            ``[R, 4, h, w]`` clean latent of the input frame in that row (zeros in txt2img)
    mirrors           per row of the UNet call, the conditioned row it is a copy of: ``0 .. R-1`` followed
                      by the extra guidance rows (``initialize``: rows 0..F-1 again, ``full``: all again)
    guidance_rows     number of those extra rows, ``len(mirrors) - R``
    alpha, sigma      ``[R, 1, 1, 1]`` signal and noise amount of each row: latent = alpha x0 + sigma eps
    """

    latents: Tensor
    timesteps: Tensor
    timesteps_host: tuple[int, ...]
    fraction: tuple[float, ...]
    luggage: tuple[Any, ...]
    source: Tensor
    mirrors: tuple[int, ...]
    guidance_rows: int
    alpha: Tensor
    sigma: Tensor
    frames: int = 1

    @property
    def count(self) -> int:
        """R: conditioned rows, without the extra guidance rows."""
        return len(self.timesteps_host)


@dataclass(frozen=True)
class UnetCall:
    """What the UNet is about to be given; ``B = len(rows.mirrors)`` rows. Use ``dataclasses.replace``.

    sample                          ``[B, 4, h, w]`` in the model's dtype; inpainting UNets want 9 channels
    timesteps                       ``[B]``
    encoder_hidden_states           ``[B, tokens, width]``; guidance rows carry the negative prompt
    added_cond                      SDXL's ``text_embeds`` and ``time_ids``, IP-Adapter's ``image_embeds``
    down_residuals, mid_residual    ControlNet, ``[B, c, h', w']`` each, already scaled and summed
    intrablock_residuals            T2I-Adapter features
    cross_attention                 passed to attention processors (``cross_attention_kwargs``)
    timestep_cond                   ``[B, d]`` guidance embedding of fully distilled LCM models
    timesteps_host                  the same numbers on the host; () where they are not known there
    bank                            the feature bank in this frame's form, while self-attention has one
    text_of                         whose text it is: the same object as in the call before, and the same
                                    tensor, mean the same text. None: nobody knows, and what depends on
                                    it is made for each call. Another text in a tensor that was used
                                    before comes with another object
    """

    sample: Tensor
    timesteps: Tensor
    encoder_hidden_states: Tensor
    added_cond: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    down_residuals: tuple[Tensor, ...] | None = None
    mid_residual: Tensor | None = None
    intrablock_residuals: tuple[Tensor, ...] | None = None
    cross_attention: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    timestep_cond: Tensor | None = None
    timesteps_host: tuple[int, ...] = ()
    bank: BankForm | None = None
    text_of: object | None = None


class ModelParts(Protocol):
    """The loaded model as an extension may see it (``load.LoadedModel`` is one)."""

    family: str  # sd15 | sd21 | sdxl, by structure
    prediction: str  # epsilon | v_prediction | sample
    unet: Any  # diffusers UNet2DConditionModel
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    device: torch.device
    dtype: torch.dtype
    latent_scale: float  # VAE latents times this are the UNet's latents
    pixels_per_latent: int  # 8


@dataclass(frozen=True)
class ExtensionContext:
    """What the engine gives each extension once, when the model is loaded.

    beside              run slow work (reading files, preparing products) in the engine's own loading
                        thread; poll the future in ``frame_edge`` and put the result in there
    weights_changed     call in the engine thread after writing into the model's tensors: copies that
                        accelerations hoisted are refreshed
    prompts_changed     call after changing a text encoder's weights: embeddings are made again
    report              tell people of something that happened beside the loop, such as a file that does
                        not fit: it reaches log, page and OSC, and the stream goes on
    encode              image ``[F, 3, H, W]`` 0..1 -> clean latent ``[F, 4, h, w]``, the stream's dtype
    accelerate          a network's call on tensors -> the same, as the chosen acceleration runs it (with what
                        is given by name). What it gives is overwritten by the next call: use it or copy it
                        before
    foresees            whether the engine calls ``take_up`` once what an extension ``awaits`` is captured;
                        where not, it takes things up itself as they come
    progress            tell how far some work beside the loop is, by its name; None when it is over
    options             the config's ``engine.options`` (for instance ``allow_pickle``)
    """

    model: ModelParts
    beside: Callable[[Callable[[], Any]], Future[Any]]
    weights_changed: Callable[[], None]
    prompts_changed: Callable[[], None]
    report: Callable[[SdbridgeError], None]
    encode: Callable[[Tensor], Tensor]
    accelerate: Callable[[Callable[..., Any], str], Callable[..., Any]] = lambda run, name: run
    foresees: bool = False
    progress: Callable[[str, Progress | None], None] = lambda work, progress: None
    options: Mapping[str, object] = field(default_factory=lambda: _EMPTY)


class StreamExtension:
    """One kind of conditioning in the stream. Every method here does nothing; override what is needed.

    All calls come from the engine thread. ``parameters`` are the prefixes of parameter names it
    understands (``("controlnet.", "control_alignment")``); only those reach its ``apply``.
    """

    name: str = ""
    parameters: tuple[str, ...] = ()
    #: "" or a sampler's name (lcm, tcd, turbo) that ``scheduler = auto`` takes: a distilled LoRA says so.
    scheduler_hint: str = ""

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        """Take accepted values between two frames; answer what this model cannot do. Never slow."""
        return ()

    def frame_edge(self) -> bool:
        """Once before every tick: put in what was loaded beside. True if the picture may change by it."""
        return False

    def resized(self, width: int, height: int, frames: int) -> None:
        """The stream now runs at this size in pixels and with this many frames a step."""

    @property
    def edits_input(self) -> bool:
        """Whether ``before_encode`` may change a picture now; where none does, pixels go in as they came."""
        return type(self).before_encode is not StreamExtension.before_encode

    @property
    def reads_alpha_of(self) -> Role | None:
        """The input whose alpha it needs, else what is there is told apart by its colours alone."""
        return None

    def edits_output(self, luggage: Sequence[Any]) -> bool:
        """Whether ``after_decode`` must see these frames' picture; else it goes to pixels at once."""
        return type(self).after_decode is not StreamExtension.after_decode

    def before_encode(self, image: Tensor, roles: RoleImages) -> Tensor:
        """image ``[F, 3, H, W]`` 0..1, about to be encoded -> the image to encode instead."""
        return image

    def enter(self, roles: RoleImages, latent: Tensor) -> Sequence[Any]:
        """F objects, one per frame that enters row 0; each travels with its frame and comes back as luggage.

        ``latent`` is the frames' clean latent ``[F, 4, h, w]`` (zeros in txt2img), in a buffer that the next
        frames' takes; so are ``roles``' pixels, but not the pictures made of them.
        """
        return (None,) * int(latent.shape[0])

    @property
    def steers(self) -> bool:
        """Whether ``unet_inputs`` or ``after_x0`` may do anything now; neither is called where not."""
        mine, none = type(self), StreamExtension
        return mine.unet_inputs is not none.unet_inputs or mine.after_x0 is not none.after_x0

    def unet_inputs(self, rows: Rows, call: UnetCall) -> UnetCall:
        """Add residuals, tokens or channels to the UNet's call."""
        return call

    def practise(self, picture: Tensor, rows: int) -> None:
        """Do once, on a picture ``[1, 4, H, W]`` 0..1, what a parameter may ask for at any frame.

        ``rows`` of the stream batch are to be denoised at once.

        Called before the first frame, where an operation's first use costs time. Nothing may stay behind.
        """

    def foresee(self, rows: Rows, call: UnetCall) -> UnetCall | None:
        """A call of a shape to come, of zeros and without luggage -> as ``unet_inputs`` will leave it.

        None while something of the extension's own is made beside the stream for it: asked again at the
        next frame edge. Frames of the running shape go on meanwhile, so nothing may be changed by this.
        """
        return self.unet_inputs(rows, call)

    @property
    def awaits(self) -> Hashable:
        """What was asked for and would change calls' shapes, as long as it is not taken up; None: nothing.

        ``foresee`` is about the calls with it, frames go on without it until ``take_up``.
        """
        return None

    def take_up(self) -> None:
        """At a frame edge: from the next frame on, all that was asked for is in it."""

    @property
    def foreseeable(self) -> bool:
        """Whether ``foresee`` can tell; where it cannot, no shape waits for its graphs."""
        return True

    def after_x0(self, rows: Rows, x0: Tensor) -> Tensor:
        """x0 ``[R, 4, h, w]``, every row's clean estimate, before it is noised for the next step."""
        return x0

    def after_decode(self, image: Tensor, luggage: Sequence[Any]) -> Tensor:
        """image ``[F, 3, H, W]`` 0..1 just decoded, and its frames' luggage -> the image to send.

        May come back larger (upscaling); a fourth channel is taken as alpha.
        """
        return image

    def outputs(self, luggage: Sequence[Any]) -> Mapping[Role, Tensor]:
        """Further pictures for the frames being sent, such as ``control``: ``[F, 3, H, W]`` 0..1."""
        return {}

    def unused(self) -> tuple[str, ...]:
        """Parameters that are set but have no meaning now, for status."""
        return ()

    def keepsakes(self) -> Mapping[str, bytes]:
        """What no parameter says and an engine in this one's place needs; the same bytes while it stays."""
        return {}

    def remember(self, keepsakes: Mapping[str, bytes]) -> None:
        """All keepsakes of the engine before this one; called once, before the first ``apply``."""

    def reset(self, how: ResetKind) -> None:
        """Forget what was remembered of earlier frames; ``hard`` also starts random states anew."""

    def unload(self) -> None:
        """Give back everything."""
