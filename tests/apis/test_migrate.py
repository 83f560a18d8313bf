"""docs/migrate.md: its diff, applied to the config that mmseg ships."""

import re
import shutil
import subprocess
from pathlib import Path

import mmseg
import pytest
import timm
import torch
from conftest import ROOT, batch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmseg.registry import MODELS
from small_configs import shrink

STOCK = Path(mmseg.__file__).parent / '.mim/configs'
LEAF = 'vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py'
DIFF = re.search(r'```diff\n(.*?)```', (ROOT / 'docs/migrate.md').read_text(), re.S)[1]


def apply_diff(diff, text):
    """The patched text. Every hunk must stand where it says, with the line counts that it says."""
    lines, out, at = text.splitlines(), [], 0
    hunks = re.split(r'^@@ (.*) @@\n', diff, flags=re.M)[1:]
    for header, body in zip(hunks[::2], hunks[1::2]):
        start, before, after = map(int, re.fullmatch(r'-(\d+),(\d+) \+\d+,(\d+)', header).groups())
        out += lines[at : start - 1]
        at = start - 1
        body = body.splitlines()
        assert sum(line[:1] != '+' for line in body) == before, header
        assert sum(line[:1] != '-' for line in body) == after, header
        for line in body:
            if line[:1] != '+':
                assert lines[at] == line[1:], f'{header}: line {at + 1} of the stock config'
                at += 1
            if line[:1] != '-':
                out.append(line[1:])
    return '\n'.join(out + lines[at:]) + '\n'


@pytest.fixture(scope='module')
def migrated(tmp_path_factory):
    """Path of the migrated config, in a copy of the folders that it needs."""
    root = tmp_path_factory.mktemp('project') / 'configs'
    shutil.copytree(STOCK / '_base_', root / '_base_')
    path = root / LEAF
    path.parent.mkdir()
    path.write_text(apply_diff(DIFF, (STOCK / LEAF).read_text()))
    return path


def test_ten_lines():
    changed = [line for line in DIFF.splitlines() if re.match(r'[+-](?![+-])', line)]
    assert len(changed) == 10


def test_patch_takes_it(tmp_path, migrated):
    """The diff is a real one: the tool that the page names gives the same file."""
    if shutil.which('patch') is None:
        pytest.skip('patch is not installed')
    path = tmp_path / 'configs' / LEAF
    path.parent.mkdir(parents=True)
    path.write_text((STOCK / LEAF).read_text())
    subprocess.run(['patch', '-p1', '--fuzz=0'], cwd=tmp_path, input=DIFF, text=True, check=True, capture_output=True)
    assert path.read_text() == migrated.read_text()


def test_only_the_lines_of_the_page_change(migrated):
    before, after = Config.fromfile(STOCK / LEAF), Config.fromfile(migrated)
    for part in ('neck', 'decode_head', 'auxiliary_head', 'test_cfg', 'pretrained'):
        assert after.model[part] == before.model[part]
    for part in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg', 'default_hooks'):
        assert after[part] == before[part]
    assert after.model.backbone == dict(type='PromptedViT', arch='vit_base_patch16_224', tuning='davpt')
    pretrained = timm.get_pretrained_cfg('vit_base_patch16_224')
    assert [255 * value for value in pretrained.mean] == after.model.data_preprocessor.mean
    assert [255 * value for value in pretrained.std] == after.model.data_preprocessor.std
    assert after.optim_wrapper.optimizer == dict(before.optim_wrapper.optimizer, lr=2e-4)


def test_it_trains(migrated, tmp_path):
    """On a tiny trunk whose weights are read from where the stock config names them."""
    cfg = Config.fromfile(migrated)
    trunk = timm.create_model('test_vit')
    torch.save(trunk.state_dict(), tmp_path / 'trunk.pth')
    shrink(cfg.model).pretrained = str(tmp_path / 'trunk.pth')
    for option in ('pretrained', 'allow_random'):  # of random weights; the stock config's way is the segmentor's option
        del cfg.model.backbone[option]
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    assert torch.equal(model.backbone.trunk.blocks[3].attn.qkv.weight, trunk.blocks[3].attn.qkv.weight)
    data = batch(150)
    model.collect_prototypes(*data)  # as PromptAssignmentHook does
    for assignment in model.guidance.assignments:
        assignment.refresh(0)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {}
    for group in optim_wrapper.optimizer.param_groups:
        rates.update((id(parameter), (group['lr'], group['weight_decay'])) for parameter in group['params'])
    for parameter in model.backbone.prompts.parameters():
        assert rates[id(parameter)] == (pytest.approx(2e-3), 0.0)
    assert rates[id(model.decode_head.conv_seg.weight)] == (pytest.approx(2e-4), 0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = model(*data, mode='loss')
    assert losses['loss_guide_patch'] > 0
    loss, _ = model.parse_losses(losses)
    optim_wrapper.update_params(loss)
    for name, value in model.named_parameters():
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) == name.startswith('backbone.trunk.'), name


def test_the_snippet_for_projects_with_own_lists_appends(tmp_path):
    """docs/migrate.md: what the project had stays, in its order; all hooks of this package are known."""
    snippet = next(
        block
        for block in re.findall(r'```python\n(.*?)```', (ROOT / 'docs/migrate.md').read_text(), re.S)
        if '*_base_' in block
    )
    (tmp_path / 'project.py').write_text(
        "custom_imports = dict(imports=['json'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.01), dict(type='EmptyCacheHook')]\n"
    )
    (tmp_path / 'mine.py').write_text(f"_base_ = 'project.py'\n{snippet}")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.custom_imports == dict(imports=['json', 'mmseg_davpt'], allow_failed_imports=False)
    assert cfg.custom_hooks[:2] == Config.fromfile(tmp_path / 'project.py').custom_hooks
    assert len(cfg.custom_hooks) > 2 and all(hook.type in HOOKS for hook in cfg.custom_hooks)
    assert all(f"type='{hook.type}'" in (ROOT / 'docs/migrate.md').read_text() for hook in cfg.custom_hooks[2:])
