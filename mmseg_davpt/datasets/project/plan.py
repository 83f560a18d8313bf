"""Settings for the data and the machine, each with its reason."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch

from .scan import DataSummary

T = TypeVar('T')
METHOD = 'davpt_residual'  # the preset of `tuning`
ARCH = 'vit_small_patch14_dinov2'
PATCH = 14
SHORT = 360  # pixels; smaller images are enlarged
GIB = 2**30


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value and why it was chosen."""

    value: T
    reason: str


@dataclass(frozen=True)
class Machine:
    """Where the training runs.

    Attributes:
        device: ``cuda`` or ``cpu``.
        memory: Bytes: of the GPU, or of the computer.
        cores: CPU cores that this process may use.
    """

    device: str
    memory: int
    cores: int

    @classmethod
    def here(cls) -> Machine:
        """The machine that runs this process."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        if torch.cuda.is_available():
            return cls('cuda', torch.cuda.get_device_properties(0).total_memory, cores)
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') if hasattr(os, 'sysconf') else 8 * GIB
        return cls('cpu', memory, cores)


@dataclass(frozen=True)
class Plan:
    """Settings of a training.

    Attributes:
        scale: (long side, short side) to which images are resized with their aspect ratio.
        ratio_range: Range of the random scale in training.
        crop: Side of the square training crops, a multiple of the patch size.
        batch_size: Crops per iteration.
        max_iters: Iterations.
        warmup: Iterations in which the learning rate rises.
        lr: Learning rate of neck and head; that of the prompts and their values is half of it.
        dtype: Precision on a CPU: ``float32``, or ``auto`` for bfloat16 where the CPU has instructions for it.
        interval: Iterations between validations and checkpoints.
        test: ``whole`` or ``slide``.
        workers: Processes that load training images.
    """

    scale: Choice[tuple[int, int]]
    ratio_range: Choice[tuple[float, float]]
    crop: Choice[int]
    batch_size: Choice[int]
    max_iters: Choice[int]
    warmup: Choice[int]
    lr: Choice[float]
    dtype: Choice[str]
    interval: Choice[int]
    test: Choice[str]
    workers: Choice[int]

    def lines(self) -> list[str]:
        """Each choice on one line, to print."""
        choices = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [f'{name:<12}{choice.value!s:<14}{choice.reason}' for name, choice in choices]


def make_plan(summary: DataSummary, images: int, machine: Machine) -> Plan:
    """Choose the settings.

    Args:
        summary: The data.
        images: Number of training images.
        machine: Where the training runs.
    """
    gpu = machine.device == 'cuda'
    width, height = summary.size
    short, long = min(width, height), max(width, height)
    limit = 640 if gpu else 480
    new_short = min(max(short, SHORT), limit)
    new_long = max(new_short, round(new_short * long / short))
    if short > limit:
        why = f'images are {width}x{height} (median): the short side shrinks to {limit}; more shows smaller objects'
    elif short < SHORT:
        why = f'images are {width}x{height} (median): enlarged, as a patch of the trunk is {PATCH} pixels wide'
    else:
        why = f'images are {width}x{height} (median): their size is kept'
    scale = Choice((new_long, new_short), why)

    shorts = sorted(min(pair.size) for pair in summary.pairs)
    spread = shorts[-1 - len(shorts) // 20] / shorts[len(shorts) // 20]
    wide = spread > 2
    ratio_range = Choice(
        (0.5, 2.0) if wide else (0.75, 1.5),
        f'the short sides of the images differ by a factor of {spread:.1f}' + ('' if wide else ': moderate scaling'),
    )

    side = min(518 if gpu else 224, new_short) // PATCH * PATCH
    crop = Choice(side, f'{side // PATCH} patches; {"a GPU has time for large crops" if gpu else "small, for a CPU"}')

    batch_size = _batch_size(side, images, machine)
    iterations = _iterations(images, batch_size.value, gpu)
    warmup = min(max(iterations.value // 20, 10), 1500)
    validations = 5 if gpu else 2
    area = new_short * new_long / side**2
    whole = area <= 4
    return Plan(
        scale=scale,
        ratio_range=ratio_range,
        crop=crop,
        batch_size=batch_size,
        max_iters=iterations,
        warmup=Choice(warmup, 'a twentieth of the training'),
        lr=Choice(
            4e-3 if iterations.value <= 4000 else 1e-3,
            'the rate of the short recipes' if iterations.value <= 4000 else 'a long training takes smaller steps',
        ),
        dtype=Choice(
            'float32' if gpu else 'auto',
            '--amp trains in mixed precision' if gpu else 'bfloat16 if the CPU has instructions for it, else float32',
        ),
        interval=Choice(
            iterations.value // validations,
            f'{validations} times in the training; the best checkpoint by mIoU and the last one are kept',
        ),
        test=Choice(
            'whole' if whole else 'slide',
            f'an image has {area:.1f} times the pixels of a crop' + ('' if whole else ': windows as large as crops'),
        ),
        workers=Choice(
            min(8 if gpu else 2, max(machine.cores - 1, 1)), f'{machine.cores} CPU cores, one of them for the training'
        ),
    )


def image_memory(side: int) -> int:
    """Bytes that a training crop takes: activations of a ViT-S/14 and of the light UPerNet, in float32.

    A rough figure: 20 numbers of the trunk's width per token and block, 1500 of the head per pixel of its
    finest map (four times finer than the patches).

    Args:
        side: Side of the crop.
    """
    tokens = (side // PATCH) ** 2
    return 4 * (tokens * 12 * 384 * 20 + 16 * tokens * 1500)


def _batch_size(side: int, images: int, machine: Machine) -> Choice[int]:
    budget = machine.memory * (0.6 if machine.device == 'cuda' else 0.3)
    most = 16 if machine.device == 'cuda' else 4
    fits = int(budget // image_memory(side))
    size = next((size for size in (16, 8, 4) if size <= min(most, fits)), 2)  # 2: batch norm needs two images
    if size < most:
        reason = f'{machine.memory / GIB:.0f} GiB of memory'
    else:
        reason = f'fits into {machine.memory / GIB:.0f} GiB; ' + ('enough' if machine.device == 'cuda' else 'for a CPU')
    return Choice(size, reason)


def _iterations(images: int, batch_size: int, gpu: bool) -> Choice[int]:
    """Small sets are seen more often: the number of crops grows with the root of the number of images."""
    crops = (8000 if gpu else 2000) * math.sqrt(images / 200)
    epochs = min(max(crops / images, 4.0), 200.0)
    low, high = (500, 40000) if gpu else (200, 4000)
    iterations = min(max(round(epochs * images / batch_size, -2), low), high)
    seen = iterations * batch_size / images
    return Choice(int(iterations), f'every image is seen {seen:.0f} times; small sets train longer per image')
