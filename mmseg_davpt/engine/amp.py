"""Mixed precision on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` under bfloat16 autocast; mmengine's ``AmpOptimWrapper`` insists on an accelerator."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast around the forward."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
