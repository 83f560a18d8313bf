"""The project's own head, other losses beside the guidance, what Mask2Former asks for.

test_configs.py builds and steps every head's config.
"""

import importlib.util
import re
from importlib.machinery import ModuleSpec

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, batch, segmentor_cfg
from mmengine.config import Config
from mmseg.registry import MODELS

C = 5
PAGE = (ROOT / 'docs/heads.md').read_text()


def snippets(title):
    """The Python of one section of docs/heads.md."""
    section = PAGE.split(f'## {title}\n')[1].split('\n## ')[0]
    return re.findall(r'```python\n(.*?)```', section, re.S)


def test_linear_head_is_batch_norm_and_a_linear_layer():
    """Against the formula, on maps of two sizes."""
    head = MODELS.build(
        dict(
            type='LinearBNHead',
            in_channels=[4, 6],
            in_index=[0, 2],
            num_classes=C,
            dropout_ratio=0,
            align_corners=False,
        )
    )
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.randn(2, 6, 4, 4)]
    x = torch.cat([maps[0], F.interpolate(maps[2], (8, 8), mode='bilinear')], dim=1)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = F.conv2d((x - mean) / (var + 1e-5).sqrt(), head.conv_seg.weight, head.conv_seg.bias)
    torch.testing.assert_close(head.train()(maps), expected, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in head.parameters()) == 2 * 10 + (10 + 1) * C


def losses_of(snippet):
    """Losses of one training forward, with the page's change to the head; and the model."""
    cfg = Config(dict(model=segmentor_cfg(C)))
    cfg.merge_from_dict(Config.fromstring(snippet, '.py').to_dict())
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    for part in model.guidance.assignments:
        part.assignment[:C] = torch.arange(C) % len(part.centroids)
    data = batch(C)
    model.decode_head.dropout = None
    return model, data, model(*data, mode='loss')


class TestLosses:
    """Of docs/heads.md, each beside the guidance."""

    @pytest.mark.parametrize(
        ('index', 'name', 'own'), [(0, 'DiceLoss', 'loss_dice'), (1, 'LovaszLoss', 'loss_lovasz'), (2, 'OHEM', None)]
    )
    def test_trains_beside_the_guidance(self, index, name, own):
        snippet = snippets('Other losses')[index]
        assert name in snippet
        model, _, losses = losses_of(snippet)
        _, _, plain = losses_of('model = dict()')
        assert set(losses) - set(plain) == ({f'decode.{own}'} if own else set())
        for term in ('loss_guide_patch', 'loss_guide_proto'):  # not touched by the head's options
            assert torch.equal(losses[term], plain[term])
        total = sum(value.sum() for key, value in losses.items() if 'loss' in key)
        total.backward()
        assert total.isfinite()
        for key, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
            assert parameter.grad is None or parameter.grad.isfinite().all(), key

    def test_ignored_pixels_do_not_count(self):
        """``avg_non_ignore`` is the mean over labeled pixels; without it, ignored ones are in the divisor."""
        model, (images, samples), losses = losses_of(snippets('Other losses')[0])
        gt = torch.cat([sample.gt_sem_seg.data for sample in samples])
        logits = F.interpolate(model(images, mode='tensor'), gt.shape[1:], mode='bilinear')
        expected = F.cross_entropy(logits, gt, ignore_index=255)
        torch.testing.assert_close(losses['decode.loss_ce'], expected, rtol=1e-4, atol=1e-5)
        _, _, plain = losses_of('model = dict()')
        labeled = (gt != 255).float().mean()
        torch.testing.assert_close(plain['decode.loss_ce'], expected * labeled, rtol=1e-4, atol=1e-5)

    def test_ohem_keeps_the_hard_pixels(self):
        snippet = snippets('Other losses')[2].replace('min_kept=100000', 'min_kept=2').replace('0.7', '0.2')
        model, (images, samples), losses = losses_of(snippet)
        gt = torch.cat([sample.gt_sem_seg.data for sample in samples])
        logits = F.interpolate(model(images, mode='tensor'), gt.shape[1:], mode='bilinear')
        each = F.cross_entropy(logits, gt, ignore_index=255, reduction='none')
        hard = each > -torch.log(torch.tensor(0.2))  # the label's probability is below thresh
        assert 0 < hard.sum() < (gt != 255).sum()
        expected = (each * hard).sum() / (gt != 255).sum()
        torch.testing.assert_close(losses['decode.loss_ce'], expected, rtol=1e-3, atol=1e-5)


class TestMask2Former:
    """Without mmdet, or without compiled operators, the model says so when it is built."""

    def config(self, tmp_path):
        (tmp_path / 'mask2former.py').write_text(snippets('Mask2Former')[0])
        return Config.fromfile(tmp_path / 'mask2former.py')

    def found(self, monkeypatch, **specs):
        find = importlib.util.find_spec
        known = {name.replace('_ext', 'mmcv._ext'): spec for name, spec in specs.items()}
        monkeypatch.setattr(
            'mmseg_davpt.models.segmentor.find_spec', lambda name: known[name] if name in known else find(name)
        )

    def test_the_page_names_stock_parts(self, tmp_path):
        cfg = self.config(tmp_path)
        assert cfg.model.decode_head.type == 'Mask2FormerHead'
        assert cfg.model.backbone.type == 'PromptedViT'
        assert cfg.optim_wrapper.paramwise_cfg.custom_keys['backbone.tuned'].lr_mult == 10.0

    def test_without_mmdet(self, monkeypatch, tmp_path):
        self.found(monkeypatch, mmdet=None, _ext=ModuleSpec('mmcv._ext', loader=object()))
        with pytest.raises(ImportError, match=r"'Mask2FormerHead' needs mmdet: pip install onedl-mmdetection") as error:
            MODELS.build(self.config(tmp_path).model)
        assert 'compiled' not in str(error.value)

    @pytest.mark.parametrize('ext', [None, ModuleSpec('mmcv._ext', loader=None)], ids=['nothing', 'the stub'])
    def test_without_compiled_operators(self, monkeypatch, tmp_path, ext):
        self.found(monkeypatch, mmdet=ModuleSpec('mmdet', loader=object()), _ext=ext)
        with pytest.raises(ImportError, match=r"'Mask2FormerHead' needs mmcv's compiled operators") as error:
            MODELS.build(self.config(tmp_path).model)
        assert 'onedl-mmdetection' not in str(error.value)

    def test_other_heads_ask_for_nothing(self, monkeypatch):
        self.found(monkeypatch, mmdet=None, _ext=None)
        MODELS.build(segmentor_cfg(C))
