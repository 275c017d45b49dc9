"""Sample sheets: grids of pictures as PNG, to look at a stage's progress."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def save_sheet(rows: list[torch.Tensor], path: Path, scale: float = 1.0) -> None:
    """Rows of pictures [n, 3, h, w] in 0..1, one above the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1)
    picture = Image.fromarray((sheet.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy())
    if scale != 1.0:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    picture.save(path)
