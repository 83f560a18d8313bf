"""What the command lines do to a config."""

import pytest
import torch
from conftest import ROOT
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
    monkeypatch.setattr('mmseg_davpt.apis.launch.dist.init_process_group', started.append)
    threads = torch.get_num_threads()
    cfg = load_config(ADE)
    assert any(node.get('type') == 'SyncBN' for node in walk(cfg.model))
    prepare_launcher(cfg, 'pytorch')
    torch.set_num_threads(threads)
    assert not any(node.get('type') == 'SyncBN' for node in walk(cfg.model))
    assert cfg.model_wrapper_cfg.device_ids is None
    assert started == ['gloo']
    with pytest.raises(RuntimeError, match='slurm'):
        prepare_launcher(cfg, 'slurm')


@without_gpu
def test_amp_without_a_gpu():
    cfg = load_config(ADE)
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'CpuAmpOptimWrapper'


def test_images_are_found_or_named(tmp_path):
    for name in ('b.png', 'a.JPG', 'notes.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'empty').mkdir()
    assert [path.name for path in find_images([tmp_path])] == ['a.JPG', 'b.png']
    assert find_images([tmp_path / 'b.png']) == [tmp_path / 'b.png']
    for place in ('empty', 'gone.png'):
        with pytest.raises(FileNotFoundError, match=place):
            find_images([tmp_path / place])
    (tmp_path / 'empty/b.jpg').touch()
    with pytest.raises(ValueError, match='several images are called b'):
        find_images([tmp_path, tmp_path / 'empty'])
