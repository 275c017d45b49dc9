"""The judge of the semantic tests: names the material of a picture, trained on drawings alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdbridge.models.embedded_model import MATERIALS

CLASSIFIER_FILE = Path(__file__).resolve().parents[2] / "tests" / "models" / "material_classifier.safetensors"


class MaterialClassifier(nn.Module):
    """Pictures [n, 3, h, w] in 0..1 of any size to one score for each material."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stride, wide in ((2, width), (2, 2 * width), (1, 2 * width), (2, 4 * width), (2, 4 * width)):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.SiLU()]
            channels = wide
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, len(MATERIALS))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.body(pictures * 2 - 1)
        spread = features.flatten(2)
        return self.head(torch.cat([spread.mean(2), spread.std(2)], 1))


def save_classifier(model: MaterialClassifier, path: Path = CLASSIFIER_FILE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, path)


def load_classifier(path: Path = CLASSIFIER_FILE) -> MaterialClassifier:
    model = MaterialClassifier()
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)
