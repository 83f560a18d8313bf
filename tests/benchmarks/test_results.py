"""Stored results: the hash of every row is in the mapping, under the method and seed of the row."""

import json

import pytest
from conftest import ROOT

from benchmarks.compare import Suite, load_suite
from benchmarks.results.map_hashes import RENAMED, SUITE_NAMES, format_hashes, map_rows

RESULTS = ROOT / 'benchmarks/results'
FILES = sorted(RESULTS.glob('*.jsonl'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_stored_row_is_in_the_mapping(path):
    hashes = json.loads((RESULTS / 'hashes.json').read_text())[path.stem]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row['method'], str(row['seed'])): row['config_hash'] for row in rows} == {
        (method, seed): pair['old'] for method, seeds in hashes.items() for seed, pair in seeds.items()
    }
    suite = ROOT / 'benchmarks/suites' / f'{SUITE_NAMES.get(path.stem, path.stem)}.py'
    known = set(load_suite(suite).methods) if suite.is_file() else set()
    for method, seeds in hashes.items():
        made_today = RENAMED.get(path.stem, {}).get(method, method) in known
        assert all((pair['new'] is not None) == made_today for pair in seeds.values()), method


def test_mapping_joins_by_method_and_seed(monkeypatch):
    monkeypatch.setattr('benchmarks.results.map_hashes.Cell.config', lambda cell, options: (cell.method, cell.seed))
    monkeypatch.setattr(
        'benchmarks.results.map_hashes.Cell.key', lambda cell, cfg: f'slug_seed{cfg[1]}_{cfg[0]}-{cfg[1]}'
    )
    suite = Suite('config.py', methods=dict(a={}, b={}), seeds=(0, 1), common={}, baseline='a')
    rows = [dict(method=method, seed=seed, config_hash=method * 8) for method, seed in (('a', 1), ('c', 0), ('d', 0))]
    hashes = map_rows(rows, suite, renamed={'d': 'b'})
    assert hashes == {
        'a': {'1': dict(old='aaaaaaaa', new='a-1')},
        'c': {'0': dict(old='cccccccc', new=None)},
        'd': {'0': dict(old='dddddddd', new='b-0')},
    }
    assert map_rows(rows[:1], None) == {'a': {'1': dict(old='aaaaaaaa', new=None)}}
    assert json.loads(format_hashes({'file': hashes})) == {'file': hashes}
