"""Every shipped config builds and takes a step on a CPU, with small random inputs."""

import ast
import re
from copy import deepcopy

import pytest
import timm
import torch
from conftest import ROOT, batch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from small_configs import shrink, walk

from mmseg_davpt.apis import load_config
from mmseg_davpt.models.prototype_init import PrototypeInit
from mmseg_davpt.reports import build_shapes

ENTRIES = ('davpt_upernet_ade20k', 'davpt_upernet_miniscenes')  # with short names, for newcomers and `make train`
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_takes_a_step(path):
    """Then segments an image of another size, as its test_cfg says."""
    cfg = load_config(path)
    torch.manual_seed(0)
    model = MODELS.build(shrink(cfg.model)).train()
    classes = cfg.model.decode_head.num_classes
    if model.guidance is not None:
        part = model.guidance.assignments[0]
        part.assignment[:] = torch.arange(classes) % len(part.centroids)
    data = batch(classes)
    if not model.backbone.prompts_initialised:
        init = PrototypeInit(model.eval())
        init.collect(*data)
        init.write(seed=0)
    losses = model.train()(*data, mode='loss')
    expected = {'loss_guide_patch', 'loss_guide_proto'} if cfg.model.guidance else set()
    assert {name for name in losses if 'guide' in name} == expected
    assert len([name for name in losses if name.startswith('aux')]) == 2 * heads(cfg.model.get('auxiliary_head'))
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    optimizer.step()
    if model.test_cfg.mode == 'slide':
        model.test_cfg.update(crop_size=(64, 64), stride=(43, 43))
    images, samples = batch(classes, (64, 90), b=1)
    samples[0].set_metainfo(dict(padding_size=[0] * 4))
    with torch.no_grad():
        predicted = model.eval()(images, samples, mode='predict')[0].pred_sem_seg.data
    assert predicted.shape == (1, 64, 90)
    assert predicted.max() < classes


def heads(auxiliary):
    return len(auxiliary) if isinstance(auxiliary, (list, tuple)) else int(auxiliary is not None)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_fits_together(path):
    """Its real widths, on the meta device: neck and heads take what the trunk gives."""
    cfg = load_config(path)
    classes = cfg.model.decode_head.num_classes
    model = build_shapes(cfg.model).eval()
    model.backbone.allow_random = True  # shapes have no values
    size = [8 * patch for patch in model.backbone.patch_size]
    images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    with torch.no_grad(), model.backbone.without_tuning():
        maps = model.extract_feat(images)
        assert model.decode_head(maps).shape[:2] == (1, classes)
        auxiliary = model.auxiliary_head if model.with_auxiliary_head else torch.nn.ModuleList()
        for head in auxiliary if isinstance(auxiliary, torch.nn.ModuleList) else [auxiliary]:
            assert head(maps).shape[:2] == (1, classes)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_whole(path):
    """Its classes are registered, its class counts agree, it survives a dump."""
    cfg = load_config(path)
    init_default_scope('mmseg')
    classes = {node['num_classes'] for node in walk(cfg.model) if 'num_classes' in node}
    assert len(classes) == 1
    dataset = cfg.train_dataloader.dataset
    info = dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
    assert len(info['classes']) == classes.pop()
    assert len(info.get('palette', info['classes'])) == len(info['classes'])  # mmseg draws one where there is none
    assert all(TRANSFORMS.get(step.type) for step in cfg.train_pipeline)
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.model == cfg.model
    assert len(path.read_text().splitlines()) <= 30


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_named_as_in_mmseg(path):
    """METHOD_TRUNK_HEAD_SCHEDULE_DATASET-SIZE, and the name is true."""
    if path.stem in ENTRIES:
        return
    method, trunk, head, schedule, data = path.stem.split('_')
    cfg = load_config(path)
    tuning = cfg.model.backbone.tuning
    assert method == dict(frozen='head', vpt_deep='vpt').get(tuning, tuning.replace('_', '-'))
    size, patch = re.fullmatch(r'vit-([sbl])(\d+)', trunk).groups()
    assert re.match(rf'vit_{dict(s="small", b="base", l="large")[size]}_patch{patch}_', cfg.model.backbone.arch)
    heads = dict(upernet='UPerHead', linear='LinearBNHead', fcn='FCNHead', segmenter='SegmenterMaskTransformerHead')
    assert cfg.model.decode_head.type == dict(heads, setr='SETRUPHead')[head.split('-')[0]]
    number, unit = re.fullmatch(r'(\d+)(k|it)', schedule).groups()
    assert cfg.train_cfg.max_iters == int(number) * (1000 if unit == 'k' else 1)
    assert tuple(map(int, data.rpartition('-')[2].split('x'))) == cfg.model.data_preprocessor.size


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_does_not_repeat_its_bases(path, tmp_path):
    tree = ast.parse(path.read_text())
    bases, *rest = tree.body
    assert bases.targets[0].id == '_base_'
    names = ast.literal_eval(bases.value)
    names = [str(path.parent / name) for name in ([names] if isinstance(names, str) else names)]
    (tmp_path / 'bases.py').write_text(f'_base_ = {names!r}')
    base = Config.fromfile(tmp_path / 'bases.py')._cfg_dict
    leaf = dict(_base_=deepcopy(base))
    exec(compile(ast.Module(rest, []), str(path), 'exec'), leaf)
    leaf.pop('_base_')
    assert list(repeated(leaf, base)) == []


def repeated(leaf, base, prefix=''):
    """Keys that have the same value in both."""
    for key in leaf.keys() & base.keys():
        if isinstance(leaf[key], dict) and isinstance(base[key], dict):
            if not leaf[key].get('_delete_'):
                yield from repeated(leaf[key], base[key], f'{prefix}{key}.')
        elif leaf[key] == base[key]:
            yield f'{prefix}{key}'


def test_augreg_weights_have_their_own_statistics():
    cfg = load_config(ROOT / 'configs/davpt_upernet_ade20k.py')
    pretrained = timm.get_pretrained_cfg(cfg.model.backbone.arch)
    assert [255 * value for value in pretrained.mean] == list(cfg.model.data_preprocessor.mean)
    assert [255 * value for value in pretrained.std] == list(cfg.model.data_preprocessor.std)
    cfg = load_config(ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py')
    pretrained = timm.get_pretrained_cfg(cfg.model.backbone.arch)
    assert [255 * value for value in pretrained.mean] == pytest.approx(list(cfg.model.data_preprocessor.mean))
    assert [255 * value for value in pretrained.std] == pytest.approx(list(cfg.model.data_preprocessor.std))


def test_optimizer_gives_prompts_their_own_rate():
    from mmengine.optim import build_optim_wrapper

    cfg = load_config(ROOT / 'configs/davpt-gated-plus_vit-b16_upernet_160k_ade20k-512x512.py')
    init_default_scope('mmseg')
    cfg.model.backbone.update(pretrained=False, arch='test_vit', out_indices=(1, 2, 3, 5))
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    by_id = {id(parameter): group for group in groups for parameter in group['params']}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_id) == parameter.requires_grad, name
        if name.startswith('backbone.tuned.prompts'):
            assert by_id[id(parameter)]['lr'] == pytest.approx(2e-3)
        if name.startswith('backbone.'):
            assert id(parameter) not in by_id or by_id[id(parameter)]['weight_decay'] == 0


def test_data_root_reaches_every_loader(tmp_path):
    cfg = load_config(
        ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py', {'data_root': str(tmp_path)}
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == str(tmp_path)


def test_data_root_reaches_wrapped_datasets(tmp_path):
    path = tmp_path / 'repeated.py'
    path.write_text(f"""
_base_ = {str(ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py')!r}
__inner = dict(type='CamVidDataset', data_root='data/camvid', pipeline=[])
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=__inner))
""")
    cfg = load_config(path, {'data_root': 'elsewhere'})
    assert cfg.train_dataloader.dataset.dataset.data_root == 'elsewhere'
