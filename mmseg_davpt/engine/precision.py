"""Precision on a CPU: bfloat16 autocast where the processor has instructions for it, float32 elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop

from ..options import check_choice

PRECISIONS = ('bfloat16', 'float32', 'auto')


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 (``lscpu``: ``avx512_bf16``, ``amx_tile``).

    Other CPUs emulate it, which makes a training about 10 times slower than in float32. torch reads the CPU's own
    flags, on every operating system; ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` also counts CPUs that emulate.
    ``False`` for processors other than x86.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_cpu_dtype(dtype: str) -> torch.dtype:
    """Data type of a training on this CPU.

    Args:
        dtype: ``'bfloat16'``, ``'float32'``, or ``'auto'``: bfloat16 if :func:`cpu_has_bfloat16`, else float32.

    Raises:
        ValueError: Another ``dtype``.
    """
    check_choice('optim_wrapper.dtype', dtype, PRECISIONS)
    return torch.bfloat16 if dtype == 'bfloat16' or (dtype == 'auto' and cpu_has_bfloat16()) else torch.float32


def _autocast_in_tests() -> bool:
    return get_device() == 'cpu' and cpu_has_bfloat16()


@LOOPS.register_module()
class CpuAmpValLoop(ValLoop):
    """``ValLoop`` in bfloat16 autocast on a CPU that has instructions for it, in float32 on any other device.

    Args:
        runner: The runner.
        dataloader: As for ``ValLoop``.
        evaluator: As for ``ValLoop``.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any) -> None:
        super().__init__(runner, dataloader, evaluator, fp16=_autocast_in_tests())


@LOOPS.register_module()
class CpuAmpTestLoop(TestLoop):
    """``TestLoop`` with the precision of :class:`CpuAmpValLoop`; the arguments are the same."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any) -> None:
        super().__init__(runner, dataloader, evaluator, fp16=_autocast_in_tests())
