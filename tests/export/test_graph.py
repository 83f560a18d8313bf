"""The module that exporters trace, against the segmentor."""

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import segmentor_cfg, spread
from export_cases import HEADS, METHODS, make_segmentor
from mmseg.registry import MODELS
from timm.layers.pos_embed import resample_abs_pos_embed

from mmseg_davpt.export import SegmentationGraph
from mmseg_davpt.export.graph import MatrixPooling, _resample_positions, exportable_positions
from mmseg_davpt.weights import WeightsError


def reference(model, images):
    """Logits of the segmentor for RGB pixels, in mmseg's own way."""
    inputs = model.data_preprocessor(dict(inputs=list(images.flip(1))))['inputs']
    metas = [dict(img_shape=tuple(images.shape[-2:]), ori_shape=tuple(images.shape[-2:]))] * len(images)
    with torch.no_grad():
        return model.encode_decode(inputs, metas)


def compare(model, size):
    images = torch.randint(0, 256, (2, 3, *size)).float()
    graph = SegmentationGraph(model)
    with torch.no_grad(), exportable_positions():
        logits = graph(images)
    assert logits.std() > 0.01
    torch.testing.assert_close(logits, reference(model, images), rtol=0, atol=2e-5)
    return graph


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('method', METHODS)
def test_methods_and_heads(method, head):
    model = make_segmentor(method, head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = compare(model, (64, 96))
    compare(model, (160, 112))
    assert not any('prompts.' in name for name in graph.backbone.state_dict())  # constants take their place
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in graph.parameters())


@pytest.mark.parametrize('tuning', ['vpt_shallow', 'ssf', 'dora', 'convpass', 'full', 'frozen'])
def test_further_methods(tuning):
    model = MODELS.build(segmentor_cfg(guidance=False, tuning=tuning))
    spread(model)
    compare(model.eval(), (64, 96))


@pytest.mark.parametrize('conversion', [True, False])
def test_channels_are_those_of_the_preprocessor(conversion):
    cfg = segmentor_cfg(guidance=False)
    cfg.data_preprocessor.update(bgr_to_rgb=conversion, mean=[10, 100, 200])
    model = MODELS.build(cfg).eval()
    compare(model, (64, 64))
    graph = SegmentationGraph(model, normalize=False)
    assert graph.channels == ('RGB' if conversion else 'BGR')
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        graph(images), model.encode_decode(images, [dict(img_shape=(64, 64))]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('source', [(14, 14), (7, 5), (16, 16)])
@pytest.mark.parametrize('target', [(14, 14), (9, 20), (31, 6)])
def test_positions_are_those_of_timm(source, target):
    """Larger and smaller tables, with a prefix and without."""
    for prefix in (0, 1, 5):
        table = torch.randn(1, prefix + source[0] * source[1], 8)
        expected = resample_abs_pos_embed(table, target, source, prefix)
        torch.testing.assert_close(_resample_positions(table, target, source, prefix), expected, rtol=0, atol=1e-5)


def test_pooling_is_that_of_torch():
    for size in ((1, 1), (5, 7), (12, 9), (64, 33)):
        x = torch.randn(2, 4, *size)
        for scale in (1, 2, 3, 6, (2, 5)):
            torch.testing.assert_close(MatrixPooling(scale)(x), F.adaptive_avg_pool2d(x, scale), rtol=0, atol=1e-6)


def test_what_cannot_be_exported_is_named(monkeypatch):
    model = MODELS.build(segmentor_cfg(guidance=False))
    monkeypatch.setattr(model.backbone, 'allow_random', False)
    with pytest.raises(WeightsError, match='random weights'):
        SegmentationGraph(model)
    model.decode_head = torch.nn.ModuleList([model.decode_head])  # of cascades
    with pytest.raises(ValueError, match='gives no logits'):
        SegmentationGraph(model)
    model.backbone = timm.create_model('test_vit')
    with pytest.raises(ValueError, match='not a PromptedViT'):
        SegmentationGraph(model)
