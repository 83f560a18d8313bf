"""README, CITATION.cff, CHANGELOG: what they claim about the project."""

import re

import pytest
import yaml
from conftest import ROOT
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import mmseg_davpt
from benchmarks.results import frames
from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.commands import find_tools

README = (ROOT / 'README.md').read_text()
# Row of the table of the README -> method of frame A.
METHODS = {
    'davpt_residual': 'residual DA-VPT',
    'davpt_gated': 'gated DA-VPT',
    'bias': 'bias',
    'lora': 'LoRA q,v',
    'full': 'full',
}
STEPS = {'davpt_residual': 'residual DA-VPT', 'davpt_gated': 'gated DA-VPT', 'lora': 'LoRA', 'full': 'full tuning'}


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', '.github/ISSUE_TEMPLATE/bug_report.yml'])
def test_commands_exist(page):
    text, commands = (ROOT / page).read_text(), find_tools(ROOT / 'tools')
    for name in re.findall(r'python (tools/\w+\.py)', text):
        assert (ROOT / name).is_file()
    for name in re.findall(r'python -m (benchmarks\.\w+)', text):
        assert (ROOT / name.replace('.', '/')).with_suffix('.py').is_file()
    for name in re.findall(r'mmseg-davpt (\w+)', text):
        assert name in commands
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for name in re.findall(r'`make ([\w-]+)', text):
        assert name in targets


@pytest.mark.parametrize('tuning', METHODS)
def test_accuracies_are_those_of_the_stored_rows(tuning):
    rows = frames.load_rows('A')[METHODS[tuning]]
    line = next(line for line in README.splitlines() if line.startswith('|') and f'`{tuning}` |' in line)
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells[1] == frames.format_scores(rows)
    assert float(cells[2].removesuffix(' M')) == pytest.approx(
        rows[0]['tuned_trunk'] / 1e6, abs=6e-3 if tuning == 'full' else 6e-4
    )


def test_steps_and_memory_are_the_measured_ones():
    measured = (ROOT / 'benchmarks/results/speed.md').read_text().split('<!-- methods/trunk -->')[1]
    table = {cells[1]: cells for line in measured.splitlines() if len(cells := re.split(r' *\| *', line)) == 9}
    for tuning in METHODS:
        line = next(line for line in README.splitlines() if line.startswith('|') and f'`{tuning}` |' in line)
        step, memory = (cell.strip() for cell in line.strip('|').split('|')[3:5])
        case = table[STEPS.get(tuning, tuning)]
        assert step == f'{float(case[3]) / float(table["full tuning"][3]):.2f}'
        assert memory == f'{case[6]} MB'


def test_the_snippet_for_a_project_extends_it(tmp_path):
    """What the project had stays, in its order, and the model builds."""
    (snippet,) = (block for block in re.findall(r'```python\n(.*?)```', README, re.S) if '_base_' in block)
    (tmp_path / 'project.py').write_text(
        "_base_ = 'mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py'\n"
        "custom_imports = dict(imports=['json'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.01)]\n"
    )
    (tmp_path / 'mine.py').write_text(f"_base_ = 'project.py'\n{snippet}")
    cfg = load_config(tmp_path / 'mine.py')
    assert cfg.custom_imports.imports == ['json', 'mmseg_davpt']
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'PromptAssignmentHook']
    cfg.model.backbone.update(pretrained=False, allow_random=True, arch='test_vit', out_indices=(1, 2, 3, 5))
    cfg.model.update(neck=None, auxiliary_head=None, pretrained=None)
    cfg.model.decode_head.update(in_channels=[64] * 4, channels=8)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    assert isinstance(model, mmseg_davpt.PromptedEncoderDecoder) and model.guidance is not None
    assert model.backbone.tuning == 'davpt_residual'


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert str(citation['version']) == mmseg_davpt.__version__
    released = re.search(r'^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert released[1] == mmseg_davpt.__version__
    assert released[2] == str(citation['date-released'])


def test_the_citation_is_that_of_the_readme():
    paper = yaml.safe_load((ROOT / 'CITATION.cff').read_text())['preferred-citation']
    authors = ' and '.join(f'{person["family-names"]}, {person["given-names"]}' for person in paper['authors'])
    assert f'author={{{authors}}}' in README
    assert f'title={{{paper["title"]}}}' in README and f'year={{{paper["year"]}}}' in README


def test_pinned_linters_are_those_of_pre_commit():
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    pins = dict(re.findall(r'^(\w+)(?:\[\w+\])?==(.*)$', (ROOT / 'requirements/dev.txt').read_text(), re.M))
    assert f'rev: v{pins["ruff"]} ' in hooks
    assert f'rev: v{pins["codespell"]} ' in hooks
    assert f"'proselint=={pins['proselint']}'" in hooks
