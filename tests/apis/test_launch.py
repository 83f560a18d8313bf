"""What the command lines do to a config."""

import datetime
import runpy
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from small_configs import walk

from mmseg_davpt.apis import enable_amp, load_config, prepare_launcher
from mmseg_davpt.apis.inference import find_images

ADE = ROOT / 'configs/davpt_upernet_ade20k.py'
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')


def test_work_dir_in_mmseg_order(tmp_path):
    """Command line, then config, then the config's name."""
    (tmp_path / 'mine.py').write_text(f"_base_ = {str(ADE)!r}\nwork_dir = 'in_config'")
    assert load_config(ADE).work_dir == 'work_dirs/davpt_upernet_ade20k'
    assert load_config(tmp_path / 'mine.py').work_dir == 'in_config'
    assert load_config(tmp_path / 'mine.py', work_dir='given').work_dir == 'given'


@without_gpu
def test_gloo_without_a_gpu(monkeypatch):
    """SyncBN gives way, and the model is wrapped for no device."""
    started = []
    monkeypatch.setattr(
        'mmseg_davpt.apis.launch.dist.init_process_group', lambda *args, **options: started.append((args, options))
    )
    threads = torch.get_num_threads()
    cfg = load_config(ADE)
    assert any(node.get('type') == 'SyncBN' for node in walk(cfg.model))
    prepare_launcher(cfg, 'pytorch')
    torch.set_num_threads(threads)
    assert not any(node.get('type') == 'SyncBN' for node in walk(cfg.model))
    assert cfg.model_wrapper_cfg.device_ids is None
    assert started == [(('gloo',), dict(timeout=datetime.timedelta(minutes=30)))]
    with pytest.raises(RuntimeError, match='slurm'):
        prepare_launcher(cfg, 'slurm')


@without_gpu
def test_amp_without_a_gpu():
    cfg = load_config(ADE)
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'CpuAmpOptimWrapper'


@without_gpu
@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16, None])
def test_amp_without_a_gpu_takes_options_of_a_gpu(dtype):
    """``--amp --cfg-options optim_wrapper.dtype=bfloat16``, and configs that were written for a GPU."""
    cfg = load_config(ADE)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype, loss_scale='dynamic')
    cfg.optim_wrapper.pop('constructor')
    enable_amp(cfg)
    model = torch.nn.Linear(2, 2)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with wrapper.optim_context(model):
        assert model(torch.zeros(1, 2)).dtype == torch.bfloat16


@without_gpu
def test_amp_without_a_gpu_refuses_float16():
    cfg = load_config(ADE, {'optim_wrapper.dtype': 'float16'})
    with pytest.raises(ValueError, match=r"optim_wrapper.dtype='float16' needs a GPU"):
        enable_amp(cfg)


@pytest.mark.parametrize(('options', 'expected'), [([], False), (['--resume'], True)])
def test_config_without_resume(options, expected, tmp_path, scenes, monkeypatch):
    """The key is optional in mmseg."""
    cfg = load_config(ROOT / 'configs/davpt_upernet_miniscenes.py', {'data_root': str(scenes)})
    cfg.pop('resume')
    cfg.dump(tmp_path / 'config.py')
    built = []

    class Built(Exception):
        pass

    def build(cfg):
        built.append(cfg)
        raise Built

    monkeypatch.setattr(Runner, 'from_cfg', build)
    monkeypatch.setattr('sys.argv', ['train.py', str(tmp_path / 'config.py'), *options])
    with pytest.raises(Built):
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert built[0].resume is expected


def test_images_are_found_or_named(tmp_path):
    for name in ('b.png', 'a.JPG', 'notes.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'empty').mkdir()
    assert [path.name for path in find_images([tmp_path])] == ['a.JPG', 'b.png']
    assert find_images([tmp_path / 'b.png']) == {tmp_path / 'b.png': Path('b.png')}
    for place in ('empty', 'gone.png'):
        with pytest.raises(FileNotFoundError, match=place):
            find_images([tmp_path / place])
    (tmp_path / 'empty/b.jpg').touch()
    assert find_images([tmp_path])[tmp_path / 'empty/b.jpg'] == Path('empty/b.jpg')
