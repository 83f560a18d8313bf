"""Measurement of time and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from timm.layers import use_fused_attn
from torch import nn
from torch.utils import benchmark

from mmseg_davpt.apis import library_versions

MB = 1e6
Timed = Callable[[Mapping[Any, Callable[[], object]]], dict[Any, benchmark.Measurement]]  # time_rounds with its rounds
_M_MMAP_THRESHOLD = -3  # of malloc.h
_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


@dataclass
class Case:
    """Something to measure; calling it does the work once.

    Attributes:
        work: The forward pass and, with trainable parameters, the backward pass.
        trainable: Parameters that get gradients; the gradients are dropped after each call, as by ``zero_grad``.
        model: The model that ``work`` runs.
    """

    work: Callable[[], object]
    trainable: list[nn.Parameter] = field(default_factory=list)
    model: nn.Module | None = None

    def __call__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Work once; with an optimizer, also take its step."""
        self.work()
        if optimizer is not None:
            optimizer.step()
        for parameter in self.trainable:
            parameter.grad = None


def time_rounds(
    runs: Mapping[Any, Callable[[], object]], rounds: int, min_seconds: float = 0.2, cpu_time: bool = False
) -> dict[Any, benchmark.Measurement]:
    """Time all runs in turn, round by round, so that a slow moment of the machine affects all of them.

    The first round warms up, the second one counts how many calls fill ``min_seconds``. Each round has another random
    order. ``benchmark.timer`` waits for the device. (``benchmark.Timer.timeit`` would warm up twice more before every
    measurement, which triples the time of slow steps.)

    Args:
        runs: Name -> the function to time.
        rounds: Number of rounds that count.
        min_seconds: Shorter runs are repeated within a round.
        cpu_time: Count the CPU time of this process, all threads together: for a machine that others use, too. Not for
            GPUs.

    Returns:
        Name -> measurement; ``times[r]`` are the seconds per call in round ``r``.
    """
    numbers = {}
    for run in runs.values():
        run()
    for name, run in runs.items():
        seconds = _time(name, run, 1, cpu_time).median
        numbers[name] = min(1000, max(1, math.ceil(min_seconds / seconds)))
    order, measured = random.Random(0), []
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            measured.append(_time(name, runs[name], numbers[name], cpu_time))
    merged = {measurement.stmt: measurement for measurement in benchmark.Measurement.merge(measured)}
    return {name: merged[name] for name in runs}


def _time(name: str, run: Callable[[], object], number: int, cpu_time: bool) -> benchmark.Measurement:
    timer = time.process_time if cpu_time else benchmark.timer
    start = timer()
    for _ in range(number):
        run()
    return measurement(name, [timer() - start], number)


def measurement(name: str, values: list[float], number: int = 1) -> benchmark.Measurement:
    """Torch's median and interquartile range of values (each of ``number`` calls) under a name."""
    return benchmark.Measurement(number, values, benchmark.TaskSpec(name, '', num_threads=torch.get_num_threads()))


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and interquartile range of the ratios within each round, which cancels what slows both."""
    ratios = measurement('ratio', [a / b for a, b in zip(numerator, denominator, strict=True)])
    return dict(median=ratios.median, iqr=ratios.iqr)


def peak_memory(build: Callable[[], Case], warm: Callable[[], Case], device: str = 'cpu') -> dict[str, float]:
    """Peak memory of a case.

    On a GPU it is the allocator's, in this process. On a CPU it is the resident set of a fresh process, which is forked
    from one that has only imported. ``growth`` is counted from the process with everything imported and a tiny case
    already run (libraries load on first use), before the model is built.

    Args:
        build: Makes the case; is pickled.
        warm: Makes the tiny case; is pickled.
        device: ``cpu`` or ``cuda``.

    Returns:
        In MB: ``growth``, and ``peak`` from zero; with trainable parameters also ``growth_adamw`` and ``peak_adamw``,
        with AdamW's steps and state.
    """
    if device == 'cuda':
        return _peak_memory(build, warm, device, torch.get_num_threads())
    with ProcessPoolExecutor(1, mp_context=fresh_processes()) as pool:
        return pool.submit(_peak_memory, build, warm, device, torch.get_num_threads()).result()


def fresh_processes() -> BaseContext:
    """Context for processes that have imported this module, and done nothing else."""
    context = get_context('forkserver')
    context.set_forkserver_preload([__name__])
    return context


def _peak_memory(build: Callable[[], Case], warm: Callable[[], Case], device: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    if device == 'cpu' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        # glibc keeps freed blocks of up to 32 MB, differently from run to run; above 64 KB they now go back at once.
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
    warm()()
    gc.collect()
    start = _memory_now(device)
    _forget_peak(device)
    case = build()
    for _ in range(2):
        case()
    peaks = {'': _memory_peak(device)}
    if case.trainable:
        _forget_peak(device)
        optimizer = torch.optim.AdamW(case.trainable)
        for _ in range(2):  # the first step makes the state
            case(optimizer)
        peaks['_adamw'] = _memory_peak(device)
    return {
        f'{name}{kind}': (peak - base) / MB
        for kind, peak in peaks.items()
        for name, base in dict(growth=start, peak=0).items()
    }


def _memory_now(device: str) -> int:
    if device == 'cuda':
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    return _status('VmRSS') if _STATUS.exists() else _memory_peak(device)


def _forget_peak(device: str) -> None:
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text('5')


def _memory_peak(device: str) -> int:
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        return _status('VmHWM')
    # Not Linux: the peak cannot be reset, and includes the peak of the imports.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024


def environment(device: str) -> dict[str, object]:
    """The device's name, threads, attention kernel and library versions."""
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), cpu)
    return dict(
        device=torch.cuda.get_device_name() if device == 'cuda' else f'{cpu}, {os.cpu_count()} logical cores',
        threads=torch.get_num_threads(),
        fused_attention=use_fused_attn() > 0,  # TIMM_FUSED_ATTN
        versions=library_versions(),
    )
