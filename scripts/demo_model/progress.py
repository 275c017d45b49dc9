"""A stage's progress: weights, moments, averaged weights and step on disk in small files; losses in a log."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import nn

from scripts.demo_model.settings import Settings

SAVE_EVERY_S = 120.0


class Progress:
    """The modules of a stage with their optimizer; resumes from its own files.

    `average` is how slowly the averaged weights follow; 0 keeps none.
    """

    def __init__(
        self,
        s: Settings,
        name: str,
        modules: dict[str, nn.Module],
        steps: int,
        rate: float,
        average: float = 0.999,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.name, self.folder, self.steps, self.rate, self.average = (
            name,
            s.checkpoints,
            steps,
            rate,
            average,
        )
        self.modules = nn.ModuleDict(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=betas, weight_decay=0.01, eps=1e-7)
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if all(self.path(f"weights_{name}").exists() for name in modules):
            self._load()
        else:
            self.averaged = copy.deepcopy(self.modules).requires_grad_(False)
        self.log = (s.work / f"{name}.jsonl").open("a")
        self.saved_at = self.started = time.monotonic()
        self.sums: dict[str, float] = {}
        self.counted = 0

    def path(self, part: str) -> Path:
        return self.folder / f"{self.name}.{part}.pt"

    def update(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One optimizer step at a warmed-up cosine rate, and the averaged weights after it."""
        warm = min(1.0, (self.step + 1) / 100)
        rate = (
            self.rate
            * warm
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps))))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        self.step += 1
        if not self.average:
            return
        keep = min(self.average, self.step / (self.step + 9))
        with torch.no_grad():
            mine, theirs = list(self.averaged.parameters()), list(self.modules.parameters())
            torch._foreach_lerp_(mine, theirs, 1 - keep)

    def note(self, every: int = 50, **losses: torch.Tensor | float) -> None:
        """Sum losses and write their means every so many steps."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.counted += 1
        if self.counted >= every:
            row = {"step": self.step, "s": round(time.monotonic() - self.started, 1)}
            row |= {name: round(total / self.counted, 5) for name, total in self.sums.items()}
            self.log.write(json.dumps(row) + "\n")
            self.log.flush()
            print(self.name, row, flush=True)
            self.sums, self.counted = {}, 0

    def go_on(self, deadline: float) -> bool:
        """Whether another step is due; saves now and then, and at the end."""
        now = time.monotonic()
        over = self.step >= self.steps or now > deadline
        if over or now - self.saved_at > SAVE_EVERY_S:
            self.save()
            self.saved_at = now
        return not over

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def save(self) -> None:
        """Few small files: the squares of the gradients in bf16 and no momentum, which soon comes back."""
        moments = [self.optimizer.state.get(p, {}).get("exp_avg_sq") for p in self.parameters]
        parts = {
            f"weights_{k}": {"step": self.step, "module": m.state_dict()} for k, m in self.modules.items()
        }
        parts["moments"] = [None if m is None else m.bfloat16() for m in moments]
        if self.average:
            states = self.averaged.state_dict().items()
            parts["averaged"] = {k: v.half() if v.is_floating_point() else v for k, v in states}
        for part, value in parts.items():
            partial = self.path(part).with_suffix(".partial")
            torch.save(value, partial)
            partial.rename(self.path(part))

    def _load(self) -> None:
        for name, module in self.modules.items():
            state = torch.load(self.path(f"weights_{name}"), map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            self.step = state["step"]
        self.averaged = copy.deepcopy(self.modules).requires_grad_(False)
        if self.average:
            halves = torch.load(self.path("averaged"), map_location="cpu", weights_only=True)
            self.averaged.load_state_dict(halves)
        moments = torch.load(self.path("moments"), map_location="cpu", weights_only=True)
        for parameter, square in zip(self.parameters, moments, strict=True):
            if square is not None:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": square.to(parameter.device, parameter.dtype),
                }


def load_averaged(s: Settings, stage: str, module_name: str, module: nn.Module) -> bool:
    """Fill a module with a stage's averaged weights; False when that stage has not run."""
    path = s.checkpoints / f"{stage}.averaged.pt"
    if not path.exists():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    start = module_name + "."
    own = {k[len(start) :]: v.float() for k, v in state.items() if k.startswith(start)}
    module.load_state_dict(own)
    return True


def autocast(s: Settings) -> torch.autocast:
    """bf16 arithmetic where the machine has it, fp32 weights."""
    return torch.autocast(s.device, torch.bfloat16)
