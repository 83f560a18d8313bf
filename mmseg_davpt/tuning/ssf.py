"""Scales and shifts of features (SSF: Lian et al., NeurIPS 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..trunks import QKV, Trunk, bias_home, weight_home
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import tune_attention

Home = tuple[str, slice]  # name of a parameter and the rows of it


@TUNING_METHODS.register_module(name='ssf')
class SSF(TuningMethod):
    """``y = gamma * x + beta`` behind each norm and each linear layer of the blocks (SSF, equation 3).

    The start is ``gamma = 1``, ``beta = 0``; the authors' code draws both around these values with deviation 0.02. A
    layer without a bias (keys of EVA-02, all projections of DINOv3) gets a scale only, so that everything merges.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
    """

    presets = {'ssf': Preset(dict(ssf={}))}
    order = 2
    scales: Any  # nn.ModuleDict: block -> nn.ParameterDict
    shifts: Any

    def __init__(self, trunk: Trunk, depth: int) -> None:
        super().__init__(trunk, depth)
        self.scales, self.shifts = nn.ModuleDict(), nn.ModuleDict()
        self._homes = _find_homes(trunk.blocks[0])
        for index, block in enumerate(trunk.blocks[:depth]):
            self.scales[str(index)], self.shifts[str(index)] = nn.ParameterDict(), nn.ParameterDict()
            for key, (weight, bias) in self._homes.items():
                width = len(block.get_parameter(weight[0])[weight[1]])
                self.scales[str(index)][key] = nn.Parameter(torch.ones(width))
                if bias is not None:
                    self.shifts[str(index)][key] = nn.Parameter(torch.zeros(width))

    def attach(self, trunk: Trunk) -> None:
        """Scale the projections of attention, and the outputs of norms and other linear layers by forward hooks."""
        for index in range(self.depth):
            tune_attention(trunk, index).methods.append(self)
            for name, layer in _layers(trunk.blocks[index]):
                layer.register_forward_hook(partial(self._scale, str(index), name.replace('.', '_')))

    def _scale(self, block: str, key: str, _: nn.Module | None, __: object, out: Tensor) -> Tensor:
        if not self.active:
            return out
        out, shifts = out * self.scales[block][key], self.shifts[block]
        return out + shifts[key] if key in shifts else out

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """``gamma * out + beta``."""
        return self._scale(str(block), target, None, None, out)

    def merge(self, state: dict[str, Tensor]) -> None:
        """``gamma W`` and ``gamma b + beta``."""
        for block, scales in self.scales.items():
            for key, (weight, bias) in self._homes.items():
                tensor = state[f'blocks.{block}.{weight[0]}']
                tensor[weight[1]] *= scales[key].view(-1, *[1] * (tensor.ndim - 1))
                if bias is not None:
                    tensor = state[f'blocks.{block}.{bias[0]}']
                    tensor[bias[1]] = scales[key] * tensor[bias[1]] + self.shifts[block][key]


def _find_homes(block: Trunk) -> dict[str, tuple[Home, Home | None]]:
    """Key of each scaled output -> where the block keeps its weight and its bias."""
    homes: dict[str, tuple[Home, Home | None]] = {}
    for target in (*QKV, 'proj'):
        (name, rows), bias = weight_home(block.attn, target), bias_home(block.attn, target)
        homes[target] = (f'attn.{name}', rows), bias and (f'attn.{bias[0]}', bias[1])
    for name, layer in _layers(block):
        bias = None if layer.bias is None else (f'{name}.bias', slice(None))
        homes[name.replace('.', '_')] = (f'{name}.weight', slice(None)), bias
    return homes


def _layers(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """Norms and linear layers of a block outside of its attention."""
    modules = [(name, module) for name, module in block.named_modules() if not name.startswith('attn')]
    return [(name, module) for name, module in modules if isinstance(module, (nn.Linear, nn.LayerNorm))]
