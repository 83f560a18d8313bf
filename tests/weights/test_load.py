"""Loading is strict and reported; a file that does not fit changes nothing."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from foreign_formats import SIZES, jax_arrays, write
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import interpolate

from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.weights import WeightsError, load_trunk_weights


@pytest.fixture
def source():
    torch.manual_seed(7)
    return timm.create_model('test_vit').state_dict()


@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth', 'pytorch_model.bin'])
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


def test_a_hash_beside_the_file_is_compared(source, tmp_path):
    """safetensors has no checksum: a changed bit would be read as another number."""
    path = Path(write(source, tmp_path / 'w.safetensors'))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / 'w.safetensors.sha256').write_text(f'{digest}  w.safetensors\n')  # as sha256sum writes it
    trunk = build_trunk('test_vit')
    assert load_trunk_weights(trunk, 'test_vit', str(path)).endswith('. Checked: SHA-256 in w.safetensors.sha256')
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r'has another SHA-256 .*delete w\.safetensors\.sha256'):
        load_trunk_weights(trunk, 'test_vit', str(path))
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


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


SIZES = SIZES | dict(depth=1)
tiny = partial(VisionTransformer, **SIZES, dynamic_img_size=True)


def resampled(table, old, new):
    """A flat table ``(1, cells, D)``, bicubic and antialiased."""
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return interpolate(grid, size=new, mode='bicubic', antialias=True).flatten(2).transpose(1, 2)


class TestPositionTables:
    def load(self, state, trunk, tmp_path):
        torch.manual_seed(1)
        return load_trunk_weights(trunk, 'tiny', write(state, tmp_path / 'w.pth'))

    @pytest.mark.parametrize(
        ('options', 'prefix'),
        [
            (dict(), 1),
            (dict(no_embed_class=True), 0),
            (dict(reg_tokens=4, no_embed_class=True), 0),
            (dict(reg_tokens=4), 5),
            (dict(class_token=False, global_pool=''), 0),
        ],
        ids=['class', 'deit3', 'dinov2_reg4', 'registers', 'siglip'],
    )
    @pytest.mark.parametrize('size', [(48, 48), (16, 96)])
    def test_every_kind_of_prefix(self, tmp_path, options, prefix, size):
        state = tiny(**options).state_dict()
        trunk = tiny(**options | dict(img_size=size))
        line = self.load(state, trunk, tmp_path)
        new = (size[0] // 8, size[1] // 8)
        assert f'position grid 4x4 -> {new[0]}x{new[1]}' in line
        assert torch.equal(trunk.pos_embed[:, :prefix], state['pos_embed'][:, :prefix])
        torch.testing.assert_close(trunk.pos_embed[:, prefix:], resampled(state['pos_embed'][:, prefix:], (4, 4), new))

    def test_original_dinov2_with_registers(self, tmp_path):
        """A position for the class token, none for the registers; the trunk has neither."""
        state = tiny(reg_tokens=4, no_embed_class=True).state_dict()
        state['register_tokens'] = state.pop('reg_token')
        state |= dict(mask_token=torch.zeros(1, 32), pos_embed=torch.randn(1, 17, 32))
        trunk = tiny(reg_tokens=4, no_embed_class=True, img_size=64)
        assert 'position grid 4x4 -> 8x8' in self.load(state, trunk, tmp_path)
        torch.testing.assert_close(trunk.pos_embed, resampled(state['pos_embed'][:, 1:], (4, 4), (8, 8)))

    def test_rectangular_file(self, tmp_path):
        state = tiny(img_size=(24, 40)).state_dict()
        trunk = tiny(img_size=(24, 40))
        assert 'position grid 3x5 -> 3x5' in self.load(state, trunk, tmp_path)
        assert torch.equal(trunk.pos_embed, state['pos_embed'])
        with pytest.raises(WeightsError, match=r'16 positions.*not square.*img_size=\(H, W\)'):
            self.load(state, tiny(), tmp_path)

    def test_ambiguous_table(self, tmp_path):
        """16 cells may be 4x4, or 2x8 as in the trunk: only the author of the file knows."""
        state = tiny(img_size=(16, 64)).state_dict()
        with pytest.raises(WeightsError, match=r'4x4 or 2x8'):
            self.load(state, tiny(img_size=(16, 64)), tmp_path)

    def test_jax_table_is_resampled_like_any_other(self, tmp_path):
        state = tiny(depth=3).state_dict()
        np.savez(tmp_path / 'w.npz', **jax_arrays(state))
        trunk = tiny(depth=3, img_size=64)
        line = load_trunk_weights(trunk, 'tiny', str(tmp_path / 'w.npz'))
        assert 'position grid 4x4 -> 8x8' in line
        torch.testing.assert_close(trunk.pos_embed[:, 1:], resampled(state['pos_embed'][:, 1:], (4, 4), (8, 8)))

    @pytest.mark.parametrize(('old', 'new'), [((32, 32), (48, 48)), ((32, 32), (32, 48)), ((16, 24), (16, 24))])
    def test_relative_tables(self, tmp_path, old, new):
        beit = partial(Beit, **SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True)
        source, trunk = beit(img_size=old), beit(img_size=new)
        line = self.load(source.state_dict(), trunk, tmp_path)
        name = 'blocks.0.attn.relative_position_bias_table'
        assert f'position grid {old[0] // 8}x{old[1] // 8} -> {new[0] // 8}x{new[1] // 8}' in line
        assert torch.equal(trunk.state_dict()[name][-3:], source.state_dict()[name][-3:])  # of the class token
        if old == new:
            assert torch.equal(trunk.state_dict()[name], source.state_dict()[name])

    def test_table_without_a_place(self, tmp_path):
        state = tiny().state_dict()
        with pytest.raises(WeightsError, match=r'position table \(pos_embed\), the trunk has none'):
            self.load(state, Beit(**SIZES, use_abs_pos_emb=False), tmp_path)


class TestFinalNorm:
    def test_missing_only_where_unused(self, source, tmp_path):
        path = write({n: t for n, t in source.items() if not n.startswith('norm.')}, tmp_path / 'w.pth')
        trunk = build_trunk('test_vit')
        with pytest.raises(WeightsError, match=r'norm_outputs=False'):
            load_trunk_weights(trunk, 'test_vit', path)
        line = load_trunk_weights(trunk, 'test_vit', path, unused=('norm.weight', 'norm.bias'))
        count = len(trunk.state_dict())
        assert f'Loaded {count - 2}/{count}' in line
        assert 'left random, as no output depends on them: norm.bias, norm.weight. ' in line

    def test_unused_tensors_are_read_where_they_are(self, source, tmp_path):
        trunk = build_trunk('test_vit')
        torch.nn.init.normal_(trunk.norm.weight)
        load_trunk_weights(trunk, 'test_vit', write(source, tmp_path / 'w.pth'), unused=('norm.weight', 'norm.bias'))
        assert torch.equal(trunk.norm.weight, source['norm.weight'])

    def test_nothing_else_may_be_missing(self, source, tmp_path):
        path = write({n: t for n, t in source.items() if n not in ('norm.bias', 'cls_token')}, tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match=r'missing: cls_token\. Nothing was loaded\.$'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', path, unused=('norm.weight', 'norm.bias'))


def broken(kind, source):
    state = dict(source)
    if kind == 'missing':
        del state['blocks.3.attn.qkv.bias']
    elif kind == 'unexpected':
        state['blocks.6.norm1.weight'] = torch.ones(64)
    elif kind == 'shape':
        state['blocks.0.mlp.fc1.weight'] = torch.ones(100, 64)
    elif kind == 'width':
        state = timm.create_model('test_vit', embed_dim=32).state_dict()
    elif kind == 'depth':
        state = timm.create_model('test_vit', depth=4).state_dict()
    elif kind == 'patch':
        state = timm.create_model('test_vit', patch_size=8, img_size=80).state_dict()
    elif kind == 'relative':
        state['blocks.0.attn.relative_position_bias_table'] = torch.ones(9, 2)
    elif kind == 'transformers':
        state = {f'embeddings.patch_embeddings.projection.{kind}': torch.ones(3) for kind in ('weight', 'bias')}
    elif kind == 'resnet':
        state = {'conv1.weight': torch.ones(4, 3, 7, 7), 'layer1.0.conv1.weight': torch.ones(4, 4, 3, 3)}
    elif kind == 'architecture':
        state = timm.create_model('vit_tiny_patch16_224').state_dict()
    return state


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', r'missing: blocks\.3\.attn\.qkv\.bias'),
        ('unexpected', r'unexpected: blocks\.6\.norm1\.weight'),
        ('shape', r'blocks\.0\.mlp\.fc1\.weight \(100, 64\) instead of \(192, 64\)'),
        ('width', r'blocks\.0\.attn\.proj\.bias \(32,\) instead of \(64,\)'),
        ('depth', r'missing: blocks\.4\.attn\.proj\.bias.* and 18 more'),
        ('patch', r'patch_embed\.proj\.weight has patches of 8x8 pixels instead of 16x16'),
        ('relative', r'unexpected: blocks\.0\.attn\.relative_position_bias_table'),
        ('transformers', r'names of transformers, which are not read'),
        ('resnet', r'missing: .*unexpected: conv1\.weight, layer1'),
        ('architecture', r'of another shape: blocks\.0'),
    ],
)
def test_wrong_files_are_refused(source, tmp_path, kind, message):
    trunk = build_trunk('test_vit')
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as error:
        load_trunk_weights(trunk, 'test_vit', write(broken(kind, source), tmp_path / 'bad.pth'))
    assert 'bad.pth' in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_unreachable_hub_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(WeightsError, match=r'hub.*no route to host.*get_weights\.py test_vit'):
        load_trunk_weights(torch.nn.Identity(), 'test_vit.r160_in1k', True)
