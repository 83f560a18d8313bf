"""The figures of the docs are those that their script draws, from the rows that are stored."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.results import frames

FIGURES = ROOT / 'docs/figures'
RESULTS = ROOT / 'benchmarks/results'


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


@pytest.mark.parametrize('page', frames.PAGES, ids=lambda page: page.name)
def test_the_tables_of_results_are_those_of_the_rows(page):
    text = page.read_text()
    assert any(f'<!-- {name} -->' in text for name in frames.tables())
    assert frames.fill(text) == text, 'the tables are old: run python -m benchmarks.results.frames'


def test_scores_and_differences_of_the_tables():
    """By hand: t(0.975) is 4.303 with 2 degrees of freedom."""
    ours, theirs = ({seed: dict(mIoU=value) for seed, value in enumerate(values)} for values in ((3, 4, 8), (1, 3, 5)))
    assert frames.format_scores(ours) == '5.00 ± 2.65'
    assert frames.format_scores({**ours, 3: dict(mIoU=5)}) == '5.00 ± 2.16 (4)'
    assert frames.format_difference(dict(a=ours, b=theirs), 'a', 'b') == '+2.00 [-0.48, +4.48]'
    assert frames.format_difference(dict(a=ours, b={2: theirs[2]}), 'a', 'b') == '+3.00 (1)'
    assert frames.format_difference(dict(a=ours, b={}), 'a', 'b') == '-'


def test_rows_of_frame_a_come_from_the_newer_file():
    rows, stored = frames.load_rows('A'), (RESULTS / 'frame_camvid_linear.jsonl').read_text().splitlines()
    newer = [json.loads(line) for line in stored if json.loads(line)['method'] == 'LoRA q,v']
    assert len(newer) == 6 and rows['LoRA q,v'] == {row['seed']: row for row in newer}
    assert sorted(rows['full']) == [0, 1, 2]  # in camvid_main.jsonl alone
