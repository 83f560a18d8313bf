"""Optimizer wrappers: mixed precision on a CPU, and parameter groups without a line for every frozen tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from ..models import PromptedViT


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` under bfloat16 autocast; mmengine's ``AmpOptimWrapper`` insists on an accelerator."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast around the forward."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups by tuning method; everything outside of a ``PromptedViT`` as in mmengine.

    A trainable parameter of the backbone is matched against ``paramwise_cfg.custom_keys`` under its name and under
    ``tuned.METHOD``, also where the method trains the trunk's parameters in place: ``'tuned.bias'`` holds for biases,
    ``'tuned.blocks'`` for full tuning, ``'tuned'`` for every method. The longest key that matches counts.

    Weight decay applies to weight matrices of the trunk only, unless the key names a ``decay_mult``: it would pull
    pretrained biases, norms and position tables towards zero.

    Frozen modules are skipped without mmengine's warning per parameter.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **kwargs: object) -> None:
        """Add the parameter groups of a module, unless all of it is frozen."""
        if isinstance(module, PromptedViT):
            self._add_tuned(params, module, prefix)
        elif any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, prefix, **kwargs)

    def _add_tuned(self, params: list[dict[str, Any]], backbone: PromptedViT, prefix: str) -> None:
        """One group per method and pair of learning rate and decay."""
        keys = sorted(self.paramwise_cfg.get('custom_keys', {}), key=len, reverse=True)
        groups: dict[tuple[str, float, float], dict[str, Any]] = {}
        for name, method, parameter in backbone.trainable_parameters():
            names = f'{prefix}.{name}', f'{prefix}.tuned.{method}.'
            key = next((key for key in keys if any(key in name for name in names)), None)
            options = {} if key is None else self.paramwise_cfg['custom_keys'][key]
            decayed = name.startswith('trunk.') and name.endswith('weight') and parameter.ndim > 1
            lr_mult, decay_mult = options.get('lr_mult', 1.0), options.get('decay_mult', float(decayed))
            group = groups.setdefault((method, lr_mult, decay_mult), dict(params=[], method=method))
            group['params'].append(parameter)
            if self.base_lr is not None:
                group['lr'] = self.base_lr * lr_mult
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * decay_mult
        params.extend(groups.values())
