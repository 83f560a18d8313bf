"""Optimizer wrappers: mixed precision on a CPU, and parameter groups without a line for every frozen tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn


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
    """The default constructor, which warns once for each frozen parameter, kept out of frozen modules."""

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: object) -> None:
        """Add the parameter groups of a module, unless all of it is frozen."""
        if any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, **kwargs)
