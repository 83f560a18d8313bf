"""Biases of the trunk (BitFit: Ben Zaken et al., ACL 2022), and the key and value biases of DA-VPT+."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..options import check_sequence, wrong
from ..trunks import QKV, Trunk, bias_home
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import tune_attention

_ALL = re.compile(r'(\.|\.[qv]_)bias$')


@TUNING_METHODS.register_module(name='bias')
class Bias(TuningMethod):
    """Biases, trained in place, and offsets of the biases of queries, keys and values, which timm fuses.

    The paper's DA-VPT+ trains ``('k', 'v')`` (section 3.5). Softmax cancels a key bias unless the trunk norms its keys:
    its gradient from the segmentation loss is zero, and ``('v',)`` alone does the same.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        layers: ``'all'`` biases of the trunk, or a selection: ``'q'``, ``'k'``, ``'v'`` and names of linear or norm
            layers in a block (``'proj'``, ``'fc1'``, ``'fc2'``, ``'norm1'`` ...).

    Raises:
        ValueError: A name that matches no bias.
    """

    presets = {
        'bias': Preset(dict(bias={})),
        'vpt_bias': Preset(dict(prompts={}, bias={})),
        'davpt_plus': Preset(dict(prompts={}, bias=dict(layers=('k', 'v'))), guided=True),
        'davpt_gated_plus': Preset(
            dict(prompts=dict(gate=True, init='prototype'), bias=dict(layers=('k', 'v'))), guided=True
        ),
        'davpt_gated_bias': Preset(dict(prompts=dict(gate=True, init='prototype'), bias={}), guided=True),
    }
    main_option = 'layers'
    order = 1

    def __init__(self, trunk: Trunk, depth: int, layers: str | Sequence[str] = 'all') -> None:
        super().__init__(trunk, depth)
        if not isinstance(layers, str) or layers != 'all':
            expected = "'all' or a list or tuple of different names such as ('k', 'v')"
            layers = check_sequence(self.option('layers'), layers, expected)
            if not layers or not all(isinstance(layer, str) for layer in layers) or len(set(layers)) < len(layers):
                raise wrong(self.option('layers'), layers, expected)
        self.layers = layers
        targets = [] if layers == 'all' else [target for target in QKV if target in layers]
        self._homes = {target: self._require_home(trunk.blocks[0].attn, target) for target in targets}
        self.offsets: Any = nn.ModuleDict()  # block -> nn.ParameterDict, target -> offset
        for index in range(depth if targets else 0):
            self.offsets[str(index)] = offsets = nn.ParameterDict()
            for target in targets:
                offsets[target] = nn.Parameter(torch.zeros(self.width))

    @staticmethod
    def _require_home(attn: nn.Module, target: str) -> tuple[str, slice]:
        """As ``bias_home``. A bias that the trunk does not have is not added: it could not be merged."""
        home = bias_home(attn, target)
        if home is None:
            present = [name for name in QKV if bias_home(attn, name) is not None]
            hint = " (a key bias changes nothing: bias=('v',) does the same)" if target == 'k' and present else ''
            raise ValueError(
                f'tuning.bias.layers={target!r} matches no parameter: the projections of attention in this trunk have '
                f'a bias for {", ".join(present) or "none"}{hint}'
            )
        return home

    def attach(self, trunk: Trunk) -> None:
        """Add the offsets to the projections."""
        for index in self.offsets:
            tune_attention(trunk, int(index)).methods.append(self)

    def check(self, methods: Mapping[str, TuningMethod]) -> None:
        """Refuse offsets in a trunk whose blocks are trained as a whole: the bias would be trained twice."""
        if self._homes and 'blocks' in methods:
            raise ValueError(f'tuning: blocks are trained as a whole, bias={tuple(self._homes)} would be trained twice')

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """All biases, or those of the named layers in the blocks."""
        if self.layers == 'all':
            return {name for name in used if _ALL.search(name)}
        chosen: set[str] = set()
        for layer in self.layers:
            if layer not in QKV:
                pattern = re.compile(rf'^blocks\.\d+\.(.*\.)?{re.escape(layer)}\.bias$')
                names = {name for name in used if pattern.search(name)}
                if not names:
                    raise ValueError(f'tuning.bias.layers={layer!r} matches no parameter of this trunk')
                chosen |= names
        return chosen

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """``out + offset``."""
        offsets = self.offsets[str(block)]
        return out + offsets[target] if target in offsets else out

    def merge(self, state: dict[str, Tensor]) -> None:
        """``b + offset``."""
        for index, offsets in self.offsets.items():
            for target, offset in offsets.items():
                name, rows = self._homes[target]
                state[f'blocks.{index}.attn.{name}'][rows] += offset
