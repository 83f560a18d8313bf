"""The content of a file decides on its format; no file runs code; errors name the damage."""

import argparse
import contextlib
import io
import os
import pickle
import zipfile
from pathlib import PosixPath

import pytest
import timm
import torch
from foreign_formats import Call, hostile_objects, write
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import load_file, save_file

from mmseg_davpt.compat import checkpoint_types
from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.weights import WeightsError, fetch, load_trunk_weights
from mmseg_davpt.weights.formats import read_checkpoint


@pytest.fixture
def source():
    torch.manual_seed(7)
    return timm.create_model('test_vit').state_dict()


class Touch:
    """Makes a folder when an unsafe reader unpickles it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@contextlib.contextmanager
def unchanged_statistics():
    statistics = dict(HistoryBuffer._statistics_methods)
    yield
    HistoryBuffer._statistics_methods.clear()
    HistoryBuffer._statistics_methods.update(statistics)


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
        path, marker = tmp_path / 'w.pth', tmp_path / 'marker'
        torch.save(dict(model=source, args=Touch(marker)), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=r'w\.pth: .*would run code \((posix|nt)\.mkdir\).*weights_only=False'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(path))
        assert not marker.exists()

    @pytest.mark.parametrize('attack', ['__self__', '__globals__'])
    @pytest.mark.parametrize(('name', 'zipped'), [('w.pth', True), ('w.pth', False), ('w.safetensors', True)])
    @pytest.mark.parametrize('allowed_elsewhere', [(), (getattr,)], ids=['', 'getattr_allowed'])
    def test_getattr_reaches_no_code(self, source, tmp_path, attack, name, zipped, allowed_elsewhere):
        """``getattr`` without bounds leads to ``eval``, also when other code of the process has allowed it."""
        path, marker = tmp_path / name, tmp_path / 'marker'
        content = dict(model=source, args=hostile_objects(marker)[attack])
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with torch.serialization.safe_globals(allowed_elsewhere), pytest.raises(WeightsError) as error:
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(path))
        assert not marker.exists(), 'the file has run code'
        assert str(path) in str(error.value)
        assert f"would run code (builtins.getattr of '{attack}')" in str(error.value)

    @pytest.mark.parametrize('attack', ['__self__', '__globals__'])
    def test_the_attack_works_on_a_reader_without_bounds(self, tmp_path, attack):
        torch.save(hostile_objects(tmp_path / 'marker')[attack], tmp_path / 'w.pth')
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()  # on upstream, the bounded function is among them
        try:
            with torch.serialization.safe_globals([getattr]), contextlib.suppress(Exception):
                torch.load(tmp_path / 'w.pth', weights_only=True)
        finally:
            torch.serialization.add_safe_globals(allowed)
        assert (tmp_path / 'marker').exists()

    def test_a_file_cannot_extend_the_allowed_names(self, tmp_path):
        """HistoryBuffer adds the statistics that a file brings to those of the class."""
        history = HistoryBuffer([1.0], [1])
        history._statistics_methods = dict(history._statistics_methods, __init__=HistoryBuffer.mean)
        with unchanged_statistics():
            torch.save([history, Call(getattr, HistoryBuffer, '__init__')], tmp_path / 'w.pth')
            with pytest.raises(WeightsError, match=r"builtins\.getattr of '__init__'"):
                read_checkpoint(tmp_path / 'w.pth')

    def test_checkpoint_of_mmengine(self, source, tmp_path):
        """Logged scalars beside the weights come back with their statistics."""
        hub = MessageHub('a run')
        for value in (1.0, 2.0, 6.0):
            hub.update_scalar('train/loss', value)
        torch.save(dict(state_dict=source, message_hub=hub.state_dict()), tmp_path / 'iter_3.pth')
        history = read_checkpoint(tmp_path / 'iter_3.pth')['message_hub']['log_scalars']['train/loss']
        assert isinstance(history, HistoryBuffer)
        statistics = {name: float(history.statistics(name)) for name in ('min', 'max', 'current', 'mean')}
        assert statistics == dict(min=1, max=6, current=6, mean=3)
        load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(tmp_path / 'iter_3.pth'))

    def test_no_code_of_torchscript_is_run(self, tmp_path):
        """The archive holds a pickle that a plain unpickler would run."""
        path, marker, data = tmp_path / 'w.pt', tmp_path / 'marker', io.BytesIO()
        pickle.dump(dict(a=Touch(marker)), data)
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/data.pkl', data.getvalue())
            archive.writestr('x/constants.pkl', b'')
        with pytest.raises(WeightsError, match=r'w\.pt'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', str(path))
        assert not marker.exists()
        pickle.loads(data.getvalue())
        assert marker.exists()  # the attack works

    @pytest.mark.parametrize('allowed', [(), (HistoryBuffer, getattr), tuple(checkpoint_types())])
    def test_allowed_globals_of_the_process_stay_the_same(self, source, tmp_path, allowed):
        """Upstream's mmengine resumes with types that compat.py allowed; reading weights must not remove them."""
        torch.save(dict(source, args=argparse.Namespace(lr=1)), tmp_path / 'w.pth')
        before = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(allowed)
        read_checkpoint(tmp_path / 'w.pth')
        after = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
        assert set(after) == {*before, *allowed}

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
