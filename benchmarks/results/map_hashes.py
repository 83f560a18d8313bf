"""Map the config hashes of the stored rows to the hashes of today.

Stored rows keep the hash of the config that made them. ``hashes.json`` maps it to the hash that the same method and
seed have now: rows file -> method -> seed -> ``old`` and ``new``. ``new`` is ``null`` for a row that no suite makes
today: a trial that is not in the project, or an earlier round with other test windows. Run this again when configs or
suites change, from the repository root, with the data and the weights of the rows, once for each dataset:

    python -m benchmarks.results.map_hashes --data camvid --cfg-options data_root=PATH model.backbone.pretrained=PATH
    python -m benchmarks.results.map_hashes --data ccp --cfg-options data_root=PATH model.backbone.pretrained=PATH
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from benchmarks.compare import Cell, Suite, load_suite

RESULTS = Path(__file__).resolve().parent
SUITES = RESULTS.parent / 'suites'
# Rows file -> suite, where the names differ.
SUITE_NAMES = {'camvid_main_again': 'camvid_main'}
# Methods of stored rows that have another name in the suite.
RENAMED = {
    'camvid_search_guidance': {
        'prototype init, no guidance': 'prototype init',
        'centered attn_out - query, 0.005': 'prototype init, centered, 0.005',
        'centered attn_out - query, 0.5': 'prototype init, centered, 0.5',
    },
}
Hashes = dict[str, dict[str, dict[str, str | None]]]  # method -> seed -> old, new


def map_rows(
    rows: Sequence[Mapping[str, Any]],
    suite: Suite | None,
    renamed: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Hashes:
    """Old and new hash of every row.

    Args:
        rows: Rows with ``method``, ``seed`` and ``config_hash``.
        suite: The suite that makes such rows today, or ``None``.
        renamed: Method of a row -> method of the suite.
        options: Options of all cells, e.g. ``data_root``.
    """
    hashes: Hashes = {}
    for row in rows:
        method, new = (renamed or {}).get(row['method'], row['method']), None
        if suite is not None and method in suite.methods:
            cell = Cell(suite, method, row['seed'])
            new = cell.key(cell.config(options)).rpartition('_')[2]
        seeds = hashes.setdefault(row['method'], {})
        seeds[str(row['seed'])] = dict(old=row['config_hash'], new=new)
    return hashes


def format_hashes(hashes: Mapping[str, Hashes]) -> str:
    """JSON with one line per method.

    Args:
        hashes: Rows file -> :func:`map_rows`.
    """
    files = []
    for name, methods in hashes.items():
        lines = ',\n'.join(f'  {json.dumps(method)}: {json.dumps(seeds)}' for method, seeds in methods.items())
        files.append(f' {json.dumps(name)}: {{\n{lines}\n }}')
    return '{\n' + ',\n'.join(files) + '\n}\n'


def main() -> None:
    """Write ``hashes.json`` for the rows files of a dataset beside this script."""
    parser = argparse.ArgumentParser(description='Map the config hashes of the stored rows to those of today')
    parser.add_argument('--data', required=True, help='part of the names of the rows files: camvid or ccp')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='for all cells: key=value ...')
    args = parser.parse_args()
    hashes = json.loads((RESULTS / 'hashes.json').read_text())
    for path in RESULTS.glob(f'*{args.data}*.jsonl'):
        suite = SUITES / f'{SUITE_NAMES.get(path.stem, path.stem)}.py'
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        known = load_suite(suite) if suite.is_file() else None
        hashes[path.stem] = map_rows(rows, known, RENAMED.get(path.stem), args.cfg_options)
    (RESULTS / 'hashes.json').write_text(format_hashes(dict(sorted(hashes.items()))))


if __name__ == '__main__':
    main()
