"""The figures of the docs are those that their script draws, from the rows that are stored."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from statistics import mean, stdev

import pytest
from conftest import ROOT

FIGURES = ROOT / 'docs/figures'
RESULTS = ROOT / 'benchmarks/results'
# Names in docs/results.md -> names of the rows; see "Names" in benchmarks/results/comparison.md.
ROWS = {'VPT-Deep, gated prompts': 'VPT-Deep, gates', 'gated DA-VPT': 'DA-VPT', 'gated DA-VPT+': 'DA-VPT+'}


@pytest.fixture(scope='module')
def drawn():
    """File name -> content, from the script, in a process of its own."""
    code = 'import json, make; print(json.dumps(make.figures()))'
    done = subprocess.run([sys.executable, '-c', code], cwd=FIGURES, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_stored_figures_are_those_of_the_script(drawn):
    stored = {path.name: path.read_text() for path in FIGURES.glob('*.svg')}
    assert sorted(stored) == sorted(drawn)
    for name, content in drawn.items():
        assert stored[name] == content, f'{name} is old: run python docs/figures/make.py'


def test_pages_show_every_figure(drawn):
    text = ''.join(path.read_text() for path in (ROOT / 'docs').glob('*.md'))
    assert set(re.findall(r'\(figures/(\w+\.svg)\)', text)) == set(drawn)


def test_the_table_of_results_is_that_of_the_rows():
    """Means, standard deviations and counts, computed from the rows."""
    rows = defaultdict(list)
    for line in (RESULTS / 'camvid_main.jsonl').read_text().splitlines():
        row = json.loads(line)
        rows[row['method']].append(row)
    for line in (RESULTS / 'frame_camvid_linear.jsonl').read_text().splitlines():
        row = json.loads(line)
        if row['method'] == 'residual DA-VPT' and row['seed'] in (0, 1, 2):
            rows[row['method']].append(row)
    table = re.findall(
        r'^\| (.+?) \| ([\d.]+)(?: M)? \| ([\d.]+) ± ([\d.]+) \|', (ROOT / 'docs/results.md').read_text(), re.M
    )
    assert len(table) == 10
    for name, count, score, spread in table:
        measured = rows[ROWS.get(name, name)]
        assert len(measured) == 3
        scores = [row['mIoU'] for row in measured]
        assert (f'{mean(scores):.2f}', f'{stdev(scores):.2f}') == (score, spread), name
        assert round(measured[0]['tuned_trunk'] / 1e6, 3) == pytest.approx(float(count), abs=6e-4), name
