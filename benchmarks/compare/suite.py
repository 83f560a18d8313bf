"""A suite: which methods are compared, on what, with which seeds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmseg_davpt.apis import load_config

SELECTION = 6  # every sixth training image is held out to select on


@dataclass(frozen=True)
class Suite:
    """What a suite file says; a config file of mmengine with these names.

    Attributes:
        config: The config that every cell starts from, relative to the working directory.
        methods: Name -> options that make the method, as for ``--cfg-options``.
        seeds: Seeds; a seed gives every method the same crops in the same order, and the same initial heads.
        common: Options for all methods.
        baseline: The method that differences are taken from, seed by seed.
        select: Evaluate on a slice of the training images (every sixth), which is then not trained on. For everything
            that is chosen; the validation images are for what is reported.
        fraction: Share of the training images that are trained on, evenly spaced.
    """

    config: str
    methods: Mapping[str, Mapping]
    seeds: Sequence[int]
    common: Mapping
    baseline: str
    select: bool = False
    fraction: float = 1.0

    def cells(self) -> list[Cell]:
        """All methods for the first seed, then for the next: an interrupted suite is still a fair one."""
        return [Cell(self, method, seed) for seed in self.seeds for method in self.methods]


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    suite: Suite
    method: str
    seed: int

    def config(self, options: Mapping | None = None) -> Config:
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
        held_out = [index for index in indices if index % SELECTION == 0] if suite.select else []
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
        """Name of the cell's folder; another config gives another name."""
        slug = re.sub(r'[^a-z0-9.]+', '-', self.method.lower().replace('+', '-plus')).strip('-')
        return f'{slug}_seed{self.seed}_{config_hash(cfg)}'


def config_hash(cfg: Config) -> str:
    """Eight digits that tell configs apart; places of data, weights and results are no part of it."""
    text = '\n'.join(
        line for line in cfg.pretty_text.splitlines() if not re.search(r'\b(data_root|pretrained|work_dir)\b', line)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load_suite(path: str | Path) -> Suite:
    """Read a suite file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A name is missing or unknown, or the baseline is none of the methods.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no suite at {path}; those of the project are in benchmarks/suites/')
    names = Config.fromfile(path).to_dict()
    try:
        suite = Suite(**names)
    except TypeError as error:
        raise ValueError(f'{path}: {error}; a suite has the names {", ".join(Suite.__annotations__)}') from error
    if suite.baseline not in suite.methods:
        raise ValueError(f'{path}: baseline={suite.baseline!r} is none of the methods {", ".join(suite.methods)}')
    if not 0 < suite.fraction <= 1 or not suite.seeds:
        raise ValueError(f'{path}: fraction={suite.fraction}, seeds={suite.seeds}: expected (0, 1] and some seeds')
    return suite
