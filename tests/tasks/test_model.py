"""Segmentors of task files: on the right trunk, on a wrong one, on a shared one."""

import pytest
import timm
import torch
from conftest import batch
from mmengine.runner import load_checkpoint
from mmseg.apis import init_model
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file
from small_tasks import make_task, save_trunk, state_of, task_cfg

from mmseg_davpt import WeightsError
from mmseg_davpt.apis.task_conversion import task_from_checkpoint
from mmseg_davpt.tasks import read_info, read_task
from mmseg_davpt.tasks.model import build_task, share_trunk
from mmseg_davpt.tuning import TUNING_METHODS

METHODS = {
    'prompts': dict(tuning='vpt_deep', prompts=dict(num=3)),
    'gated': dict(tuning='davpt_gated', prompts=dict(num=3, blocks=(2, 5)), guidance=True),
    'residual': dict(tuning='vpt_residual', prompts=dict(num=3)),
    'shallow': dict(tuning='vpt_shallow', prompts=dict(num=3)),
    **{
        name: dict(tuning=name, prompts=None)
        for name in (
            'frozen', 'lora', 'dora', 'adaptformer', 'parallel_adapter', 'convpass', 'ssf', 'bias', 'norm', 'partial-1',
        )
    },
    'class token': dict(tuning=dict(cls_token=True), prompts=None),
    'mixed': dict(tuning=dict(prompts=dict(num=2, gate=True), lora={}, bias=('v',)), prompts=None),
}  # fmt: skip


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
    return save_trunk(tmp_path_factory.mktemp('trunk') / 'trunk.safetensors')


def logits(model, images):
    with torch.no_grad():
        return model.encode_decode(images, [dict(img_shape=images.shape[-2:])] * len(images))


@pytest.mark.parametrize('name', METHODS)
def test_every_method_returns_from_its_file(name, trunk, tmp_path):
    path = tmp_path / 'a.task.safetensors'
    _, model = make_task(path, trunk, **METHODS[name])
    _, again = build_task(path, trunk)
    images, _ = batch()
    torch.testing.assert_close(logits(again, images), logits(model, images), rtol=0, atol=0)
    own, state = model.state_dict(), again.state_dict()
    assert state.keys() == {key for key in own if not key.startswith('guidance.')}
    assert all(torch.equal(state[key], own[key]) for key in state)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_methods_above_are_all_that_are_registered():
    tested = {'prompts', 'residual_prompts', 'shallow_prompts', 'blocks', 'cls_token', 'lora', 'dora', 'adaptformer'}
    tested |= {'parallel_adapter', 'convpass', 'ssf', 'bias', 'norm'}
    package = {key for key, method in TUNING_METHODS.module_dict.items() if method.__module__.startswith('mmseg_davpt')}
    assert package - tested == {'stem'}  # trained with all blocks only: refused


def test_another_trunk_is_refused_with_the_first_tensor(trunk, tmp_path):
    path = tmp_path / 'a.task.safetensors'
    make_task(path, trunk)
    state = load_file(trunk)
    state['blocks.3.mlp.fc1.weight'][0, 0] += 1e-3
    save_file(state, tmp_path / 'other.safetensors')
    with pytest.raises(
        WeightsError, match=r'other weights than test_vit .*other\.safetensors: blocks\.3\.mlp\.fc1\.weight differs'
    ) as caught:
        build_task(path, tmp_path / 'other.safetensors')
    assert str(path) in str(caught.value)
    with pytest.raises(WeightsError, match=r'blocks\.0\..* and \d+ more tensors differ'):
        build_task(path, save_trunk(tmp_path / 'third.safetensors', seed=1))


def test_the_type_of_the_trunk_file_does_not_matter(trunk, tmp_path):
    """A float16 file of the same values is the same trunk; one that rounds them is another."""
    state = {name: tensor.half().float() for name, tensor in load_file(trunk).items()}
    save_file(state, tmp_path / 'rounded.safetensors')
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / 'half.safetensors')
    make_task(tmp_path / 'a.task.safetensors', tmp_path / 'rounded.safetensors')
    build_task(tmp_path / 'a.task.safetensors', tmp_path / 'half.safetensors')
    with pytest.raises(WeightsError, match='other weights'):
        build_task(tmp_path / 'a.task.safetensors', trunk)


def test_a_position_table_of_another_size_is_named(trunk, tmp_path):
    path = tmp_path / 'a.task.safetensors'
    cfg, _ = make_task(path, trunk, img_size=96)
    build_task(path, trunk)  # the description holds img_size
    cfg.model.backbone.img_size = 128
    with pytest.raises(
        WeightsError, match=r'position table of 6x6 patches; this model has 8x8\. Set backbone\.img_size'
    ):
        init_model(cfg, str(path), device='cpu')


def test_a_missing_trunk_file_is_named(trunk, tmp_path):
    make_task(tmp_path / 'a.task.safetensors', trunk)
    with pytest.raises(WeightsError, match=r'No pretrained weights at .*none\.pth'):
        build_task(tmp_path / 'a.task.safetensors', tmp_path / 'none.pth')
    with pytest.raises(ValueError, match='trunk=False: expected the path'):
        build_task(tmp_path / 'a.task.safetensors', False)


def test_mmseg_loads_a_task_file(trunk, tmp_path):
    """``mmseg.apis.init_model``, which knows nothing of task files, fills in the trunk too."""
    path = tmp_path / 'a.task.safetensors'
    cfg, model = make_task(path, trunk, guidance=True)
    again = init_model(cfg.copy(), str(path), device='cpu')
    images, _ = batch()
    torch.testing.assert_close(logits(again, images), logits(model, images), rtol=0, atol=0)
    assert again.dataset_meta['classes'] == tuple(f'class {index}' for index in range(5))


def test_mmseg_refuses_a_task_file_without_its_trunk(trunk, tmp_path):
    path = tmp_path / 'a.task.safetensors'
    cfg, _ = make_task(path, trunk)
    cfg.model.backbone.pretrained = False
    with pytest.raises(WeightsError, match=r'holds no trunk.*set backbone\.pretrained to the weights of test_vit'):
        init_model(cfg, str(path), device='cpu')


def test_a_trunk_that_was_never_loaded_segments_nothing(trunk):
    model = MODELS.build(task_cfg(trunk).model).eval()
    with pytest.raises(WeightsError, match='The trunk test_vit has random weights'):
        logits(model, batch()[0])


def test_a_state_without_the_trunk_loads_into_a_trained_model(trunk, tmp_path):
    """As on --resume: the trunk is there, and stays."""
    cfg, model = make_task(tmp_path / 'a.task.safetensors', trunk, tuning='bias', prompts=None)
    torch.save(dict(state_dict=state_of(model)), tmp_path / 'slim.pth')
    assert (tmp_path / 'slim.pth').stat().st_size < trunk.stat().st_size / 4
    again = MODELS.build(cfg.model)
    again.init_weights()
    load_checkpoint(again, str(tmp_path / 'slim.pth'), strict=True)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_tasks_share_the_tensors_of_one_trunk(trunk, tmp_path):
    paths = [tmp_path / f'{name}.task.safetensors' for name in 'ab']
    _, first = make_task(paths[0], trunk)
    _, second = make_task(paths[1], trunk, seed=1, num_classes=3, tuning='bias', prompts=None)
    (_, a), (_, b) = (build_task(path, trunk) for path in paths)
    shared = share_trunk(b, a)
    sizes = {name: p.nbytes for name, p in a.backbone.trunk.named_parameters()}
    own = {name for name, p in second.backbone.trunk.named_parameters() if p.requires_grad}
    assert shared == sum(size for name, size in sizes.items() if name not in own)
    pointers = {name: p.data_ptr() for name, p in a.backbone.trunk.named_parameters()}
    for name, parameter in b.backbone.trunk.named_parameters():
        assert (parameter.data_ptr() == pointers[name]) == (name not in own), name
    images, _ = batch()
    torch.testing.assert_close(logits(a, images), logits(first, images), rtol=0, atol=0)
    torch.testing.assert_close(logits(b, images), logits(second, images), rtol=0, atol=0)


def test_timm_reads_the_trunk_from_its_hub(trunk, tmp_path, monkeypatch):
    make_task(tmp_path / 'a.task.safetensors', trunk)
    state = load_file(trunk)

    def create(arch, pretrained=False, _create=timm.create_model, **options):
        model = _create(arch, **options)
        if pretrained:
            model.load_state_dict(state, strict=False)  # no classifier
        return model

    monkeypatch.setattr(timm, 'create_model', create)
    build_task(tmp_path / 'a.task.safetensors', 'timm')


@pytest.mark.parametrize('name', ['residual', 'bias', 'mixed'])
def test_a_full_checkpoint_becomes_a_task_file(name, trunk, tmp_path):
    cfg, model = make_task(tmp_path / 'a.task.safetensors', trunk, **METHODS[name])
    info = read_info(tmp_path / 'a.task.safetensors')
    meta = dict(classes=info.classes, palette=[list(color) for color in info.palette])
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta)), tmp_path / 'full.pth')
    task_from_checkpoint(cfg, tmp_path / 'full.pth', tmp_path / 'b.task.safetensors')
    first, again = (read_task(tmp_path / f'{file}.task.safetensors') for file in 'ab')
    assert first[0].trunk == again[0].trunk
    assert first[1].keys() == again[1].keys()
    assert all(torch.equal(first[1][key], again[1][key]) for key in first[1])
