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

SAVE_EVERY_S = 60.0


class Progress:
    """The modules of a stage with their optimizer; resumes from its own files.

    `average` is how slowly the averaged weights follow; 0 keeps none. The learning rate falls with the
    steps, or, where the settings name a horizon, with the seconds spent in this and earlier calls.
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
        self.name, self.folder, self.steps, self.average = name, s.checkpoints, steps, average
        self.rate, self.horizon = rate, s.horizon
        self.modules = nn.ModuleDict(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.on_gpu = self.parameters[0].is_cuda
        # a rate in a tensor is read anew by a recorded graph
        first_rate = torch.tensor(rate, device=self.parameters[0].device) if self.on_gpu else rate
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=first_rate,
            betas=betas,
            weight_decay=0.01,
            eps=1e-7,
            capturable=self.on_gpu,
            foreach=True if self.on_gpu else None,
        )
        self.step, self.spent = 0, 0.0
        self.warm_from = 0  # the rate rises from here on: the optimizer's moments begin here
        self.folder.mkdir(parents=True, exist_ok=True)
        if all(self.path(f"weights_{name}").exists() for name in modules):
            self._load()
        elif self.path("averaged").exists():  # all that was brought back of an earlier run
            for name, module in self.modules.items():
                load_averaged(s, self.name, name, module)
            self.averaged = copy.deepcopy(self.modules).requires_grad_(False)
        else:
            self.averaged = copy.deepcopy(self.modules).requires_grad_(False)
        self.log = (s.work / f"{name}.jsonl").open("a")
        self.saved_at = self.started = time.monotonic()
        self.sums: dict[str, torch.Tensor | float] = {}
        self.counted = 0

    def path(self, part: str) -> Path:
        return self.folder / f"{self.name}.{part}.pt"

    @property
    def seconds(self) -> float:
        """Spent on this stage in this and in earlier calls."""
        return self.spent + time.monotonic() - self.started

    @property
    def done(self) -> float:
        """0 at the beginning of the stage, 1 at its end."""
        timed = self.seconds / self.horizon if self.horizon else 0.0
        return min(1.0, max(timed, self.step / self.steps))

    def set_rate(self) -> None:
        """The warmed-up cosine rate of the coming step."""
        warm = min(1.0, (self.step - self.warm_from + 1) / 100)
        rate = self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def descend(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One optimizer step at the rate that is set; a graph can record it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()

    @torch.no_grad()
    def count(self) -> None:
        """After a step: the averaged weights follow."""
        self.step += 1
        if self.average:
            keep = min(self.average, self.step / (self.step + 9))
            mine, theirs = list(self.averaged.parameters()), list(self.modules.parameters())
            torch._foreach_lerp_(mine, theirs, 1 - keep)

    def update(self, loss: torch.Tensor) -> None:
        """A whole step, where no graph records it."""
        self.set_rate()
        self.descend(loss)
        self.count()

    def note(self, every: int = 50, **losses: torch.Tensor | float) -> None:
        """Sum losses, without waiting for them, and write their means every so many steps."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += 1
        if self.counted >= every:
            row = {name: round(float(total) / self.counted, 5) for name, total in self.sums.items()}
            self.write(row)
            self.sums, self.counted = {}, 0

    def write(self, row: dict[str, object]) -> None:
        """A line of the log."""
        row = {"step": self.step, "s": round(self.seconds, 1)} | row
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()
        print(self.name, row, flush=True)

    def go_on(self, deadline: float) -> bool:
        """Whether another step is due; saves now and then, and at the end."""
        now = time.monotonic()
        over = self.finished or now > deadline
        if over or now - self.saved_at > SAVE_EVERY_S:
            self.save()
        return not over

    @property
    def finished(self) -> bool:
        return self.done >= 1.0

    def save(self) -> None:
        """Few small files: the squares of the gradients in bf16 and no momentum, which soon comes back."""
        moments = [self.optimizer.state.get(p, {}).get("exp_avg_sq") for p in self.parameters]
        parts = {
            f"weights_{k}": {"step": self.step, "spent": self.seconds, "module": m.state_dict()}
            for k, m in self.modules.items()
        }
        parts["moments"] = [None if m is None else m.bfloat16() for m in moments]
        if self.average:
            states = self.averaged.state_dict().items()
            parts["averaged"] = {k: v.half() if v.is_floating_point() else v for k, v in states}
        for part, value in parts.items():
            partial = self.path(part).with_suffix(".partial")
            torch.save(value, partial)
            partial.rename(self.path(part))
        self.saved_at = time.monotonic()

    def _load(self) -> None:
        for name, module in self.modules.items():
            state = torch.load(self.path(f"weights_{name}"), map_location="cpu", weights_only=True)
            module.load_state_dict(named_as(module, state["module"]))
            self.step, self.spent = state["step"], state.get("spent", 0.0)
        self.averaged = copy.deepcopy(self.modules).requires_grad_(False)
        if self.average and self.path("averaged").exists():
            halves = torch.load(self.path("averaged"), map_location="cpu", weights_only=True)
            for name, module in self.averaged.items():
                module.load_state_dict(named_as(module, part_of(halves, name)))
        if not self.path("moments").exists():
            self.warm_from = self.step
            return
        moments = torch.load(self.path("moments"), map_location="cpu", weights_only=True)
        for parameter, square in zip(self.parameters, moments, strict=True):
            if square is not None:
                step = torch.tensor(float(self.step), device=parameter.device if self.on_gpu else "cpu")
                self.optimizer.state[parameter] = {
                    "step": step,
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(square),
                }


def part_of(state: dict[str, torch.Tensor], module_name: str) -> dict[str, torch.Tensor]:
    """The tensors of one module of a stage's averaged weights, in fp32."""
    start = module_name + "."
    return {k[len(start) :]: v.float() for k, v in state.items() if k.startswith(start)}


def named_as(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under this transformers' names: newer ones have CLIP's models a level higher."""

    def bare(name: str) -> str:
        return name.replace("text_model.", "").replace("vision_model.", "")

    found = {bare(name): tensor for name, tensor in state.items()}
    return {name: found[bare(name)] for name in module.state_dict() if bare(name) in found}


def load_averaged(s: Settings, stage: str, module_name: str, module: nn.Module) -> bool:
    """Fill a module with a stage's averaged weights; False when that stage has not run."""
    path = s.checkpoints / f"{stage}.averaged.pt"
    if not path.exists():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(named_as(module, part_of(state, module_name)))
    return True


def autocast(s: Settings) -> torch.autocast:
    """bf16 arithmetic, fp32 weights; a recorded graph must not keep weights that were cast outside it."""
    return torch.autocast(s.device, torch.bfloat16, cache_enabled=s.device == "cpu")
