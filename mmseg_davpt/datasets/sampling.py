"""Draws that can be repeated: data order and augmentation depend on the seed and the draw's number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from itertools import count, islice

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from mmseg.registry import TRANSFORMS
from torch.utils.data import Sampler


class Draw(int):
    """Index of a sample that also knows which draw of the run it is."""

    number: int
    seed: int

    def __new__(cls, index: int, number: int, seed: int) -> Draw:
        """``index``, drawn as number ``number`` of the run with ``seed``."""
        draw = super().__new__(cls, index)
        draw.number, draw.seed = number, seed
        return draw

    def __reduce__(self) -> tuple:  # on its way to a worker
        return Draw, (int(self), self.number, self.seed)


@DATA_SAMPLERS.register_module()
class ReplayableSampler(Sampler):
    """Endless sampler like mmengine's ``InfiniteSampler``, whose draws carry their number in the run.

    Together with :class:`SeedPerDraw` it makes a resumed run see what an uninterrupted one sees, whatever the number of
    workers, and methods that share a seed see the same crops.

    Args:
        dataset: The dataset.
        shuffle: Whether each pass has an order of its own.
        seed: The same on every rank; drawn and shared if ``None``.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size, self.shuffle = len(dataset), shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.first = 0

    def __iter__(self) -> Iterator[Draw]:
        start = self.rank + self.first * self.world_size
        yield from islice(self._draws(), start, None, self.world_size)

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        numbers = count()
        while True:
            order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
            for index in order.tolist():
                yield Draw(index, next(numbers), self.seed)

    def skip(self, num_samples: int) -> None:
        """Begin at this draw of the rank; how mmengine (of the fork) continues a resumed run."""
        self.first = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: passes differ by themselves."""

    def __len__(self) -> int:
        return self.size


@TRANSFORMS.register_module()
class SeedPerDraw(BaseTransform):
    """First step of a training pipeline: seed the augmentations that follow by the draw's number.

    Samples that a :class:`ReplayableSampler` did not draw pass unchanged.
    """

    def transform(self, results: dict) -> dict:
        """Seed ``random`` and numpy, which mmcv's transforms draw from."""
        draw = results.get('sample_idx')
        if isinstance(draw, Draw):
            sequence = np.random.SeedSequence([draw.seed, draw.number]).generate_state(2)
            random.seed(int(sequence[0]))
            np.random.seed(int(sequence[1]))
        return results
