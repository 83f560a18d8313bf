"""What a work folder says about its run, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = 'run_record.json'


class ReportError(ValueError):
    """A folder holds no run that can be reported."""


@dataclass(frozen=True)
class RunReport:
    """A run, read from its work folder.

    Attributes:
        folder: The work folder.
        record: Content of ``run_record.json``; see :class:`~mmseg_davpt.engine.RunRecordHook`.
        scalars: Name of a logged figure -> its (iteration, value) pairs, ascending; a resumed part replaces what it
            did again.
        config: Text of the config, empty if the folder has none.
    """

    folder: Path
    record: Mapping[str, Any]
    scalars: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    config: str = ''

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def validations(self) -> list[dict[str, Any]]:
        """``iteration``, ``metrics`` and ``classes`` of each validation."""
        return list(self.record.get('validations', ()))

    def scores(self, metric: str = 'mIoU') -> list[tuple[int, float]]:
        """(iteration, value) of a metric in each validation that has it."""
        found = [(one['iteration'], one['metrics'].get(metric)) for one in self.validations]
        return [(iteration, value) for iteration, value in found if value is not None and math.isfinite(value)]

    @property
    def class_share(self) -> dict[str, float]:
        """Class -> its percent of the labeled pixels of the last validation."""
        confusion = self.record.get('confusion')
        if not confusion:
            return {}
        sums = [sum(row) for row in confusion]
        total = max(1, sum(sums))
        return {name: 100 * count / total for name, count in zip(self.record.get('classes', ()), sums)}

    @property
    def final_classes(self) -> dict[str, float | None]:
        """Class -> IoU in percent in the last validation that measured it."""
        measured = [one['classes'] for one in self.validations if one.get('classes')]
        return dict(measured[-1]) if measured else {}


def read_run(folder: str | Path) -> RunReport:
    """Read a work folder.

    Args:
        folder: Work folder of a training with ``RunRecordHook``.

    Raises:
        ReportError: It has no ``run_record.json``, or a damaged one; the message says what to do.
    """
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        raise ReportError(
            f'{folder} has no {RECORD}: give the work folder of a training whose config has '
            "custom_hooks=[..., dict(type='RunRecordHook')]; --resume of a finished training does not write one"
        )
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f'{path} is damaged ({error}): restore it, or train again') from None
    if not isinstance(record, dict) or record.get('version') != 1:
        raise ReportError(f'{path}: expected a record of version 1; write the report with the version that trained')
    configs = sorted(folder.glob('*.py'), key=lambda file: file.stat().st_mtime)
    return RunReport(folder, record, read_scalars(folder), configs[-1].read_text() if configs else '')


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Figures that mmengine logged in a work folder.

    Args:
        folder: With ``TIMESTAMP/vis_data/scalars.json`` of each part of the training.

    Returns:
        Name -> (iteration, value) pairs, ascending. Lines that cannot be read, as the last one of a killed training,
        are left out.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        lines = [entry for line in path.read_text().splitlines() if isinstance(entry := _parse(line), dict)]
        steps = [line['step'] for line in lines if isinstance(line.get('step'), int)]
        for values in points.values():  # what this part did again
            for step in [step for step in values if steps and step >= min(steps)]:
                del values[step]
        for line in lines:
            for name, value in line.items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if name in ('time', 'data_time') and 'loss' not in line:
                    continue  # of a validation
                if name not in ('step', 'iter', 'epoch') and number and math.isfinite(value) and 'step' in line:
                    points.setdefault(name, {})[int(line['step'])] = float(value)
    return {name: sorted(values.items()) for name, values in points.items() if values}


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


@dataclass(frozen=True)
class Pair:
    """Runs of two groups that share their seed.

    Attributes:
        first: Name of the group that is compared with.
        second: Name of the other group.
        seeds: Seeds that both have.
        differences: Last mIoU of ``second`` minus that of ``first``, for each seed.
    """

    first: str
    second: str
    seeds: Sequence[int]
    differences: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return sum(self.differences) / len(self.differences)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; ``None`` with one seed."""
        count = len(self.differences)
        if count < 2:
            return None
        return math.sqrt(sum((one - self.mean) ** 2 for one in self.differences) / (count - 1) / count)


def _validated(run: RunReport) -> tuple[list[str], list[str]]:
    """Classes, and names of the images of the last validation."""
    images = sorted(Path(one['path']).name for one in run.record.get('images', ()))
    return list(run.record.get('classes', ())), images


def paired_differences(runs: Sequence[RunReport]) -> list[Pair]:
    """Compare runs that differ in something else than their seed, seed by seed.

    Runs with the same config file form a group, or, if all have the same, those with the same trainable methods. Runs
    that have not finished, or with other classes or validation images than the first one, are left out.

    Args:
        runs: The first one's group is compared with each other group.
    """
    runs = [run for run in runs if run.record.get('done') == run.record.get('iterations')]
    runs = [run for run in runs if _validated(run) == _validated(runs[0])]
    by_config = {Path(run.record.get('config', '')).stem for run in runs}
    groups: dict[str, dict[int, float]] = {}
    for run in runs:
        method = '+'.join(run.record.get('trunk', {}).get('methods', ())) or 'frozen'
        guided = ' guided' if run.record.get('trunk', {}).get('guided') else ''
        name = Path(run.record.get('config', '')).stem if len(by_config) > 1 else method + guided
        if (scores := run.scores()) and run.record.get('seed') is not None:
            groups.setdefault(name, {})[int(run.record['seed'])] = scores[-1][1]
    names = list(groups)
    pairs = []
    for other in names[1:]:
        seeds = sorted(groups[names[0]].keys() & groups[other].keys())
        if seeds:
            differences = [groups[other][seed] - groups[names[0]][seed] for seed in seeds]
            pairs.append(Pair(names[0], other, seeds, differences))
    return pairs
