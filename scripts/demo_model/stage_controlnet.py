"""Stage: train a ControlNet on the frozen pipeline; `--variant canny` or `--variant color`.

The control image is made by the product's own preprocessor from the wanted picture, or half of the
time from the unstyled picture of the same layout, which is what a camera would give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers import ControlNetModel

from scripts.demo_model.critique import coarse_error, descend_judged, judge_of, trained_critic
from scripts.demo_model.networks import build_controlnet, train_with_plain_attention
from scripts.demo_model.painted import (
    Frozen,
    PaintedScenes,
    any_start,
    load_frozen,
    load_painted,
    one_step,
    side_times,
    train_side,
)
from scripts.demo_model.progress import Progress
from scripts.demo_model.sampling import sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.stepping import Losses
from sdbridge.engine.preprocess.base import Settings as MapSettings
from sdbridge.engine.preprocess.canny import Canny
from sdbridge.engine.preprocess.color import ColorGrid

KINDS = ("canny", "color")
EXACT = {"canny": 0.5, "color": 0.0}  # edges of the wanted picture itself say where its texture lies
Draw = Callable[[torch.Tensor], torch.Tensor]


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    kind = variant or KINDS[0]
    draw_map = control_map(kind)
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)
    scenes = load_painted(s, frozen.vae, lambda pictures: stored(draw_map(pictures), kind))
    net = build_controlnet(frozen.unet).to(s.device, memory_format=torch.channels_last)
    train_with_plain_attention(net, s.device)
    progress = Progress(s, f"controlnet_{kind}", {"controlnet": net}, s.side_steps, 6e-4)
    judge = judge_of(s, f"critic_{kind}", trained_critic(s), s.side_steps)
    torch.manual_seed(s.seed * 31 + progress.step)
    train_side(progress, judge, partial(train_once, frozen, scenes, progress, judge, s, kind), deadline, s)
    sheet(progress.averaged["controlnet"], frozen, scenes, draw_map, s, kind)
    return progress.finished


def train_once(
    frozen: Frozen, scenes: PaintedScenes, progress: Progress, judge: Progress, s: Settings, kind: str
) -> Losses:
    net = progress.modules["controlnet"]
    rows, which = scenes.choose(s.side_batch)
    wanted = scenes.targets(rows, which)
    own = torch.rand(len(rows), device=s.device) < 0.5  # the map is of the wanted picture, not of its layout
    shown = which if kind == "color" else torch.where(own, which, torch.zeros_like(which))
    control = loaded(scenes.made[rows, shown], s)

    def residuals(
        noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        return net(noisy, t, text, controlnet_cond=control, return_dict=False)

    # what the control says, the caption leaves out: colours for `color`
    ids = scenes.ids(frozen.bank, rows, which, palettes=kind != "color")
    start, t = any_start(scenes, rows, which), side_times(len(rows), s)
    clean = one_step(frozen, start, ids, t, s, control=residuals)
    exact = EXACT[kind] * own * (clean - wanted).square().mean((1, 2, 3))
    held = coarse_error(clean, wanted) + exact
    return descend_judged(progress, judge, clean, held, scenes.drawn(rows, which, wanted), s)


def stored(maps: torch.Tensor, kind: str) -> torch.Tensor:
    """Maps [n, 3, h, w] in 0..1 as bytes, one channel where all are alike, small where they are grids."""
    if kind == "canny":
        return (maps[:, :1] * 255).round().to(torch.uint8)
    return (maps[:, :, ::8, ::8] * 255).round().to(torch.uint8)


def loaded(maps: torch.Tensor, s: Settings) -> torch.Tensor:
    """Stored maps as a ControlNet takes them."""
    scale = s.size // maps.shape[-1]
    if scale > 1:
        maps = maps.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    whole = maps.expand(-1, 3, -1, -1).float() / 255
    return whole.contiguous(memory_format=torch.channels_last)


def control_map(kind: str) -> Draw:
    """The product's preprocessor with its default settings, pictures 0..1 to maps 0..1."""
    preprocessor = {"canny": Canny, "color": ColorGrid}[kind]()
    settings = MapSettings()
    return lambda pictures: preprocessor(pictures, settings)


@torch.no_grad()
def sheet(
    net: ControlNetModel, frozen: Frozen, scenes: PaintedScenes, draw_map: Draw, s: Settings, kind: str
) -> None:
    """Control images over the one-step pictures without and with the ControlNet, and those of two steps."""
    net = net.to(s.device).float().eval()
    half = max(1, len(scenes.pictures) // 2)  # half unstyled, half drawn in a material
    pictures = torch.cat([scenes.pictures[:half, 0], scenes.pictures[half:, 1]]).float() / 255
    control = draw_map(pictures)
    prompts = ["fire", "marble", "honeycomb", "ocean", "brick", "zebra", "ice", "grass"][: len(pictures)]
    text = frozen.captions.embed(frozen.text, prompts)

    class Controlled(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> object:
            down, middle = net(noisy, t, text, controlnet_cond=control, return_dict=False)
            return frozen.unet(
                noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            )

    rows = [pictures, control]
    for model, steps in ((frozen.unet, (999,)), (Controlled(), (999,)), (Controlled(), (999, 499))):
        made = sample(model, text, steps, torch.Generator().manual_seed(1))
        rows.append(frozen.vae.decode(made).sample / 2 + 0.5)
    save_sheet(rows, s.sheets / f"controlnet_{kind}.png", scale=0.5)
