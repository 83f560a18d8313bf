"""A suite: which methods are compared, on which data, with which seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmseg_davpt.apis import load_config

from .hashing import config_hash

SELECTION_STEP = 6  # every sixth training image is held out for selection


@dataclass(frozen=True)
class Suite:
    """The content of a suite file: a config file of mmengine with these names.

    Attributes:
        config: The config that every cell starts from, relative to the working directory.
        methods: Method -> its options, as for ``--cfg-options``.
        seeds: Seeds. For one seed all methods get the same crops in the same order and the same initial heads.
        common: Options for all methods.
        baseline: The method that differences are taken from, seed by seed.
        select: Evaluate on a slice of the training images (every sixth), and do not train on that slice. Use it for
            every choice; the validation images are for reported numbers.
        fraction: Fraction of the training images to train on, evenly spaced, in (0, 1].
        titles: Method -> its name in tables and plots, if it is not the method itself. Stored rows keep the method.
    """

    config: str
    methods: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    common: Mapping[str, Any]
    baseline: str
    select: bool = False
    fraction: float = 1.0
    titles: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All methods for the first seed, then for the next, so that an interrupted suite still compares methods."""
        return [Cell(self, method, seed) for seed in self.seeds for method in self.methods]


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    suite: Suite
    method: str
    seed: int

    def config(self, options: Mapping[str, Any] | None = None) -> Config:
        """The full config of the run.

        Args:
            options: More options for all cells, e.g. ``data_root``.
        """
        suite = self.suite
        cfg = load_config(suite.config, {**suite.common, **suite.methods[self.method], **(options or {})})
        cfg.randomness.seed = self.seed
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        train = cfg.train_dataloader.dataset
        indices = range(len(DATASETS.build({**train, 'pipeline': []})))
        held_out = [index for index in indices if index % SELECTION_STEP == 0] if suite.select else []
        kept = [index for index in indices if index not in set(held_out)]
        number = max(1, round(suite.fraction * len(kept)))
        train.indices = [kept[int(position * len(kept) / number)] for position in range(number)]
        if suite.select:
            pipeline = cfg.val_dataloader.dataset.pipeline
            cfg.val_dataloader.dataset = {**train, 'indices': held_out, 'pipeline': pipeline}
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        cfg.work_dir = ''
        return cfg

    def key(self, cfg: Config) -> str:
        """Name of the cell's folder; another config gives another name.

        Args:
            cfg: The config of the cell, from :meth:`config`.
        """
        slug = re.sub(r'[^a-z0-9.]+', '-', self.method.lower().replace('+', '-plus')).strip('-')
        return f'{slug}_seed{self.seed}_{config_hash(cfg)}'


def load_suite(path: str | Path) -> Suite:
    """Read a suite file.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A name is missing or unknown, the baseline or a title names no method, or a value is out of range.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no suite at {path}; the suites of the project are in benchmarks/suites/')
    names = Config.fromfile(path).to_dict()
    try:
        suite = Suite(**names)
    except TypeError as error:
        raise ValueError(f'{path}: {error}; a suite has the names {", ".join(Suite.__annotations__)}') from error
    if suite.baseline not in suite.methods:
        raise ValueError(f'{path}: baseline={suite.baseline!r} is none of the methods {", ".join(suite.methods)}')
    if unknown := set(suite.titles) - set(suite.methods):
        raise ValueError(f'{path}: titles of {", ".join(unknown)}, which are none of {", ".join(suite.methods)}')
    if not 0 < suite.fraction <= 1 or not suite.seeds:
        raise ValueError(
            f'{path}: fraction={suite.fraction}, seeds={suite.seeds}: expected (0, 1] and at least one seed'
        )
    return suite
