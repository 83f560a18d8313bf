"""Shims act where the environment needs them, and only there."""

import importlib.util
import pickle
import subprocess
import sys

import cv2
import pytest
import torch
from conftest import ROOT
from foreign_formats import hostile_objects
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmseg.models.losses import CrossEntropyLoss

from mmseg_davpt import compat


def python(code):
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def test_timm_and_mmseg_import_after_mmseg_davpt():
    """On a CPU build of torch, `import timm` alone fails in torchvision."""
    python('import mmseg_davpt, timm, torchvision, mmseg.models, mmengine.runner')


def test_half_imported_torchvision_is_repaired():
    """Other code imported torchvision before, and caught its error."""
    python('try:\n import torchvision\nexcept RuntimeError: pass\nimport mmseg_davpt, timm')


def test_mmseg_base_configs_are_found(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = 'mmseg::_base_/schedules/schedule_20k.py'")
    code = (
        f"import mmseg_davpt; from mmengine.config import Config; print(Config.fromfile('{tmp_path}/c.py').train_cfg)"
    )
    assert '20000' in python(code)


def test_applying_twice_is_harmless():
    libraries, transform = len(compat._libraries), LoadImageFromFile.transform
    compat.apply()
    assert len(compat._libraries) == libraries
    assert LoadImageFromFile.transform is transform


def test_nothing_is_defined_where_torchvision_works(monkeypatch):
    monkeypatch.setattr(torch.library, 'Library', lambda *_: pytest.fail('not needed'))
    compat._repair_torchvision()  # it was repaired, or needed no repair, at import


def test_missing_openmmlab_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'mmcv' else find(name, *a))
    with pytest.raises(ImportError, match=r'needs mmcv: pip install -r requirements\.txt'):
        compat.apply()


def test_both_stacks_at_once_are_named(monkeypatch):
    monkeypatch.setattr(compat, 'installed', lambda name: True)
    with pytest.warns(UserWarning, match='mmengine and onedl-mmengine are both installed'):
        compat._require_openmmlab()


class TestUnreadableImages:
    def load(self, path, **options):
        return LoadImageFromFile(**options)(dict(img_path=str(path)))

    def test_what_names_no_file(self, tmp_path):
        (tmp_path / 'a.jpg').touch()
        with pytest.raises(ValueError, match=rf'image {tmp_path}/a.jpg: cannot be read \(.*empty') as error:
            self.load(tmp_path / 'a.jpg')
        assert isinstance(error.value.__cause__, cv2.error)
        assert '\n' not in str(error.value)

    def test_what_names_the_file_is_unchanged(self, tmp_path):
        (tmp_path / 'a.jpg').write_text('text')
        with pytest.raises(AssertionError, match=f'^failed to load image: {tmp_path}/a.jpg$'):
            self.load(tmp_path / 'a.jpg')
        with pytest.raises(FileNotFoundError):
            self.load(tmp_path / 'b.jpg')

    def test_ignored(self, tmp_path):
        (tmp_path / 'a.jpg').touch()
        assert self.load(tmp_path / 'a.jpg', ignore_empty=True) is None


@pytest.fixture
def upstream(monkeypatch):
    """The globals that a process on upstream mmengine allows."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    monkeypatch.setattr(compat, 'installed', lambda name: name == 'mmengine')
    compat._allow_upstream_checkpoints()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


class TestUpstreamCheckpoints:
    @pytest.mark.parametrize('attack', ['__self__', '__globals__'])
    def test_no_code_is_run(self, upstream, tmp_path, attack):
        """The types are allowed for the whole process: every torch.load must stay safe."""
        torch.save(hostile_objects(tmp_path / 'marker')[attack], tmp_path / 'w.pth')
        with pytest.raises(Exception) as error:
            torch.load(tmp_path / 'w.pth', weights_only=True)
        assert not (tmp_path / 'marker').exists(), 'the file has run code'
        assert isinstance(error.value, pickle.UnpicklingError)
        assert f"builtins.getattr of '{attack}'" in str(error.value)

    def test_logged_scalars_are_read(self, upstream, tmp_path):
        torch.save(HistoryBuffer([1.0, 3.0], [1, 1]), tmp_path / 'w.pth')
        assert torch.load(tmp_path / 'w.pth', weights_only=True).mean() == 2

    def test_getattr_itself_is_not_allowed(self, upstream):
        assert getattr not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    'name', ['__init__', '__dict__', 'update', 'statistics', '_statistics_methods', 'mean.x', b'mean']
)
def test_bounded_getattr_refuses_all_but_statistics(name):
    with pytest.raises(pickle.UnpicklingError, match='only'):
        compat.bounded_getattr(HistoryBuffer, name)


@pytest.mark.parametrize('name', ['min', 'max', 'current', 'mean'])
def test_bounded_getattr_serves_one_class(name):
    assert compat.bounded_getattr(HistoryBuffer, name) is getattr(HistoryBuffer, name)
    with pytest.raises(pickle.UnpicklingError):
        compat.bounded_getattr(type('Other', (HistoryBuffer,), {}), name)


def test_own_configs_are_found(tmp_path):
    """In mmseg's scope, not in one of the package's name, whose registries do not exist."""
    (tmp_path / 'c.py').write_text("_base_ = 'mmseg_davpt::paper/vpt_vit-l16_setr-pup_160k_ade20k-512x512.py'")
    cfg = Config.fromfile(tmp_path / 'c.py')
    expected = Config.fromfile(ROOT / 'configs/paper/vpt_vit-l16_setr-pup_160k_ade20k-512x512.py')
    assert cfg.to_dict() == expected.to_dict()


def test_an_unknown_own_config_names_similar_ones(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = ['mmseg_davpt::davpt_upernet_ade.py']")
    with pytest.raises(FileNotFoundError, match=r'no config mmseg_davpt::davpt_upernet_ade\.py; known are davpt_uper'):
        Config.fromfile(tmp_path / 'c.py')


@pytest.mark.parametrize('avg_non_ignore', [False, True])
def test_class_weights_beside_ignored_labels(avg_non_ignore):
    """As torch: a mean over the weights of the labels that count."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = 255
    weights = [0.5, 1.0, 3.0]
    loss = CrossEntropyLoss(class_weight=weights, avg_non_ignore=avg_non_ignore)(logits, labels, ignore_index=255)
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(loss, expected)
    nothing = CrossEntropyLoss(class_weight=weights)(logits, torch.full_like(labels, 255), ignore_index=255)
    assert nothing == 0


def test_tuning_replaces_a_preset(tmp_path):
    """mmengine raises a TypeError when a dict meets the string of a base config."""
    (tmp_path / 'base.py').write_text("model = dict(backbone=dict(tuning='davpt_gated', depth=3))")
    (tmp_path / 'dict.py').write_text("_base_ = 'base.py'\nmodel = dict(backbone=dict(tuning=dict(lora=dict(rank=4))))")
    (tmp_path / 'more.py').write_text("_base_ = 'dict.py'\nmodel = dict(backbone=dict(tuning=dict(bias=True)))")
    (tmp_path / 'old.py').write_text(
        "_base_ = 'base.py'\nmodel = dict(backbone=dict(tuning=dict(_delete_=True, bias=True)))"
    )
    expected = dict(dict=dict(lora=dict(rank=4)), more=dict(lora=dict(rank=4), bias=True), old=dict(bias=True))
    for name, tuning in expected.items():
        assert Config.fromfile(tmp_path / f'{name}.py').model.backbone == dict(tuning=tuning, depth=3)
    cfg = Config.fromfile(tmp_path / 'base.py')
    cfg.merge_from_dict({'model.backbone.tuning.lora.rank': 2})
    assert cfg.model.backbone.tuning == dict(lora=dict(rank=2))
