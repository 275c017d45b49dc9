"""How often the tests' classifier names the prompted material, looked at now and then while training.

Only looked at: nothing of the classifier flows into the training.
"""

from __future__ import annotations

import time

import torch
from diffusers import AutoencoderTiny

from scripts.demo_model.classifier import CLASSIFIER_FILE, load_classifier
from scripts.demo_model.pairs import Captions
from scripts.demo_model.progress import Progress
from scripts.demo_model.sampling import FOUR_STEPS, sample
from scripts.demo_model.settings import Settings
from sdbridge.models.embedded_model import MATERIALS

EACH = 4  # pictures of each material


class Trial:
    """Writes the share of right names by one and by four steps into a stage's log."""

    def __init__(self, s: Settings, vae: AutoencoderTiny, captions: Captions, every_s: float) -> None:
        self.vae, self.captions, self.every_s, self.device = vae, captions, every_s, s.device
        self.judge = (
            load_classifier().to(s.device) if s.device == "cuda" and CLASSIFIER_FILE.exists() else None
        )
        self.last = time.monotonic()

    def now_and_then(self, progress: Progress) -> None:
        if time.monotonic() - self.last > self.every_s:
            self.write(progress)
            self.last = time.monotonic()

    @torch.no_grad()
    def write(self, progress: Progress) -> None:
        if self.judge is None:
            return
        unet, text = progress.averaged["unet"], progress.averaged["text"]
        embedded = self.captions.embed(text, list(MATERIALS) * EACH)
        named = torch.arange(len(MATERIALS), device=self.device).repeat(EACH)
        row: dict[str, object] = {}
        for steps in ((FOUR_STEPS[0],), FOUR_STEPS):
            latents = sample(unet, embedded, steps, torch.Generator().manual_seed(3))
            pictures = (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
            right = self.judge(pictures).argmax(1) == named
            row[f"named_by_{len(steps)}"] = round(float(right.float().mean()), 3)
            missed = [
                m for i, m in enumerate(MATERIALS) if float(right.view(EACH, -1)[:, i].float().mean()) < 0.5
            ]
        progress.write(row | {"missed_by_4": ", ".join(missed)})
