"""Repeatable draws: data order and augmentation depend on the seed and the number of the draw alone."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sized
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from mmseg.registry import TRANSFORMS
from torch.utils.data import Sampler

from ..options import check_bool, check_integer


class Draw(int):
    """Index of a sample, with the number of its draw in the run.

    The arithmetic that dataset wrappers use (``-`` in ``ConcatDataset``, ``%`` in ``RepeatDataset``) keeps number and
    seed.
    """

    number: int
    seed: int

    def __new__(cls, index: int, number: int, seed: int) -> Draw:
        """``index``, drawn as number ``number`` of the run with ``seed``."""
        draw = super().__new__(cls, index)
        draw.number, draw.seed = number, seed
        return draw

    def __sub__(self, other: int) -> Draw:
        return Draw(int(self) - other, self.number, self.seed)

    def __mod__(self, other: int) -> Draw:
        return Draw(int(self) % other, self.number, self.seed)

    def __floordiv__(self, other: int) -> Draw:
        return Draw(int(self) // other, self.number, self.seed)

    def __reduce__(self) -> tuple[Any, ...]:  # pickled on its way to a worker
        return Draw, (int(self), self.number, self.seed)


@DATA_SAMPLERS.register_module()
class ReplayableSampler(Sampler[Draw]):
    """Sampler like mmengine's ``InfiniteSampler`` whose draws carry their number in the run.

    With :class:`SeedPerDraw`, a resumed run gets the same samples as an uninterrupted one, for any number of workers,
    and methods that share a seed get the same crops.

    Args:
        dataset: The dataset. A wrapper that drops the number of a draw (``ClassBalancedDataset``) causes a warning.
        shuffle: Whether to shuffle each pass, each in another order.
        seed: The same on every rank; drawn and shared if ``None``.
        endless: ``True`` for ``IterBasedTrainLoop``. ``False`` for ``EpochBasedTrainLoop``: an epoch ends after one
            pass, and every rank gets the same number of samples, as from ``DefaultSampler`` (up to ``world_size - 1``
            samples of a pass are drawn twice). ``DistSamplerSeedHook`` sets the epoch.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, endless: bool = True) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle, self.endless = check_bool('sampler.shuffle', shuffle), check_bool('sampler.endless', endless)
        self.seed: int = sync_random_seed() if seed is None else check_integer('sampler.seed', seed, low=0)
        self.first = 0  # first draw of this rank
        if (wrapper := _find_lossy_wrapper(dataset)) is not None:
            warnings.warn(
                f'{type(wrapper).__name__} does not pass on the number of a draw: augmentation is not repeatable, and '
                'a resumed run differs from an uninterrupted one. Use ConcatDataset, RepeatDataset or '
                'MultiImageMixDataset, or list the samples in ann_file',
                stacklevel=2,
            )

    def __iter__(self) -> Iterator[Draw]:
        stop = None if self.endless else self.first + len(self)
        yield from islice(islice(self._draws(), self.rank, None, self.world_size), self.first, stop)

    def _draws(self) -> Iterator[Draw]:
        """Draws of all ranks."""
        generator = torch.Generator().manual_seed(self.seed)
        numbers = count()
        padding = 0 if self.endless else -self.size % self.world_size
        while True:
            order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
            for index in torch.cat([order, order.repeat(padding)[:padding]]).tolist():
                yield Draw(index, next(numbers), self.seed)

    def skip(self, num_samples: int) -> None:
        """Begin at this draw of the rank. The fork's ``IterBasedTrainLoop`` resumes with it.

        Args:
            num_samples: Draws of this rank to skip, counted from the start of the run.

        Raises:
            ValueError: The sampler is not endless.
        """
        if not self.endless:
            raise ValueError('ReplayableSampler(endless=False) is for EpochBasedTrainLoop: set endless=True')
        self.first = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Begin at this pass, unless the sampler is endless.

        Args:
            epoch: Number of the pass, from 0.
        """
        if not self.endless:
            self.first = epoch * len(self)

    def __len__(self) -> int:
        """Number of samples of the dataset, or of a pass of this rank if not endless."""
        return self.size if self.endless else -(-self.size // self.world_size)


def inner_datasets(dataset: object) -> list[Any]:
    """Datasets directly inside of a wrapper such as ``RepeatDataset``; empty for other datasets."""
    if (parts := getattr(dataset, 'datasets', None)) is not None:
        return list(parts)
    inner = getattr(dataset, 'dataset', None)
    return [] if inner is None else [inner]


def images_per_pass(dataset: Any) -> int:
    """Number of different images of a dataset, in one pass over what its wrappers hold.

    ``RepeatDataset(times=n)`` and ``ClassBalancedDataset`` count each image once, ``ConcatDataset`` sums its parts.

    Args:
        dataset: A dataset, with or without wrappers.
    """
    inner = inner_datasets(dataset)
    return min(len(dataset), sum(map(images_per_pass, inner))) if inner else len(dataset)


def _find_lossy_wrapper(dataset: Any) -> object | None:
    """The innermost wrapper that turns a :class:`Draw` into a plain index; ``None`` if there is none.

    ``get_data_info`` takes an index along the same way as ``__getitem__``, without reading an image.
    """
    inner = inner_datasets(dataset)
    for part in inner:
        if (wrapper := _find_lossy_wrapper(part)) is not None:
            return wrapper
    if not inner or not len(dataset):
        return None
    last = Draw(len(dataset) - 1, 0, 0)
    try:
        kept = isinstance(dataset.get_data_info(last)['sample_idx'], Draw)
    except (AttributeError, KeyError, TypeError):  # no dataset of mmengine
        kept = False
    return None if kept else dataset


@TRANSFORMS.register_module()
class SeedPerDraw(BaseTransform):
    """First step of a training pipeline: seed the augmentations that follow with the number of the draw.

    Samples that a :class:`ReplayableSampler` did not draw pass unchanged.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Seed ``random`` and numpy, which mmcv's transforms draw from."""
        draw = results.get('sample_idx')
        if isinstance(draw, Draw):
            sequence = np.random.SeedSequence([draw.seed, draw.number]).generate_state(2)
            random.seed(int(sequence[0]))
            np.random.seed(int(sequence[1]))
        return results
