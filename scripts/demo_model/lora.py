"""Low-rank changes of the UNet's attention layers, and the two file layouts they are written in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

RANK = 8
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


class LoraLayers(nn.Module):
    """One down and one up matrix for each target layer; `hook` adds them to the layers' outputs."""

    def __init__(self, unet: nn.Module, rank: int = RANK) -> None:
        super().__init__()
        self.names = [name for name, _ in targets(unet)]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for _, layer in targets(unet):
            wide_out, wide_in = layer.weight.shape[:2]
            self.down.append(nn.Parameter(torch.randn(rank, wide_in) * wide_in**-0.5))
            self.up.append(nn.Parameter(torch.zeros(wide_out, rank)))

    def hook(self, unet: nn.Module) -> None:
        for index, (_, layer) in enumerate(targets(unet)):
            layer.register_forward_hook(self._adder(index))

    def _adder(self, index: int):
        def add(layer: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            product = self.up[index] @ self.down[index]
            if isinstance(layer, nn.Conv2d):
                return out + nn.functional.conv2d(given[0], product[:, :, None, None])
            return out + nn.functional.linear(given[0], product)

        return add


def targets(unet: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers that LoRAs of big models change too: those of the transformer blocks."""
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and "attentions" in name and name.endswith(TARGETS):
            yield name, layer


def save_kohya(lora: LoraLayers, unet: nn.Module, path: Path) -> None:
    """`lora_unet_down_blocks_1_..._to_q.lora_down.weight`, with an alpha for each layer."""
    tensors = {}
    for name, layer, down, up in _pieces(lora, unet):
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = _shaped(down, layer)
        tensors[f"{stem}.lora_up.weight"] = _shaped(up, layer)
        tensors[f"{stem}.alpha"] = torch.tensor(float(RANK)).half()
    _save(tensors, path)


def save_peft(lora: LoraLayers, unet: nn.Module, path: Path) -> None:
    """`unet.down_blocks.1....to_q.lora_A.weight`, as diffusers and PEFT write it."""
    tensors = {}
    for name, layer, down, up in _pieces(lora, unet):
        tensors[f"unet.{name}.lora_A.weight"] = _shaped(down, layer)
        tensors[f"unet.{name}.lora_B.weight"] = _shaped(up, layer)
    _save(tensors, path)


def _pieces(lora: LoraLayers, unet: nn.Module) -> Iterator[tuple[str, nn.Module, torch.Tensor, torch.Tensor]]:
    for index, (name, layer) in enumerate(targets(unet)):
        yield name, layer, lora.down[index].detach(), lora.up[index].detach()


def _shaped(matrix: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    halved = matrix.half().cpu().contiguous()
    return halved[:, :, None, None].contiguous() if isinstance(layer, nn.Conv2d) else halved


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"origin": "trained from scratch on drawings by scripts/train_demo.py", "license": "Apache-2.0"}
    save_file(tensors, path, metadata=origin)
