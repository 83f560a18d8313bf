"""Mixed batches: one pass through the trunk, with the methods of each image's task."""

import pytest
import torch
from small_tasks import make_task, save_trunk

from mmseg_davpt.tasks.mixture import MixedSegmentor, can_mix, forward_mixed
from mmseg_davpt.tasks.model import build_task, share_trunk

TUNINGS = {
    'prompts': dict(tuning='vpt_deep'),
    'more prompts': dict(tuning='vpt_deep', prompts=dict(num=7)),
    'gated, one block': dict(tuning=dict(prompts=dict(gate=True)), prompts=dict(num=3, blocks=[1])),
    'residual and LoRA': dict(tuning=dict(residual_prompts={}, lora=dict(rank=2)), prompts=dict(num=2)),
    'LoRA': dict(tuning='lora', prompts=None),
    'AdaptFormer': dict(tuning='adaptformer', prompts=None),
    'Convpass': dict(tuning='convpass', prompts=None),
    'head only': dict(tuning='frozen', prompts=None),
}


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """Function from options to a model of a task, all on one trunk in memory."""
    folder = tmp_path_factory.mktemp('mixture')
    trunk = save_trunk(folder / 'trunk.safetensors')
    first = []

    def load(seed=0, **options):
        path = folder / 'a.task.safetensors'
        make_task(path, trunk, seed=seed, **options)
        _, model = build_task(path, trunk)
        for parameter in model.backbone.tuned.parameters():  # several methods begin without effect
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if first:
            share_trunk(model, first[0])
        else:
            first.append(model)
        return model

    return load


@torch.no_grad()
def test_all_methods_in_one_batch_equal_separate_passes(load):
    models = [load(seed, **options) for seed, options in enumerate(TUNINGS.values())]
    sizes = [1, 2, 1, 2, 1, 1, 2, 1]
    assert all(can_mix(models[0], model) for model in models)
    images = torch.randn(sum(sizes), 3, 48, 80)
    expected = [model.backbone(rows) for model, rows in zip(models, images.split(sizes))]
    passes = []
    mlp = models[0].backbone.trunk.blocks[0].mlp
    with mlp.register_forward_hook(lambda _, args, __: passes.append(len(args[0]))):
        mixed = forward_mixed([model.backbone for model in models], images, sizes)
    assert passes == [sum(sizes)]
    for name, maps, one in zip(TUNINGS, mixed, expected):
        torch.testing.assert_close(maps, one, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f'{name}: {text}')
    plain = models[-1].backbone(images[:1])[-1]
    for name, model in zip(TUNINGS, models[:-1]):  # each method changes the maps
        assert (model.backbone(images[:1])[-1] - plain).abs().max() > 1e-3, name


@torch.no_grad()
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_heads_run_on_the_images_of_their_task(mode, load):
    test_cfg = dict(mode='slide', crop_size=(32, 48), stride=(16, 32), slide_batch=2) if mode == 'slide' else {}
    options = dict(test_cfg=test_cfg or dict(mode='whole'))
    models = [load(0, **options), load(1, num_classes=3, tuning='lora', prompts=None, **options)]
    assert can_mix(*models)
    images = torch.randn(4, 3, 48, 80)
    metas = [dict(task=task, ori_shape=(48, 80), img_shape=(48, 80)) for task in (1, 0, 0, 1)]
    logits = MixedSegmentor(models).inference(images, metas)
    assert logits.shape == (4, 5, 48, 80)
    for row, meta in enumerate(metas):
        model = models[meta['task']]
        expected = model.inference(images[row : row + 1], [meta])[0]
        torch.testing.assert_close(logits[row, : model.out_channels], expected, rtol=1e-4, atol=1e-4)
        assert (logits[row, model.out_channels :] < -9e3).all()


def test_models_that_cannot_mix(load):
    model = load(0)
    assert can_mix(model, load(1, tuning='lora', prompts=None))
    assert not can_mix(model, load(1, tuning='bias', prompts=None))  # trained in place
    for tuning in ('vpt_shallow', 'ssf'):
        other = load(1, tuning=tuning, prompts=None)
        assert not can_mix(model, other) and not can_mix(other, model)
    assert not can_mix(model, load(1, test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32))))
