"""Stage: print every figure of the semantic tests for the exported weights, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.demo_model import measure
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_vae import photograph_figures
from sdbridge.models.embedded_model import EMBEDDED_DIR


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    """`variant` is the folder of the weights; the package's own one if empty."""
    model = measure.Shipped(Path(variant) if variant else EMBEDDED_DIR)
    seen, unseen = measure.prompts_seen(200), measure.prompts_held_out(52)
    four = measure.painted(model, seen, measure.FOUR_STEPS)
    figures: dict[str, object] = {
        "vae_psnr": {k: [round(x, 2) for x in v] for k, v in photograph_figures(model.vae).items()},
        "four_steps": measure.accuracy(model, four, seen),
        "one_step": measure.material_accuracy(model, seen, measure.ONE_STEP),
        "held_out": measure.material_accuracy(model, unseen, measure.FOUR_STEPS),
        "palette": measure.palette_share(four, seen),
        "strength": measure.strength_curve(model, (159, 319, 479, 639, 799)),
        "guidance": measure.guidance_scores(model, (1.0, 1.5, 2.0)),
        "negative": measure.negative_scores(model),
        "blend": measure.blend_scores(model, (0.0, 0.5, 1.0)),
    }
    for kind, figure in (("canny", measure.edge_scores), ("color", measure.grid_distances)):
        if (model.folder / f"controlnet_{kind}").is_dir():
            figures[f"controlnet_{kind}"] = figure(model)
    text = json.dumps(figures, indent=1, default=float)
    print(text)
    (s.work / "figures.json").write_text(text + "\n", encoding="utf-8")
    return True
