"""``TaskSegmenter``: every kind of image, several tasks on one trunk, mixed calls, threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from small_tasks import PIPELINE, describe, make_task, save_trunk, state_of
from test_inference import noise

from mmseg_davpt import TaskSegmenter
from mmseg_davpt.apis import prediction, segment_images
from mmseg_davpt.apis.images import to_rgb
from mmseg_davpt.datasets.image_files import ImageFileError
from mmseg_davpt.tasks import TaskFileError, write_task


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A trunk, three tasks on it, and two photos."""
    folder = tmp_path_factory.mktemp('segmenter')
    trunk = save_trunk(folder / 'trunk.safetensors')
    make_task(folder / 'streets.task.safetensors', trunk)
    make_task(folder / 'fashion.task.safetensors', trunk, seed=1, num_classes=3, tuning='lora', prompts=None)
    make_task(
        folder / 'biases.task.safetensors', trunk, seed=2, tuning='bias', prompts=None,
        test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32)),
    )  # fmt: skip
    for name, seed in (('a', 1), ('b', 2)):
        Image.fromarray(noise(48, 80, seed)).save(folder / f'{name}.png')
    return folder


@pytest.fixture(scope='module')
def model(folder):
    model = TaskSegmenter.load(folder / 'streets.task.safetensors', trunk=folder / 'trunk.safetensors')
    for name in ('fashion', 'biases'):
        model.add_task(name, folder / f'{name}.task.safetensors')
    return model


def test_a_result_says_everything(model, folder):
    result = model(folder / 'a.png')
    assert result.task == 'streets'
    assert result.mask.shape == result.scores.shape == (48, 80)
    assert result.mask.dtype == np.uint8
    assert result.names == tuple(f'class {index}' for index in range(5))
    assert 0.2 <= result.scores.min() <= result.scores.max() <= 1
    assert np.array_equal(result.image, noise(48, 80, 1))
    assert result.overlay(legend=False).shape == (48, 80, 3)
    assert result.overlay().shape[0] > 48


def test_it_predicts_as_the_command_line(model, folder, tmp_path):
    """On the same file, through mmseg's own loading and pipeline."""
    cfg = Config(dict(model=make_task(tmp_path / 'x', folder / 'trunk.safetensors')[0].model, test_pipeline=PIPELINE))
    segment_images(cfg, folder / 'streets.task.safetensors', [folder / 'a.png'], tmp_path)
    written = np.asarray(Image.open(tmp_path / 'masks/a.png'))
    assert np.array_equal(model(folder / 'a.png').mask, written)
    assert len(np.unique(written)) > 1


def test_scores_are_probabilities_of_the_classes(model, folder):
    """Also where the logits are resized in parts."""
    result = model(folder / 'a.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, 'MAX_LOGITS', 5 * 48 * 80 - 1)
        in_parts = model(folder / 'a.png')
    assert (in_parts.mask == result.mask).mean() > 0.999
    close = np.abs(in_parts.scores - result.scores) < 1e-3
    assert close.mean() > 0.95  # tiles see less around them
    task = model._tasks['streets']
    sample = task.prepare(result.image)
    with torch.no_grad():
        logits = task.model.test_step(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))[0]
    expected = logits.seg_logits.data.softmax(0).max(0)
    torch.testing.assert_close(torch.from_numpy(result.scores), expected.values, rtol=1e-5, atol=1e-6)
    assert np.array_equal(result.mask, expected.indices.numpy())


def test_all_kinds_of_images_are_the_same_image(model, folder):
    pixels = noise(48, 80, 1)
    expected = model(folder / 'a.png')
    for image in (
        str(folder / 'a.png'), Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    ):  # fmt: skip
        assert np.array_equal(model(image).mask, expected.mask)
    gray = noise(48, 80, 1)[..., 0]
    assert np.array_equal(model(gray).mask, model(Image.fromarray(gray)).mask)


@pytest.mark.parametrize(
    'image, error, message',
    [
        (np.zeros((4, 4, 3)), ValueError, 'an array of float64'),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r'expected uint8 of shape \(H, W, 3\)'),
        (torch.zeros(4, 4, 3), ValueError, r'expected \(3, H, W\)'),
        (torch.full((3, 4, 4), 2.0), ValueError, r'expected values in \[0, 1\]'),
        (7, TypeError, 'int: expected a path'),
        ('none.png', ImageFileError, 'no file'),
    ],
)
def test_what_is_no_image_is_refused(image, error, message, model):
    with pytest.raises(error, match=message):
        model(image)


def test_large_images_are_refused():
    with pytest.raises(ValueError, match='80x48 pixels: more than max_pixels=100'):
        to_rgb(noise(48, 80), max_pixels=100)


def test_a_mixed_call_equals_separate_ones_and_passes_the_trunk_once_per_image(model, folder):
    images = [folder / f'{name}.png' for name in 'abba'] + [noise(96, 64, 3)]
    tasks = ['streets', 'fashion', 'streets', 'biases', 'fashion']
    separate = [model(image, task=task) for image, task in zip(images, tasks)]
    seen = []
    vits = [model._tasks[task].model.backbone for task in ('streets', 'fashion')]
    assert vits[0].trunk.patch_embed.proj.weight is vits[1].trunk.patch_embed.proj.weight
    embed = vits[0].trunk.patch_embed
    with embed.register_forward_hook(lambda _, args, __: seen.append(len(args[0]))):
        mixed = model(images, tasks=tasks)
    assert seen == [3]  # both tasks in one batch; the tuned biases and the image of another size apart
    for one, other, task in zip(mixed, separate, tasks):
        assert one.task == task
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        assert (one.mask == other.mask).mean() > 0.999


def test_tasks_share_the_trunk_in_memory(model):
    pointers = [
        {p.data_ptr() for p in model._tasks[name].model.backbone.trunk.parameters()}
        for name in ('streets', 'fashion', 'biases')
    ]
    assert pointers[0] == pointers[1]
    assert len(pointers[2] & pointers[0]) > 20  # all but the tuned biases


def test_threads_do_not_disturb_one_another(model, folder):
    calls = [(folder / f'{image}.png', task) for image in 'ab' for task in ('streets', 'fashion', 'biases')] * 4
    expected = [model(image, task=task).mask for image, task in calls]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda call: model(call[0], task=call[1]).mask, calls))
    assert all(np.array_equal(one, other) for one, other in zip(results, expected))


def test_wrong_tasks_are_named(model, folder):
    with pytest.raises(ValueError, match="task='cars': expected one of 'streets', 'fashion', 'biases'"):
        model(folder / 'a.png', task='cars')
    with pytest.raises(ValueError, match='a name for each of 2 images'):
        model([folder / 'a.png'] * 2, tasks=['streets'])
    with pytest.raises(ValueError, match='give task for one image'):
        model(folder / 'a.png', tasks=['streets'])
    with pytest.raises(ValueError, match='no task was added'):
        TaskSegmenter(folder / 'trunk.safetensors')(folder / 'a.png')
    assert model([]) == []


def test_tasks_can_be_removed_and_replaced(folder):
    model = TaskSegmenter.load(folder / 'streets.task.safetensors', folder / 'trunk.safetensors', name='first')
    model.add_task('second', folder / 'fashion.task.safetensors')
    model.remove_task('first')
    assert list(model.tasks) == ['second']
    assert model(folder / 'a.png').task == 'second'
    model.add_task('second', folder / 'streets.task.safetensors')
    assert len(model.tasks['second'].classes) == 5
    with pytest.raises(ValueError, match="task='first'"):
        model.remove_task('first')


def test_a_task_of_another_architecture_is_refused(folder, tmp_path):
    other = save_trunk(tmp_path / 'other.safetensors', arch='test_vit2')
    make_task(tmp_path / 'x.task.safetensors', other, arch='test_vit2')
    model = TaskSegmenter.load(folder / 'streets.task.safetensors', folder / 'trunk.safetensors')
    with pytest.raises(TaskFileError, match='belongs to test_vit2, the tasks before to test_vit'):
        model.trunk = other
        model.add_task('x', tmp_path / 'x.task.safetensors')
    assert list(model.tasks) == ['streets']


def test_the_prompt_of_a_class_is_shown(folder, tmp_path):
    path = tmp_path / 'guided.task.safetensors'
    cfg, model = make_task(path, folder / 'trunk.safetensors', guidance=True)
    model.guidance.assignment_of[5].assignment.copy_(torch.tensor([0, 2, 2, 1, -1]))
    write_task(path, describe(cfg, model), state_of(model))
    segmenter = TaskSegmenter.load(path, folder / 'trunk.safetensors')
    assert segmenter.tasks['guided'].assigned_prompts == {'5': [0, 2, 2, 1, -1]}
    segmenter.add_task('fashion', folder / 'fashion.task.safetensors')
    image = noise(64, 64)
    maps = [segmenter.attention(image, f'class {index}') for index in range(4)]
    assert all(each.shape == (64, 64) for each in maps)
    assert np.array_equal(maps[1], maps[2])  # they share a prompt
    assert not np.array_equal(maps[0], maps[1])
    assert 0 < sum(maps[index] for index in (0, 1, 3)).max() < 1  # the three prompts take a part of the attention
    with pytest.raises(ValueError, match="'class 4' was in no training image"):
        segmenter.attention(image, 'class 4')
    with pytest.raises(ValueError, match="name='car': expected one of"):
        segmenter.attention(image, 'car')
    with pytest.raises(ValueError, match='only classes in blocks none have prompts'):
        segmenter.attention(image, 'class 0', task='fashion')
