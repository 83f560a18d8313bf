"""Every shipped config builds and takes a step on a CPU, with small random inputs."""

import pytest
import torch
from conftest import ROOT, batch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from mmseg_davpt.engine import load_config

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_takes_a_step(path):
    cfg = load_config(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(pretrained=False, allow_random=True)
    for node in walk(cfg.model):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    classes = cfg.model.decode_head.num_classes
    if model.guidance is not None:
        part = model.guidance.assignments[0]
        part.assignment[:] = torch.arange(classes) % len(part.centroids)
    size = (64, 64) if model.backbone.patch_size[0] == 16 else (56, 70)
    losses = model(*batch(classes, size), mode='loss')
    expected = {'loss_guide_patch', 'loss_guide_proto'} if cfg.model.guidance else set()
    assert {name for name in losses if 'guide' in name} == expected
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    optimizer.step()


def walk(node):
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from walk(child)


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


def test_augreg_weights_have_their_own_statistics():
    import timm

    cfg = load_config(ROOT / 'configs/davpt_upernet_ade20k.py')
    own = timm.get_pretrained_cfg(cfg.model.backbone.arch)
    assert [255 * value for value in own.mean] == list(cfg.model.data_preprocessor.mean)
    assert [255 * value for value in own.std] == list(cfg.model.data_preprocessor.std)
    cfg = load_config(ROOT / 'configs/davpt_upernet_camvid.py')
    own = timm.get_pretrained_cfg(cfg.model.backbone.arch)
    assert [255 * value for value in own.mean] == pytest.approx(list(cfg.model.data_preprocessor.mean))
    assert [255 * value for value in own.std] == pytest.approx(list(cfg.model.data_preprocessor.std))


def test_optimizer_gives_prompts_their_own_rate():
    from mmengine.optim import build_optim_wrapper

    cfg = load_config(ROOT / 'configs/davpt_plus_upernet_ade20k.py')
    init_default_scope('mmseg')
    cfg.model.backbone.update(pretrained=False, arch='test_vit', out_indices=(1, 2, 3, 5))
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    by_id = {id(parameter): group for group in groups for parameter in group['params']}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_id) == parameter.requires_grad, name
        if name.startswith('backbone.prompts'):
            assert by_id[id(parameter)]['lr'] == pytest.approx(2e-3)
        if name.startswith('backbone.'):
            assert id(parameter) not in by_id or by_id[id(parameter)]['weight_decay'] == 0


def test_data_root_reaches_every_loader(tmp_path):
    cfg = load_config(ROOT / 'configs/davpt_upernet_camvid.py', {'data_root': str(tmp_path)})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == str(tmp_path)
