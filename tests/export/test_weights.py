"""Full checkpoints and trunks for timm, and the command line."""

import runpy

import pytest
import timm
import torch
from conftest import ROOT, segmentor_cfg, spread
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from mmseg_davpt.apis.inference import load_segmentor
from mmseg_davpt.export import save_full, save_timm


def build(**backbone):
    cfg = Config(dict(model=segmentor_cfg(guidance=False, out_indices=(0, 1, 2), **backbone)))
    model = MODELS.build(cfg.model)
    spread(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'tuned' in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.dataset_meta = dict(classes=('a', 'b', 'c', 'd', 'e'), palette=[[index] * 3 for index in range(5)])
    return model.eval(), cfg


@pytest.fixture
def files(tmp_path):
    """A config and a checkpoint as training writes it, with an optimizer."""
    model, cfg = build(tuning=dict(lora=True, bias=True))
    cfg.dump(str(tmp_path / 'config.py'))
    state = dict(state_dict=model.state_dict(), optimizer=dict(state={}), message_hub={}, meta=dict(
        dataset_meta=model.dataset_meta, iter=5))  # fmt: skip
    torch.save(state, tmp_path / 'iter_5.pth')
    return model, tmp_path


def export(monkeypatch, folder, *options):
    monkeypatch.setattr('sys.argv', ['export.py', str(folder / 'config.py'), str(folder / 'iter_5.pth'), *options])
    runpy.run_path(str(ROOT / 'tools/export.py'), run_name='__main__')


def test_a_full_checkpoint_loads_everywhere(files, monkeypatch):
    model, folder = files
    export(monkeypatch, folder, '--to', 'full', '--out', str(folder / 'full.pth'))
    kept = torch.load(folder / 'full.pth', weights_only=True)
    assert set(kept) == {'state_dict', 'meta'}
    cfg = Config.fromfile(folder / 'config.py')
    loaded = load_segmentor(cfg, folder / 'full.pth')
    assert loaded.dataset_meta == model.dataset_meta
    stock = MODELS.build(cfg.model)
    load_checkpoint(stock, str(folder / 'full.pth'), strict=True)
    for other in (loaded, stock):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_timm_loads_a_merged_trunk(files, monkeypatch, capsys):
    model, folder = files
    export(monkeypatch, folder, '--to', 'timm', '--out', str(folder / 'trunk.safetensors'))
    call = capsys.readouterr().out.split('Load it with: ')[1].splitlines()[0]
    trunk = eval(call, dict(timm=timm)).eval()
    images = torch.randn(2, 3, *trunk.patch_embed.img_size)
    expected = model.backbone(images)[-1]
    with torch.no_grad():
        maps = trunk.forward_intermediates(images, indices=[2], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)
    with model.backbone.without_tuning():
        assert (model.backbone(images)[-1] - expected).abs().max() > 1e-2  # the methods matter


@pytest.mark.parametrize('options', [dict(), dict(img_size=(96, 64))], ids=['own size', 'img_size'])
def test_timm_loads_other_layouts(tmp_path, options):
    model, _ = build(tuning='bias', arch='test_vit', **options)
    call = save_timm(model.backbone, tmp_path / 'trunk.safetensors')
    trunk = eval(call, dict(timm=timm)).eval()
    for name, value in model.backbone.merged_trunk().items():
        assert torch.equal(trunk.state_dict()[name], value), name


def test_what_cannot_merge_says_why(tmp_path):
    model, _ = build(tuning='vpt_deep')
    with pytest.raises(ValueError, match='prompts cannot be merged into the trunk: they are additional keys'):
        save_timm(model.backbone, tmp_path / 'trunk.safetensors')
    model, _ = build(tuning='adaptformer')
    with pytest.raises(ValueError, match='it adds a computation, not a weight'):
        save_timm(model.backbone, tmp_path / 'trunk.safetensors')
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_survives_a_failure(tmp_path, monkeypatch):
    model, cfg = build()
    (tmp_path / 'full.pth').write_text('the old one')
    monkeypatch.setattr(torch, 'save', lambda *_: (_ for _ in ()).throw(OSError('no space')))
    with pytest.raises(OSError, match='no space'):
        save_full(model, cfg, tmp_path / 'full.pth')
    assert (tmp_path / 'full.pth').read_text() == 'the old one'


@pytest.mark.parametrize(
    'options', [('--to', 'onnx'), ('--to', 'full', '--dynamic'), ('--to', 'torch', '--size', '64', '64', '--dynamic')]
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, options):
    with pytest.raises(SystemExit):
        export(monkeypatch, tmp_path, '--out', 'file', *options)


def test_the_command_line_exports_programs(files, monkeypatch, capsys):
    _, folder = files
    export(monkeypatch, folder, '--to', 'torch', '--size', '64', '96', '--out', str(folder / 'model.pt2'))
    printed = capsys.readouterr().out
    assert 'images 3x3x64x96: largest error of the logits' in printed
    assert torch.export.load(folder / 'model.pt2').module()(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)
