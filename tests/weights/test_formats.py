"""Files are told apart by content; none of them runs code; damaged ones say what is wrong."""

import argparse
import io
import os
import pickle
import zipfile
from pathlib import PosixPath

import pytest
import timm
import torch
from foreign_formats import write
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file, save_file

from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.weights import WeightsError, fetch, load_trunk_weights
from mmseg_davpt.weights.formats import read_checkpoint


@pytest.fixture
def source():
    torch.manual_seed(7)
    return timm.create_model('test_vit').state_dict()


class Touch:
    """Unpickled by a careless reader, makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestFiles:
    def test_content_decides_not_the_name(self, source, tmp_path):
        save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / 'safetensors.pth')
        torch.save(source, tmp_path / 'torch.safetensors')
        torch.save(source, tmp_path / 'old.npz', _use_new_zipfile_serialization=False)
        for name in ('safetensors.pth', 'torch.safetensors', 'old.npz'):
            trunk = build_trunk('test_vit')
            load_trunk_weights(trunk, 'test_vit', str(tmp_path / name))
            assert all(torch.equal(tensor, source[key]) for key, tensor in trunk.state_dict().items())

    @pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
    def test_bfloat16_file(self, source, tmp_path, name):
        trunk = build_trunk('test_vit', img_size=64)
        load_trunk_weights(trunk, 'test_vit', write({k: v.bfloat16() for k, v in source.items()}, tmp_path / name))
        low = source['pos_embed'][:, 1:].bfloat16().float().reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
        new = torch.nn.functional.interpolate(low, size=(4, 4), mode='bicubic', antialias=True)  # in float32
        torch.testing.assert_close(trunk.pos_embed[:, 1:], new.flatten(2).transpose(1, 2))
        assert torch.equal(trunk.norm.weight, source['norm.weight'].bfloat16().float())

    @pytest.mark.parametrize('zipped', [True, False])
    def test_no_code_is_run(self, source, tmp_path, zipped):
        path, made = tmp_path / 'w.pth', tmp_path / 'made'
        torch.save(dict(model=source, args=Touch(made)), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=r'w\.pth: .*would run code \((posix|nt)\.mkdir\).*weights_only=False'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(path))
        assert not made.exists()

    def test_no_code_of_torchscript_is_run(self, tmp_path):
        """A pickle inside a TorchScript archive that a plain unpickler would run."""
        path, made, data = tmp_path / 'w.pt', tmp_path / 'made', io.BytesIO()
        pickle.dump(dict(a=Touch(made)), data)
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/data.pkl', data.getvalue())
            archive.writestr('x/constants.pkl', b'')
        with pytest.raises(WeightsError, match=r'w\.pt'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(path))
        assert not made.exists()
        pickle.loads(data.getvalue())
        assert made.exists()  # the trap works

    def test_what_was_allowed_before_stays_allowed(self, source, tmp_path):
        """Upstream's mmengine resumes with types that compat.py allowed; reading weights must not take them away."""
        torch.save(dict(source, args=argparse.Namespace(lr=1)), tmp_path / 'w.pth')
        before = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([HistoryBuffer]):
            read_checkpoint(tmp_path / 'w.pth')
            assert HistoryBuffer in torch.serialization.get_safe_globals()
        assert argparse.Namespace not in torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(before)

    def test_other_objects_are_named(self, source, tmp_path):
        torch.save(dict(model=source, folder=PosixPath('a')), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match=r'pathlib.*PosixPath'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(tmp_path / 'w.pth'))

    @pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
    def test_download_cut_short(self, source, tmp_path, name):
        path = write(source, tmp_path / name)
        with open(path, 'r+b') as file:
            file.truncate(20_000)
        with pytest.raises(WeightsError, match=rf'Cannot read weights from .*{name}'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', path)

    def test_pointer_of_git_lfs(self, tmp_path):
        (tmp_path / 'w.pth').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
        with pytest.raises(WeightsError, match=r"starts with b'version https://git-lfs"):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(tmp_path / 'w.pth'))

    def test_no_tensors(self, tmp_path):
        torch.save(dict(epoch=3, optimizer=dict(lr=0.1)), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match=r'no tensors in it, only: epoch, optimizer'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(tmp_path / 'w.pth'))


def test_unreadable_files_are_named(tmp_path):
    trunk = build_trunk('test_vit')
    with pytest.raises(WeightsError, match=r'gone\.pth'):
        load_trunk_weights(trunk, 'test_vit', str(tmp_path / 'gone.pth'))
    for name in ('text.pth', 'text.safetensors'):
        (tmp_path / name).write_text('<html>not found</html>')
        with pytest.raises(WeightsError, match=name):
            load_trunk_weights(trunk, 'test_vit', str(tmp_path / name))


def test_get_weights_converts_once(source, tmp_path):
    """A full DINO checkpoint becomes a plain file of timm's names."""
    teacher = {f'backbone.{name}': tensor for name, tensor in source.items() if not name.startswith('head')}
    path = write(dict(teacher=teacher, student={}, epoch=1), tmp_path / 'dino.pth')
    assert fetch.fetch_weights('test_vit', tmp_path / 'w.safetensors', path) == path
    trunk = build_trunk('test_vit')
    trunk.load_state_dict(load_file(tmp_path / 'w.safetensors'))
    assert all(torch.equal(tensor, source[name]) for name, tensor in trunk.state_dict().items())
