"""Draw the pictures and train every part of the embedded model, stage by stage; see docs/demo-model.md."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.demo_model.settings import CPU, GPU, Settings

STAGES = (
    "draw",
    "vae",
    "latents",
    "unet",
    "distill",
    "controlnet",
    "lora",
    "ip_adapter",
    "classifier",
    "export",
    "measure",
)


def main() -> int:
    started = time.monotonic()
    import torch  # seconds, which count towards the budget

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument(
        "--work", type=Path, default=Path("train"), help="checkpoints, drawings, sheets, logs"
    )
    parser.add_argument("--budget-s", type=float, default=450.0, help="stop and save after this long")
    parser.add_argument(
        "--horizon-s", type=float, default=0.0, help="seconds of the whole stage over all calls"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")
    parser.add_argument("--variant", default="", help="controlnet: canny or color; lora: ink or glow")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = replace(choose(args.preset, args.work, args.seed, args.set), horizon=args.horizon_s)
    stage = import_module(f"scripts.demo_model.stage_{args.stage}")
    finished = stage.run(settings, started + args.budget_s, args.variant)
    how = "finished" if finished else "stopped at its budget"
    print(f"{args.stage}: {how} after {time.monotonic() - started:.0f} s")
    return 0


def choose(preset: str, work: Path, seed: int | None, changes: list[str]) -> Settings:
    import torch

    on_gpu = torch.cuda.is_available() if preset == "auto" else preset == "gpu"
    settings = replace(GPU if on_gpu else CPU, work=work)
    if seed is not None:
        settings = replace(settings, seed=seed)
    for change in changes:
        name, _, text = change.partition("=")
        kind = type(getattr(settings, name))
        value = tuple(int(v) for v in text.split(",")) if kind is tuple else kind(text)
        settings = replace(settings, **{name: value})
    return settings


if __name__ == "__main__":
    sys.exit(main())
