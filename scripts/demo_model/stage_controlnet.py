"""Stage: train a ControlNet on the frozen pipeline; `--variant canny` or `--variant color`.

The control image is made by the product's own preprocessor from the wanted picture, or half of the
time from the unstyled picture of the same layout, which is what a camera would give.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from diffusers import ControlNetModel

from scripts.demo_model.networks import build_controlnet, train_with_plain_attention
from scripts.demo_model.painted import (
    Frozen,
    PaintedScenes,
    clean_loss,
    load_frozen,
    load_painted,
    side_times,
)
from scripts.demo_model.progress import Progress
from scripts.demo_model.sampling import sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from sdbridge.engine.preprocess.base import Settings as MapSettings
from sdbridge.engine.preprocess.canny import Canny
from sdbridge.engine.preprocess.color import ColorGrid

KINDS = ("canny", "color")


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    kind = variant or KINDS[0]
    draw_map = control_map(kind)
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)
    scenes = load_painted(s, frozen.vae)
    net = build_controlnet(frozen.unet).to(s.device, memory_format=torch.channels_last)
    train_with_plain_attention(net, s.device)
    progress = Progress(s, f"controlnet_{kind}", {"controlnet": net}, s.side_steps, 8e-4, average=0.99)
    rng = random.Random(s.seed * 31 + progress.step)
    torch.manual_seed(s.seed * 31 + progress.step)
    while progress.go_on(deadline):
        rows, which = scenes.choose(s.batch_large, rng)
        wanted = (
            scenes.latents[rows, which].to(s.device).float().contiguous(memory_format=torch.channels_last)
        )
        shown = which if kind == "color" else torch.where(torch.rand(len(which)) < 0.5, which, 0)
        control = draw_map(scenes.pictures[rows, shown].to(s.device).float() / 255)
        # what the control says, the caption leaves out: colours for `color`
        lines = scenes.captions(rows, which, rng, palettes=kind != "color")

        def residuals(
            noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, control: torch.Tensor = control
        ) -> tuple[list[torch.Tensor], torch.Tensor]:
            return net(noisy, t, text, controlnet_cond=control, return_dict=False)

        t = side_times(len(rows), s)
        loss = clean_loss(frozen, torch.randn_like(wanted) * 0.3, wanted, lines, t, s, control=residuals)
        progress.update(loss)
        progress.note(every=25, loss=loss.detach())
    sheet(progress.averaged["controlnet"], frozen, scenes, draw_map, s, kind)
    return progress.finished


def control_map(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product's preprocessor with its default settings, pictures 0..1 to maps 0..1."""
    preprocessor = {"canny": Canny, "color": ColorGrid}[kind]()
    settings = MapSettings()
    return lambda pictures: preprocessor(pictures, settings)


@torch.no_grad()
def sheet(
    net: ControlNetModel,
    frozen: Frozen,
    scenes: PaintedScenes,
    draw_map: Callable[[torch.Tensor], torch.Tensor],
    s: Settings,
    kind: str,
) -> None:
    """Control images over the one-step pictures they lead to."""
    net = net.to(s.device).float().eval()
    pictures = scenes.pictures[:48:6, 1].to(s.device).float() / 255
    control = draw_map(pictures)
    prompts = ["fire", "marble", "honeycomb", "ocean", "brick", "zebra", "ice", "grass"]
    text = frozen.captions.embed(frozen.text, prompts)

    class Controlled(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> object:
            down, middle = net(noisy, t, text, controlnet_cond=control, return_dict=False)
            return frozen.unet(
                noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            )

    rows = [pictures, control]
    for model in (frozen.unet, Controlled()):
        made = sample(model, text, (999,), torch.Generator().manual_seed(1))
        rows.append(frozen.vae.decode(made).sample / 2 + 0.5)
    save_sheet(rows, s.sheets / f"controlnet_{kind}.png", scale=0.5)
