"""DoRA on the projections of attention, by peft (Liu et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import TUNING_METHODS, Preset, TuningMethod
from .lora import LoRA


@TUNING_METHODS.register_module(name='dora')
class DoRA(LoRA):
    """Weight-decomposed low-rank updates (DoRA, equation 5): ``W' = m V / ||V||`` with ``V = W + alpha / rank * B A``.

    The norm is taken over the inputs of each output and treated as a constant in the backward pass (section 4.3). The
    magnitude ``m``, ``(D,)``, is ``||W||`` at the start and ``B`` is zero, so that ``W' = W``.

    Args and errors are those of :class:`~mmseg_davpt.tuning.lora.LoRA`.
    """

    presets = {'dora': Preset(dict(dora={}))}
    peft_options = dict(use_dora=True)

    def check(self, methods: Mapping[str, TuningMethod]) -> None:
        """Refuse LoRA beside DoRA: the norm would not include LoRA's update."""
        if 'lora' in methods:
            raise ValueError('tuning: dora and lora update the same projections: choose one of them')

    @torch.no_grad()
    def trunk_loaded(self) -> None:
        """Set the magnitudes to the norms of the loaded weights."""
        for layers in self.layers.values():
            for layer in layers.values():
                layer.lora_magnitude_vector['default'].weight.copy_(layer.get_base_layer().weight.float().norm(dim=1))

    def merged_weight(self, layer: Any, weight: Tensor) -> Tensor:
        """``m V / ||V||``, ``(D, D)``."""
        weight = super().merged_weight(layer, weight)
        magnitude = layer.lora_magnitude_vector['default'].weight
        return (magnitude / weight.norm(dim=1)).unsqueeze(1) * weight
