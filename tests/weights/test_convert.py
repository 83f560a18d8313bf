"""Each foreign format reads back tensor for tensor, and the log names all tensors of other modules."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from foreign_formats import (
    FORMATS,
    assert_same,
    beit,
    dinov3,
    dinov3_without_bias,
    jax_arrays,
    random_,
    skipped_in,
    some,
    vit,
    without_class,
    write,
)
from timm.layers import AttentionPoolLatent

from mmseg_davpt.weights import WeightsError, load_trunk_weights


@pytest.mark.parametrize('key', FORMATS)
def test_foreign_file_reads_back(key, tmp_path):
    build, writer, note = FORMATS[key]
    expected = random_(build()).state_dict()
    file, skipped = writer(expected)
    flat = all(isinstance(value, torch.Tensor) for value in file.values()) if isinstance(file, dict) else False
    path = write(file, tmp_path / ('w.safetensors' if flat else 'w.pth'))
    trunk = random_(build())
    line = load_trunk_weights(trunk, key, path)
    assert_same(trunk, expected)
    assert f'Loaded {len(expected)}/{len(expected)} trunk tensors' in line
    assert note in line
    assert skipped_in(line) == sorted(skipped), line


# One format per kind of trunk.
FAMILIES = ('mae', 'dinov2', 'dinov2_registers', 'dinov2_swiglu', 'dinov3', 'dinov3_without_bias', 'deit3', 'clip')
FAMILIES += ('siglip_openclip', 'eva02_mim', 'eva_clip', 'beit')
# Pairs that fit: biases of zeros are biases; a final norm that the trunk lacks is skipped.
ALSO_FIT = {('dinov3_without_bias', 'dinov3'), ('eva_clip', 'eva02_mim')}


def test_no_file_fits_another_family(tmp_path):
    trunks = {key: random_(FORMATS[key][0]()) for key in FAMILIES}
    for key in FAMILIES:
        path = write(FORMATS[key][1](trunks[key].state_dict())[0], tmp_path / f'{key}.pth')
        for other, trunk in trunks.items():
            if other == key or (key, other) in ALSO_FIT:
                load_trunk_weights(trunk, other, path)
                continue
            before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
            with pytest.raises(WeightsError, match=re.escape(path)):
                load_trunk_weights(trunk, other, path)
            assert_same(trunk, before)


def test_two_spellings_of_a_name(tmp_path):
    state = vit().state_dict()
    path = write(state | {'module.norm.bias': torch.ones(32)}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='1 of its tensors are there twice'):
        load_trunk_weights(vit(), 'vit', path)


def test_dinov3_biases_need_a_trunk_that_has_them(tmp_path):
    trunk = random_(dinov3(qkv_bias=False))
    path = write(dinov3_without_bias(trunk.state_dict(), bias=0.1)[0], tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'blocks\.0\.attn\.qkv\.bias is not zero.*_qkvb'):
        load_trunk_weights(trunk, 'x', path)


def test_beit_pretraining_shares_its_table(tmp_path):
    expected = random_(beit()).state_dict()
    table = expected['blocks.1.attn.relative_position_bias_table']
    file = {name: tensor for name, tensor in expected.items() if not re.search('bias_table|fc_norm', name)}
    file |= {'rel_pos_bias.relative_position_bias_table': table, 'rel_pos_bias.relative_position_index': torch.zeros(4)}
    other = some(
        'mask_token', 'lm_head.bias', 'norm.weight', 'norm.bias', 'cls_pt_layers.0.norm1.bias', 'cls_pt_lm_head.bias'
    )
    trunk = random_(beit())
    line = load_trunk_weights(trunk, 'beitv2', write(dict(model=file | other), tmp_path / 'w.pth'))
    assert_same(trunk, expected | {f'blocks.{i}.attn.relative_position_bias_table': table for i in range(3)}, FC_NORM)
    assert 'repeated for 3 blocks' in line
    assert skipped_in(line) == sorted([*other, 'rel_pos_bias.relative_position_index'])
    assert 'left random, as no output depends on them: fc_norm.bias, fc_norm.weight.' in line


FC_NORM = ('fc_norm.weight', 'fc_norm.bias')


class TestJax:
    def test_augreg(self, tmp_path):
        expected = random_(vit()).state_dict()
        other = {name: np.ones(3, 'f4') for name in ('head/kernel', 'head/bias', 'pre_logits/bias')}
        np.savez(tmp_path / 'w.npz', **jax_arrays(expected), **other)
        trunk = random_(vit())
        line = load_trunk_weights(trunk, 'vit', str(tmp_path / 'w.npz'))
        assert_same(trunk, expected)
        assert '4x4 -> 4x4' in line
        assert skipped_in(line) == sorted(other)

    def test_siglip_of_big_vision(self, tmp_path):
        """Image tower under ``params/img/``, blocks stacked, no class token, a text tower beside it."""
        expected = random_(without_class()).state_dict()
        arrays = {f'params/img/{n}': a for n, a in jax_arrays(expected, big_vision=True, stacked=True).items()}
        other = {n: np.ones(3, 'f4') for n in ('params/txt/pos_embedding', 'params/t', 'params/img/MAPHead_0/probe')}
        np.savez(tmp_path / 'w.npz', **arrays, **other)
        trunk = random_(without_class())
        line = load_trunk_weights(trunk, 'siglip', str(tmp_path / 'w.npz'))
        assert_same(trunk, expected)
        assert 'params/img/*' in line
        assert skipped_in(line) == ['params (3 tensors)']

    @pytest.mark.parametrize(
        ('change', 'build', 'message'),
        [
            (dict(rename=('encoderblock_2', 'encoderblock_3')), vit, r'encoderblock_2'),
            (dict(add='Transformer/encoderblock_3/LayerNorm_0/bias'), vit, r'unexpected: Transformer/encoderblock_3/L'),
            (dict(add='adapter/kernel'), vit, r'unexpected: adapter/kernel'),
            (dict(), partial(vit, init_values=0.1), r'missing: blocks\.0\.ls1\.gamma'),
            (dict(), without_class, r'17 positions'),
            (dict(), dinov3, r'a plain ViT; Eva has no such weights'),
            (dict(rename=('embedding/kernel', 'stem/kernel')), vit, r'no embedding/kernel'),
        ],
    )
    def test_nothing_is_lost(self, tmp_path, change, build, message):
        arrays = jax_arrays(random_(vit()).state_dict())
        if 'rename' in change:
            arrays = {name.replace(*change['rename']): array for name, array in arrays.items()}
        if 'add' in change:
            arrays[change['add']] = np.ones(3, 'f4')
        np.savez(tmp_path / 'w.npz', **arrays)
        trunk = random_(build())
        before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
        with pytest.raises(WeightsError, match=message):
            load_trunk_weights(trunk, 'x', str(tmp_path / 'w.npz'))
        assert_same(trunk, before)

    def test_damaged_and_bfloat16_archives(self, tmp_path):
        arrays = jax_arrays(random_(vit()).state_dict())
        np.savez(tmp_path / 'low.npz', **arrays | {'cls': np.zeros((1, 1, 32), 'V2')})
        np.savez(tmp_path / 'bad.npz', **arrays)
        data = bytearray((tmp_path / 'bad.npz').read_bytes())
        data[400] ^= 1
        (tmp_path / 'bad.npz').write_bytes(data)
        for name, message in (('low.npz', 'bfloat16'), ('bad.npz', r'damaged.*CRC')):
            with pytest.raises(WeightsError, match=rf'{name}.*{message}'):
                load_trunk_weights(vit(), 'x', str(tmp_path / name))

    def test_half_precision(self, tmp_path):
        expected = random_(vit()).state_dict()
        np.savez(tmp_path / 'w.npz', **{n: array.astype('f2') for n, array in jax_arrays(expected).items()})
        trunk = random_(vit())
        load_trunk_weights(trunk, 'vit', str(tmp_path / 'w.npz'))
        assert_same(trunk, expected)

    def test_pooler_may_be_missing(self, tmp_path):
        trunk = vit(class_token=False, global_pool='map')
        assert isinstance(trunk.attn_pool, AttentionPoolLatent)
        expected = {n: t for n, t in random_(trunk).state_dict().items() if not n.startswith('attn_pool')}
        np.savez(tmp_path / 'w.npz', **jax_arrays(expected, big_vision=True))
        line = load_trunk_weights(random_(trunk), 'siglip', str(tmp_path / 'w.npz'))
        assert_same(trunk, expected, [name for name in trunk.state_dict() if name.startswith('attn_pool')])
        assert 'left random, as no output depends on them: attn_pool (13 tensors)' in line
