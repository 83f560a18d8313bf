"""The commands, as a user runs them, on a tiny trunk and generated scenes."""

import json
import math
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, run, tool
from mmseg.apis import inference_model, init_model
from small_tasks import save_trunk

from mmseg_davpt.apis import load_config, segment_images

pytestmark = pytest.mark.slow
PROMPTS = 'backbone.tuned.residual_prompts.tokens'


@pytest.fixture(scope='module')
def trained(tiny_config, tmp_path_factory):
    """(work dir, log file of the training)."""
    work_dir = tmp_path_factory.mktemp('trained')
    tool('train', tiny_config, '--work-dir', work_dir)
    return work_dir, log_of(work_dir)


def log_of(work_dir):
    return next(work_dir.glob('*/*.log')).read_text()


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def assert_same_weights(a, b):
    a, b = load(a)['state_dict'], load(b)['state_dict']
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_training_logs_what_matters(trained):
    _, log = trained
    assert re.search(r'residual_prompts +2,944 +2,944', log)  # prompts and values, 2 * (5 * 4 + 3) * 64
    assert 'Prompt assignment of block 5' in log
    assert 'loss_guide_patch' in log
    assert 'loss_guide_proto' in log
    assert 'mIoU' in log


def test_assignment_is_made_refreshed_and_saved(trained):
    work_dir, log = trained
    lines = re.findall(r'Prompt assignment of block 5: (\d+) classes on 3 prompts; (\d+) moved', log)
    assert len(lines) == 2  # before training, and after 4 iterations: one pass over 8 images, 2 a batch
    state = load(work_dir / 'iter_6.pth')['state_dict']
    assignment = state['guidance.assignments.0.assignment']
    assert assignment.max() == 2  # 16 classes share 3 prompts
    assert (assignment >= 0).sum() == int(lines[-1][0])


def test_only_tuned_parts_change(trained):
    work_dir, _ = trained
    early, late = (load(work_dir / f'iter_{i}.pth')['state_dict'] for i in (3, 6))
    for name, value in early.items():
        frozen = name.startswith('backbone.trunk.')
        assert torch.equal(value, late[name]) == frozen or not frozen, name
    assert not torch.equal(early[f'{PROMPTS}.0'], late[f'{PROMPTS}.0'])


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_run_equals_uninterrupted_run(tiny_config, trained, tmp_path, workers):
    """Bit for bit: weights, BN statistics, guidance state. The first part has no workers; the number may change."""
    options = ('--cfg-options', f'train_dataloader.num_workers={workers}')
    part = tmp_path / 'part'
    part.mkdir()
    (part / 'iter_3.pth').write_bytes((trained[0] / 'iter_3.pth').read_bytes())
    (part / 'last_checkpoint').write_text(str(part / 'iter_3.pth'))
    printed = tool('train', tiny_config, '--work-dir', part, '--resume', *options)
    assert f'continues after iteration 3, from {part}/iter_3.pth' in printed
    assert 'resumed epoch: 0, iter: 3' in log_of(part)
    assert_same_weights(part / 'iter_6.pth', trained[0] / 'iter_6.pth')


def test_guidance_does_not_change_what_is_drawn(tiny_config, trained, tool_here, tmp_path):
    """At weight zero, through the Runner with its warm-up, training is that of unguided prompts bit for bit."""
    start = ('model.backbone.prompts.init=xavier',)
    zero = ('model.guidance.weight_patch=0', 'model.guidance.weight_proto=0', *start)
    plain = ('model.guidance=None', *start, 'model.backbone.tuning=vpt_residual')
    tool_here('train', tiny_config, '--work-dir', tmp_path / 'zero', '--cfg-options', *zero)
    tool_here('train', tiny_config, '--work-dir', tmp_path / 'vpt', '--cfg-options', *plain)
    a = load(tmp_path / 'zero/iter_6.pth')['state_dict']
    b = load(tmp_path / 'vpt/iter_6.pth')['state_dict']
    assert set(a) - set(b) == {name for name in a if name.startswith('guidance.')}
    for name, value in b.items():
        assert torch.equal(a[name], value), name
    guided = load(trained[0] / 'iter_6.pth')['state_dict']
    assert not torch.equal(guided[f'{PROMPTS}.5'], b[f'{PROMPTS}.5'])


def test_amp_trains_in_bfloat16_on_a_cpu(tiny_config, tool_here, tmp_path):
    tool_here('train', tiny_config, '--work-dir', tmp_path, '--amp', '--cfg-options', 'train_cfg.max_iters=2')
    log = log_of(tmp_path)
    assert 'CpuAmpOptimWrapper' in log
    losses = re.findall(r' loss: (\S+)', log)
    assert len(losses) == 2
    assert all(math.isfinite(float(loss)) for loss in losses)


def test_prototype_start(tiny_config, tool_here, tmp_path):
    tool_here(
        'train', tiny_config, '--work-dir', tmp_path, '--cfg-options',
        'model.backbone.prompts.init=prototype', 'train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1',
        'optim_wrapper.optimizer.lr=0.',
    )  # fmt: skip
    state = load(tmp_path / 'iter_1.pth')['state_dict']
    bound = (6 / (3 * 16 * 16 + 64)) ** 0.5 / 8
    for block in range(6):
        tokens = state[f'{PROMPTS}.{block}']
        assert (tokens.abs().amax(dim=1) > bound).all()  # no longer Xavier's
        assert len(tokens.unique(dim=0)) == len(tokens)


def test_test_command(tiny_config, trained, tool_here, tmp_path):
    printed = tool_here(
        'test', tiny_config, trained[0] / 'iter_6.pth', '--work-dir', tmp_path, '--out', tmp_path / 'masks',
        '--show-dir', tmp_path / 'shown',
    )  # fmt: skip
    assert re.search(r'\| +sky +\|', printed)
    during = re.findall(r'mIoU: (\S+)', trained[1])[-1]
    assert re.findall(r'mIoU: (\S+)', printed)[-1] == during  # the same as the validation while training
    assert 'prompts' in printed.split('mIoU')[-1]
    assert str(trained[0] / 'iter_6.pth') in printed.splitlines()[-2]
    grid = cv2.imread(printed.splitlines()[-1].split(': ')[1])
    assert grid is not None
    assert grid.shape[1] > 600
    masks = sorted((tmp_path / 'masks').glob('*.png'))
    assert len(masks) == 3
    assert cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED).min() >= 1  # ids as in the annotations, 0 is unlabeled
    shown = sorted((tmp_path / 'shown').rglob('*.png'))
    assert [path.stem for path in shown] == [path.stem for path in masks]
    height, width = cv2.imread(str(masks[0])).shape[:2]
    picture = cv2.imread(str(shown[0]))
    assert picture.shape[1] >= 3 * width  # image, truth and prediction
    assert picture.shape[0] > height  # the legend
    assert 'paramwise_cfg' not in printed  # the config goes to the log file
    results = json.loads((tmp_path / 'test_iter_6.json').read_text())
    assert results['single_scale']['metrics']['mIoU'] == float(during)
    assert results['single_scale']['protocol']['mode'] == 'whole'
    assert 'multi_scale' not in results


def test_infer_command(tiny_config, trained, scenes, tmp_path):
    folder = scenes / 'seed0/images/validation'
    broken = tmp_path / 'broken.jpg'
    broken.write_text('not a picture')
    code, printed = tool(
        'infer', tiny_config, trained[0] / 'iter_6.pth', folder, broken, '--out', tmp_path / 'out', '--device', 'cpu',
        check=False,
    )  # fmt: skip
    assert code == 1
    assert f'{broken}: cannot be read as an image' in printed  # named, and the others are written
    assert '3 of 4 images segmented' in printed
    masks = sorted((tmp_path / 'out/masks/validation').iterdir())  # of several paths, folders keep their names
    assert [path.stem for path in masks] == [path.stem for path in sorted(folder.iterdir())]
    model = init_model(str(tiny_config), str(trained[0] / 'iter_6.pth'), device='cpu')
    expected = inference_model(model, str(sorted(folder.iterdir())[0])).pred_sem_seg.data[0].numpy()
    assert np.array_equal(cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED), expected + 1)  # as in the annotations
    overlay = cv2.imread(str(tmp_path / 'out/overlays/validation' / f'{masks[0].stem}.jpg'))
    assert overlay.shape[0] > 240  # with a legend
    assert overlay.shape[1:] == (320, 3)


class TestBadInput:
    @pytest.fixture
    def fails(self, tool_here):
        """Runs a command and returns the message of its error, which Python prints last."""

        def message(*command):
            with pytest.raises(Exception) as error:
                tool_here(*command)
            return str(error.value).splitlines()[-1]

        return message

    def test_missing_checkpoint(self, fails, tiny_config, tmp_path):
        assert 'nowhere.pth' in fails('test', tiny_config, tmp_path / 'nowhere.pth', '--work-dir', tmp_path)

    def test_checkpoint_of_another_model(self, fails, tiny_config, trained, tmp_path):
        state = load(trained[0] / 'iter_6.pth')
        del state['state_dict']['backbone.trunk.blocks.0.attn.qkv.weight']
        torch.save(state, tmp_path / 'part.pth')
        line = fails('test', tiny_config, tmp_path / 'part.pth', '--work-dir', tmp_path)
        assert 'part.pth does not fit this config' in line
        assert 'backbone.trunk.blocks.0.attn.qkv.weight is missing' in line

    def test_missing_weights_before_training(self, fails, tiny_config, tmp_path):
        line = fails(
            'train', tiny_config, '--work-dir', tmp_path, '--cfg-options', 'model.backbone.pretrained=gone.pth',
            'model.backbone.allow_random=False',
        )  # fmt: skip
        assert 'gone.pth' in line

    def test_random_trunk(self, fails, tiny_config, tmp_path):
        line = fails('train', tiny_config, '--work-dir', tmp_path, '--cfg-options', 'model.backbone.allow_random=False')
        assert 'has random weights' in line
        assert not list(tmp_path.glob('*.pth'))

    def test_missing_config(self):
        code, printed = tool('train', 'configs/typo.py', check=False)
        assert code != 0
        assert 'no config at configs/typo.py' in printed.splitlines()[-1]


def test_runner_keeps_the_trunk_equal_to_the_file(tiny_config, tool_here, tmp_path):
    """Through init_weights, training and a checkpoint."""
    import timm

    source = timm.create_model('test_vit').state_dict()
    torch.save(source, tmp_path / 'w.pth')
    tool_here(
        'train', tiny_config, '--work-dir', tmp_path / 'run', '--cfg-options',
        f'model.backbone.pretrained={tmp_path}/w.pth', 'model.backbone.allow_random=False', 'train_cfg.max_iters=3',
    )  # fmt: skip
    state = load(tmp_path / 'run/iter_3.pth')['state_dict']
    own = {name.removeprefix('backbone.trunk.'): value for name, value in state.items() if 'backbone.trunk.' in name}
    assert set(source) - set(own) == {'head.weight', 'head.bias'}
    for name, value in own.items():
        assert torch.equal(value, source[name]), name


def test_param_report(tool_here):
    printed = tool_here('param_report', ROOT / 'configs/davpt-gated-plus_vit-b16_upernet_160k_ade20k-512x512.py')
    assert re.search(r'prompts +184,332', printed)  # 12 * 20 * 768, 12 gates
    assert re.search(r'bias +18,432', printed)  # 12 * 2 * 768


SAME_STATE = """
import torch
from mmengine.dist import all_gather, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SameStateHook(Hook):
    def after_train(self, runner):
        assert get_world_size() == 2
        model = runner.model.module
        names = [n for n in model.state_dict() if 'running' not in n and 'batches' not in n]  # BN is per process
        for name in names:
            first, second = all_gather(model.state_dict()[name].contiguous())
            assert torch.equal(first, second), name
        with open(f'{runner.work_dir}/same{runner.rank}.txt', 'w') as file:
            file.write(f'{len(names)} {model.guidance.assignments[0].assignment.tolist()}')
"""


class TestDistributed:
    @pytest.fixture(scope='class')
    @classmethod
    def pair(cls, tiny_config, tmp_path_factory):
        """(work dir, what was printed) of two ranks that compare their states in the end."""
        folder = tmp_path_factory.mktemp('pair')
        (folder / 'same_state.py').write_text(SAME_STATE)
        config = folder / 'same.py'
        config.write_text(
            f'_base_ = {str(tiny_config)!r}\n'
            "custom_imports = dict(imports=['mmseg_davpt', 'same_state'])\n"
            "custom_hooks = [*_base_.custom_hooks, dict(type='SameStateHook')]\n"
        )
        command = (ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', folder / 'run')
        return folder / 'run', run(*command, MASTER_PORT=free_port(), PYTHONPATH=f'{ROOT}:{folder}')

    def test_two_processes_train(self, pair):
        work_dir, printed = pair
        assert (work_dir / 'iter_6.pth').is_file()
        assert 'Distributed training: True' in log_of(work_dir)
        assert 'GPU number: 2' in log_of(work_dir)
        assert '6 iterations = 3 epochs of 2 iterations, 4 images each' in printed
        assert len(json.loads((work_dir / 'run_record.json').read_text())['images']) == 3  # of both ranks, each once

    def test_same_data_as_one_process_with_twice_the_batch(self, tiny_config, tool_here, tmp_path):
        """The class means are summed over the ranks: they equal those of one process that sees all images."""
        still = ('--cfg-options', 'optim_wrapper.optimizer.lr=0.', 'train_cfg.max_iters=3')  # BN is per process
        command = (ROOT / 'tools/dist_train.sh', tiny_config, 2, '--work-dir', tmp_path / 'two', *still)
        run(*command, MASTER_PORT=free_port())
        tool_here('train', tiny_config, '--work-dir', tmp_path / 'one', *still, 'train_dataloader.batch_size=4')
        two, one = (load(tmp_path / name / 'iter_3.pth')['state_dict'] for name in ('two', 'one'))
        name = 'guidance.assignments.0.'
        assert torch.equal(two[name + 'assignment'], one[name + 'assignment'])
        torch.testing.assert_close(two[name + 'weights'], one[name + 'weights'], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(two[name + 'centroids'], one[name + 'centroids'], rtol=1e-3, atol=1e-4)

    def test_both_ranks_hold_the_same_state(self, pair):
        """Every buffer and parameter, compared over the processes at the end of training."""
        first, second = ((pair[0] / f'same{rank}.txt').read_text() for rank in range(2))
        assert first == second

    def test_two_nodes_on_loopback(self, tiny_config, tmp_path):
        environment = dict(
            os.environ,
            PYTHON=sys.executable,
            OMP_NUM_THREADS='1',
            PYTHONPATH=str(ROOT),
            NNODES='2',
            MASTER_PORT=free_port(),
        )
        command = (ROOT / 'tools/dist_train.sh', tiny_config, '1', '--work-dir', tmp_path)
        nodes = [
            subprocess.Popen(
                [*command, '--cfg-options', 'train_cfg.max_iters=3'],
                env=dict(environment, NODE_RANK=str(rank)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]  # fmt: skip
        printed = [node.communicate(timeout=300)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], printed[0][-3000:]
        assert (tmp_path / 'iter_3.pth').is_file()


def test_a_project_elsewhere(tmp_path):
    """Somebody's own mmseg project: own config, own dataset, own class names, our package through custom_imports."""
    rng = np.random.default_rng(0)
    for folder in ('photos', 'labels'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
    for index in range(4):
        cv2.imwrite(str(tmp_path / f'data/photos/{index}.png'), rng.integers(0, 255, (70, 90, 3), np.uint8))
        mask = rng.integers(0, 3, (7, 9), np.uint8).repeat(10, 0).repeat(10, 1)
        mask[:5] = 255
        cv2.imwrite(str(tmp_path / f'data/labels/{index}.png'), mask)
    (tmp_path / 'my_config.py').write_text("""
default_scope = 'mmseg'
custom_imports = dict(imports=['mmseg_davpt'], allow_failed_imports=False)
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset', data_root='data', img_suffix='.png', seg_map_suffix='.png',
        data_prefix=dict(img_path='photos', seg_map_path='labels'), pipeline=pipeline,
        metainfo=dict(classes=('soil', 'crop', 'weed'), palette=[[90, 60, 30], [40, 160, 40], [200, 40, 40]])))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2), logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='PromptAssignmentHook')]
log_processor = dict(by_epoch=False)
model = dict(
    type='PromptedEncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, seg_pad_val=255, size=(64, 64)),
    backbone=dict(type='PromptedViT', arch='test_vit', pretrained=False, allow_random=True, out_indices=(5,),
                  prompts=dict(num=4), tuning='davpt_plus'),
    guidance=dict(type='MetricGuidance', num_classes=3),
    decode_head=dict(type='FCNHead', in_channels=64, channels=16, num_convs=1, concat_input=False, num_classes=3,
                     norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
work_dir = 'out'
""")
    (tmp_path / 'my_train.py').write_text("""
from mmengine.config import Config
from mmengine.runner import Runner
Runner.from_cfg(Config.fromfile('my_config.py')).train()
""")
    printed = run(sys.executable, 'my_train.py', cwd=tmp_path)
    assert len(re.findall(r'loss_guide_patch: \S+', printed)) == 2
    meta = load(tmp_path / 'out/iter_2.pth')['meta']['dataset_meta']
    assert meta['classes'] == ('soil', 'crop', 'weed')
    state = load(tmp_path / 'out/iter_2.pth')['state_dict']
    assert sorted(state['guidance.assignments.0.assignment'].tolist()) == [0, 1, 2]


def test_a_task_file_serves_all_commands(tiny_config, tool_here, tmp_path, scenes):
    """Training writes it; testing and segmenting give the same from it as from the whole checkpoint."""
    trunk = save_trunk(tmp_path / 'trunk.safetensors')
    config = tmp_path / 'task.py'
    config.write_text(f"""
_base_ = {str(tiny_config)!r}
model = dict(backbone=dict(pretrained={str(trunk)!r}, allow_random=False))
default_hooks = dict(checkpoint=dict(type='TaskFileHook', keep_trunk=True))
""")
    tool_here('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=3')
    whole, task = (tmp_path / 'run' / f'iter_3{suffix}' for suffix in ('.pth', '.task.safetensors'))
    assert task.stat().st_size < whole.stat().st_size / 2
    cfg = load_config(config)
    image = next((scenes / 'seed0').rglob('*.jpg'), None) or next((scenes / 'seed0/images').rglob('*.png'))
    for name, file in (('whole', whole), ('task', task)):
        assert segment_images(cfg.copy(), file, [image], tmp_path / name) == {}
    masks = [cv2.imread(str(next((tmp_path / name / 'masks').iterdir())), -1) for name in ('whole', 'task')]
    assert np.array_equal(*masks)
    printed = tool_here('test', config, task, '--work-dir', tmp_path / 'test')
    assert re.search(r'mIoU-SS: [\d.]+', printed)
