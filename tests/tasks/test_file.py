"""Task files: what they hold, and that every damage is noticed."""

import json
import os
import struct
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from small_tasks import damage, describe, make_task, save_trunk, state_of

import mmseg_davpt.tasks as tasks
from mmseg_davpt.tasks import TaskFileError, TaskInfo, is_task_file, read_info, read_task, write_task
from mmseg_davpt.tasks.file import CHECKSUM, METADATA, _checksum
from mmseg_davpt.tasks.model import build_task


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
    return save_trunk(tmp_path_factory.mktemp('trunk') / 'trunk.safetensors')


@pytest.fixture(scope='module')
def task(trunk, tmp_path_factory):
    """(path, config, model) of a guided task."""
    path = tmp_path_factory.mktemp('task') / 'a.task.safetensors'
    return path, *make_task(path, trunk, guidance=True)


def test_a_file_holds_all_but_the_frozen_trunk(task, trunk):
    path, _, model = task
    info, tensors = read_task(path)
    state = model.state_dict()
    assert tensors.keys() == {name for name in state if not name.startswith('backbone.trunk.')}
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)
    assert 'decode_head.convs.0.bn.running_mean' in tensors  # buffers, too
    assert 'guidance.assignments.0.assignment' in tensors
    assert 'guidance.assignments.0.centroids' in tensors
    assert info.arch == 'test_vit'
    with safe_open(trunk, 'pt') as file:
        assert info.trunk.tensors.keys() == set(file.keys()) == set(model.backbone.trunk.state_dict())
    assert path.stat().st_size < trunk.stat().st_size / 4


def test_the_description_follows_the_published_schema(task):
    path, _, _ = task
    with safe_open(path, 'pt') as file:  # any reader of safetensors finds it
        values = json.loads(file.metadata()[METADATA])
    schema = json.loads(Path(tasks.__file__).with_name('schema.json').read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert set(values) == set(schema['properties'])
    assert all('description' in entry or 'const' in entry for entry in schema['properties'].values())


def test_the_model_config_is_plain_and_for_inference(task):
    path, cfg, _ = task
    model = read_info(path).model
    assert model['data_preprocessor']['mean'] == cfg.model.data_preprocessor.mean
    assert model['backbone']['tuning'] == {'prompts': {'num': 3}}  # the preset, resolved
    assert model['test_cfg'] == {'mode': 'whole'}
    assert not {'guidance', 'train_cfg', 'pretrained'} & {*model, *model['backbone']}


def test_trained_tensors_of_the_trunk_are_kept(trunk, tmp_path):
    path = tmp_path / 'bias.task.safetensors'
    _, model = make_task(path, trunk, tuning='bias', prompts=None)
    info, tensors = read_task(path)
    trained = {f'backbone.trunk.{n}' for n, p in model.backbone.trunk.named_parameters() if p.requires_grad}
    assert trained == {name for name in tensors if name.startswith('backbone.trunk.')}
    assert trained.isdisjoint(f'backbone.trunk.{name}' for name in info.trunk.tensors)


def test_full_tuning_is_refused_with_the_reason(trunk, tmp_path):
    with pytest.raises(TaskFileError, match='100 % of the trunk in place: a task file would hold the trunk itself'):
        make_task(tmp_path / 'a.task.safetensors', trunk, tuning='full', prompts=None)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_is_not_written(value, task, tmp_path):
    _, cfg, model = task
    state = state_of(model)
    state['decode_head.conv_seg.bias'] = torch.full_like(state['decode_head.conv_seg.bias'], value)
    with pytest.raises(TaskFileError, match=r'decode_head\.conv_seg\.bias holds 5 values that are not finite'):
        write_task(tmp_path / 'a.task.safetensors', describe(cfg, model), state)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_file_before(task, tmp_path, monkeypatch):
    _, cfg, model = task
    path = tmp_path / 'a.task.safetensors'
    write_task(path, describe(cfg, model), state_of(model))
    before = path.read_bytes()
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left on device'):
        write_task(path, describe(cfg, model), {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    'pipeline, message',
    [
        ([dict(type='ResizeToMultiple', size_divisor=14)], 'ResizeToMultiple: a task file supports one Resize'),
        ([dict(type='Resize', scale_factor=0.5)], 'a task file supports one Resize'),
    ],
)
def test_a_pipeline_that_cannot_be_described_is_refused(pipeline, message, task):
    _, cfg, model = task
    cfg = cfg.copy()
    cfg.test_pipeline = pipeline
    with pytest.raises(TaskFileError, match=message):
        describe(cfg, model)


def test_unknown_classes_cannot_be_described(task):
    _, cfg, model = task
    cfg = cfg.copy()
    cfg.model.decode_head.type = 'MyHead'
    with pytest.raises(TaskFileError, match=r"model\.decode_head\.type: 'MyHead' is not one of"):
        describe(cfg, model)


# Damage and hostile content.


def parts(path):
    """JSON header and body of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path, source, change):
    """Write a file with a changed description, and the right checksum for it."""
    info, tensors = read_task(source)
    values = json.loads(info.to_json())
    change(values)
    text = json.dumps(values).replace(json.dumps(DEEP), '[' * 3000 + ']' * 3000)
    path.write_bytes(save(tensors, {METADATA: text, CHECKSUM: _checksum(text, tensors)}))
    return path


DEEP = 'nested lists'  # json.dumps cannot write them


def head(values):
    return values['model']['decode_head']


def backbone(values):
    return values['model']['backbone']


HOSTILE = {
    'class': (lambda v: head(v).update(type='os.system'), r'decode_head\.type'),
    'class, deep inside': (lambda v: head(v).update(a=[dict(b=dict(type='Runner'))]), r'a\[0\]\.b\.type'),
    'download': (lambda v: head(v).update(init_cfg=dict(checkpoint='http://x')), 'decode_head'),
    'weights': (lambda v: backbone(v).update(pretrained='/etc/passwd'), 'backbone'),
    'import': (lambda v: v.update(custom_imports=dict(imports=['os'])), 'custom_imports'),
    'loss': (lambda v: head(v).update(loss_decode=dict(type='DiceLoss')), 'loss_decode'),
    'large number': (lambda v: head(v).update(channels=10**9), r'channels: 1000000000 is greater than'),
    'large width': (lambda v: head(v).update(channels=16384), 'instead of'),
    'many prompts': (lambda v: backbone(v)['tuning']['prompts'].update(num=16384), 'instead of'),
    'deep': (lambda v: head(v).update(a=DEEP), 'nested too deeply'),
    'long list': (lambda v: head(v).update(a=[0] * 5000), 'too long'),
    'long text': (lambda v: head(v).update(a='x' * 5000), 'too long'),
    'terminal codes': (lambda v: v['classes'].__setitem__(0, '\x1b[2J'), r'classes\[0\]'),
    'no classes': (lambda v: v.update(classes=[]), 'classes'),
    'many classes': (lambda v: v.update(classes=['x'] * 5000), 'too long'),
    'other number of classes': (lambda v: v.update(classes=['x']), '1 classes, 5 colors'),
    'color': (lambda v: v['palette'].__setitem__(0, [0, 0, 256]), r'palette\[0\]\[2\]'),
    'true for a number': (lambda v: v['palette'].__setitem__(0, [0, 0, True]), r'palette\[0\]\[2\]'),
    'text for a number': (lambda v: head(v).update(num_classes='5'), 'num_classes'),
    'other trunk': (lambda v: v['trunk'].update(arch='vit_giant_patch14_dinov2'), 'differ'),
    'digest': (lambda v: v['trunk']['tensors'].update(cls_token='0'), r'trunk\.tensors\.cls_token'),
    'version': (lambda v: v.update(format_version=2), 'reads version 1'),
    'no version': (lambda v: v.pop('format_version'), 'reads version 1'),
    'metrics': (lambda v: v.update(metrics=dict(mIoU='high')), r'metrics\.mIoU'),
    'unknown option': (lambda v: head(v).update(surprise=1), 'its model cannot be built'),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_descriptions_are_refused(name, task, trunk, tmp_path):
    change, message = HOSTILE[name]
    path = rewrite(tmp_path / 'x.task.safetensors', task[0], change)
    with pytest.raises(TaskFileError, match=message) as caught:
        build_task(path, trunk)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_nan_in_the_description_is_refused(task):
    text = read_info(task[0]).to_json().replace('"metrics": {}', '"metrics": {"mIoU": NaN}')
    with pytest.raises(TaskFileError, match='NaN'):
        TaskInfo.from_json(text)


def test_a_missing_file_and_other_files_are_no_task_files(task, tmp_path, trunk):
    with pytest.raises(FileNotFoundError):
        read_info(tmp_path / 'none')
    assert is_task_file(task[0])
    assert not is_task_file(trunk)
    for content in (b'', b'short', b'\xff' * 100, struct.pack('<Q', 2**62) + b'{}'):
        (tmp_path / 'x').write_bytes(content)
        assert not is_task_file(tmp_path / 'x')
        with pytest.raises(TaskFileError, match='no task file'):
            read_task(tmp_path / 'x')


def test_changed_bits_are_noticed(task, tmp_path):
    size = task[0].stat().st_size
    positions = torch.randint(size, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    counts = damage(tmp_path / 'x.task.safetensors', task[0], positions)
    assert counts['refused'] >= 148  # spaces at the end of the header do not matter


def test_cut_files_are_noticed(task, tmp_path):
    data, path = task[0].read_bytes(), tmp_path / 'x.task.safetensors'
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(TaskFileError):
            read_task(path)
    path.write_bytes(data + b'0')
    with pytest.raises(TaskFileError, match='cut short or damaged'):
        read_task(path)
