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
    # nn.ModuleDict, block -> nn.ParameterDict; torch types the values as Module.
    scales: Any
    shifts: Any

    def __init__(self, trunk: Trunk, depth: int) -> None:
        super().__init__(trunk, depth)
        self.scales, self.shifts = nn.ModuleDict(), nn.ModuleDict()
        self._homes: dict[tuple[str, str], tuple[Home, Home | None]] = {}
        for index, block in enumerate(trunk.blocks[:depth]):
            self.scales[str(index)], self.shifts[str(index)] = nn.ParameterDict(), nn.ParameterDict()
            for target in (*QKV, 'proj'):
                weight, bias = weight_home(block.attn, target), bias_home(block.attn, target)
                self._add(index, target, block.attn, weight, bias, 'attn.')
            for name, layer in _layers(block):
                bias = None if layer.bias is None else (f'{name}.bias', slice(None))
                self._add(index, _key(name), block, (f'{name}.weight', slice(None)), bias)

    def _add(self, index: int, key: str, module: nn.Module, weight: Home, bias: Home | None, prefix: str = '') -> None:
        width = len(module.get_parameter(weight[0])[weight[1]])
        self.scales[str(index)][key] = nn.Parameter(torch.ones(width))
        if bias is not None:
            self.shifts[str(index)][key] = nn.Parameter(torch.zeros(width))
            bias = (prefix + bias[0], bias[1])
        self._homes[str(index), key] = (prefix + weight[0], weight[1]), bias

    def attach(self, trunk: Trunk) -> None:
        """Scale the projections of attention, and the outputs of norms and other linear layers by forward hooks."""
        for index in range(self.depth):
            tune_attention(trunk, index).methods.append(self)
            for name, layer in _layers(trunk.blocks[index]):
                layer.register_forward_hook(partial(self._scale, str(index), _key(name)))

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
        for (block, key), (weight, bias) in self._homes.items():
            scale = self.scales[block][key]
            tensor = state[f'blocks.{block}.{weight[0]}']
            tensor[weight[1]] *= scale.view(-1, *[1] * (tensor.ndim - 1))
            if bias is not None:
                tensor = state[f'blocks.{block}.{bias[0]}']
                tensor[bias[1]] = scale * tensor[bias[1]] + self.shifts[block][key]


def _layers(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """Norms and linear layers of a block outside of its attention."""
    modules = [(name, module) for name, module in block.named_modules() if not name.startswith('attn')]
    return [(name, module) for name, module in modules if isinstance(module, (nn.Linear, nn.LayerNorm))]


def _key(name: str) -> str:
    """A module's path as a key of a ``ParameterDict``."""
    return name.replace('.', '_')
