"""The table of one device: cells are kept and resumed, the budget holds, rows are what is measured."""

import functools
import json

import pytest

from benchmarks.speed import Workload, overview, time_rounds
from benchmarks.speed.__main__ import read_budget

WORKLOAD = Workload('test_vit', size=64, dtype='bfloat16')
CELLS = ['x: a', 'y: b', 'y: c']
TIMED = functools.partial(time_rounds, rounds=2, min_seconds=0.0)


def row(case, part='inference'):
    measured = dict(median=1.0, iqr=0.0)
    return dict(part=part, case=case, seconds=0.5, iqr=0.0, to='base', ratio=measured, images=2.0)


@pytest.fixture
def cells(monkeypatch):
    """Three cells, each of which takes 100 seconds of a clock that only they advance."""
    now, calls = [0.0], []

    def measure(name):
        calls.append(name)
        now[0] += 100
        return [row(name)]

    monkeypatch.setattr(overview.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(
        overview, 'overview_cells', lambda *_: {name: functools.partial(measure, name) for name in CELLS}
    )
    return calls


def run(out, seconds, workload=WORKLOAD):
    return overview.run_overview(workload, (64, 96), (2,), TIMED, seconds, out, 'command')


def test_a_second_call_goes_on_where_the_budget_ended(cells, tmp_path):
    assert run(tmp_path, 210) is False
    assert cells == CELLS[:2]  # the third would take as long as the second
    assert 'Not measured yet: y: c. Run the command again.' in (tmp_path / 'overview.md').read_text()
    assert run(tmp_path, 1) is True  # the first cell of a call always runs
    assert cells == CELLS
    assert 'Not measured' not in (tmp_path / 'overview.md').read_text()
    assert list(json.loads((tmp_path / 'overview.json').read_text())['cells']) == CELLS
    assert run(tmp_path, 210) is True
    assert cells == CELLS


def test_other_settings_do_not_mix(cells, tmp_path):
    run(tmp_path, 1)
    with pytest.raises(ValueError, match='other settings: choose another --out'):
        run(tmp_path, 1, Workload('test_vit', size=32, dtype='bfloat16'))


def test_rows_are_of_real_cases():
    rows = overview._together(WORKLOAD, 'step, eager', overview.STEPS, overview.FULL, TIMED)
    assert [each['case'] for each in rows] == list(overview.STEPS)
    assert rows[0]['ratio']['median'] == 1.0
    assert all(each['images'] == pytest.approx(1 / each['seconds']) for each in rows)
    mmseg, batched = overview._evaluation(WORKLOAD, (64, 96), (4,), TIMED)
    assert (mmseg['ratio']['median'], batched['case']) == (1.0, 'slide_batch=4')
    (compiled,) = overview._compiled(WORKLOAD, 'residual DA-VPT, bfloat16 trunk', TIMED)
    assert compiled['compilation'] > 0 and compiled['part'] == 'step, aot_eager'


def test_memory_stands_beside_the_step():
    settings = dict(arch='a', size=1, batch=1, dtype='d')
    record = dict(
        device='D', threads=1, versions=dict(torch='2'), command='c', settings=settings,
        cells={'step': [row('x', 'step, eager')], 'm': [dict(part='memory', case='x', memory=12.4, memory_adamw=20.6)]},
    )  # fmt: skip
    text = overview.format_overview(record, dict(step=0, m=0))
    assert '| step, eager | x | 500 | 1.000 (IQR 0.000) | base | 12 | 21 | 2 |' in text


def test_budget():
    assert [read_budget(text) for text in ('90', '45s', '8m', '1.5m')] == [90, 45, 480, 90]
    with pytest.raises(Exception, match="'8h': expected a time such as 8m"):
        read_budget('8h')
