"""Weights: strict, named, reported; nothing is loaded when something is wrong."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmseg_davpt.trunks import WeightsError, build_trunk, load_trunk_weights


@pytest.fixture
def source():
    torch.manual_seed(7)
    return timm.create_model('test_vit').state_dict()


def write(state, path):
    if path.suffix == '.safetensors':
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
def test_every_tensor_is_read(source, tmp_path, name):
    trunk = build_trunk('test_vit')
    line = load_trunk_weights(trunk, 'test_vit', write(source, tmp_path / name))
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, source[key])
    count = len(trunk.state_dict())
    assert f'Loaded {count}/{count} trunk tensors' in line
    assert name in line
    assert '10x10 -> 10x10' in line
    assert 'head.weight' in line  # named as skipped


def test_half_precision_file(source, tmp_path):
    trunk = build_trunk('test_vit')
    load_trunk_weights(trunk, 'test_vit', write({k: v.half() for k, v in source.items()}, tmp_path / 'w.safetensors'))
    for key, value in trunk.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, source[key].half().float())


def test_position_table_is_resampled_to_img_size(source, tmp_path):
    trunk = build_trunk('test_vit', img_size=(64, 96))
    line = load_trunk_weights(trunk, 'test_vit', write(source, tmp_path / 'w.pth'))
    assert '10x10 -> 4x6' in line
    grid = source['pos_embed'][:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
    new = torch.nn.functional.interpolate(grid, size=(4, 6), mode='bicubic', antialias=True)
    torch.testing.assert_close(trunk.pos_embed[:, 1:], new.flatten(2).transpose(1, 2))


def broken(kind, source):
    state = dict(source)
    if kind == 'missing':
        del state['blocks.3.attn.qkv.bias']
    elif kind == 'unexpected':
        state['blocks.6.norm1.weight'] = torch.ones(64)
    elif kind == 'shape':
        state['blocks.0.mlp.fc1.weight'] = torch.ones(100, 64)
    elif kind == 'architecture':
        state = timm.create_model('vit_tiny_patch16_224').state_dict()
    return state


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', r'missing: blocks\.3\.attn\.qkv\.bias'),
        ('unexpected', r'unexpected: blocks\.6\.norm1\.weight'),
        ('shape', r'blocks\.0\.mlp\.fc1\.weight \(100, 64\) instead of \(192, 64\)'),
        ('architecture', r'test_vit'),
    ],
)
def test_wrong_files_are_refused(source, tmp_path, kind, message):
    trunk = build_trunk('test_vit')
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as error:
        load_trunk_weights(trunk, 'test_vit', write(broken(kind, source), tmp_path / 'bad.pth'))
    assert 'bad.pth' in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_unreadable_files_are_named(tmp_path):
    trunk = build_trunk('test_vit')
    with pytest.raises(WeightsError, match=r'gone\.pth'):
        load_trunk_weights(trunk, 'test_vit', str(tmp_path / 'gone.pth'))
    for name in ('text.pth', 'text.safetensors'):
        (tmp_path / name).write_text('<html>not found</html>')
        with pytest.raises(WeightsError, match=name):
            load_trunk_weights(trunk, 'test_vit', str(tmp_path / name))


def test_unreachable_hub_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(WeightsError, match=r'hub.*no route to host.*get_weights\.py test_vit'):
        load_trunk_weights(torch.nn.Identity(), 'test_vit.r160_in1k', True)
