"""Checkpoints of mmseg and of this project as trunks. The reference is the forward pass of mmseg."""

import pytest
import timm
import torch
from conftest import spread
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from timm.models.beit import Beit

from mmseg_davpt import PromptedViT
from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.weights import WeightsError, load_trunk_weights

NORM = ('norm.weight', 'norm.bias')
# The sizes of timm's test_vit.
VIT = dict(type='VisionTransformer', img_size=160, patch_size=16, embed_dims=64, num_layers=6, num_heads=2, mlp_ratio=3)
VIT |= dict(norm_cfg=dict(type='LN', eps=1e-6), out_indices=(1, 3, 5))


def stock_segmentor(**backbone):
    """A fully tuned ViT with neck and heads of mmseg."""
    head = dict(type='FCNHead', in_channels=64, channels=8, num_convs=1, num_classes=5, norm_cfg=dict(type='BN'))
    model = MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            backbone=VIT | backbone,
            neck=dict(type='MultiLevelNeck', in_channels=[64] * 3, out_channels=64, scales=[2, 1, 0.5]),
            decode_head=head | dict(in_index=2),
            auxiliary_head=head | dict(in_index=1),
        )
    )
    model.init_weights()
    spread(model)
    return model.eval()


def save(model, path):
    """Save as mmengine's Runner does, with logged scalars beside the weights."""
    hub = MessageHub.get_instance('stock')
    hub.update_scalar('train/loss', 1.5)
    meta = dict(epoch=1, iter=10, cfg='model = ...')
    optimizer = dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[])
    torch.save(dict(meta=meta, state_dict=model.state_dict(), message_hub=hub.state_dict(), optimizer=optimizer), path)
    return str(path)


@pytest.mark.parametrize(
    'backbone',
    [
        dict(),
        dict(patch_bias=True, final_norm=True),
        dict(img_size=(64, 96)),
        dict(pre_norm=True, final_norm=True),
    ],
    ids=['stock', 'final_norm', 'rectangular', 'pre_norm'],
)
def test_stock_checkpoint_is_a_trunk(tmp_path, backbone):
    """The trunk's features equal those of the backbone that wrote the file."""
    model = stock_segmentor(**backbone)
    path = save(model, tmp_path / 'iter_10.pth')
    size = backbone.get('img_size', (160, 160))
    options = dict(pre_norm=True) if backbone.get('pre_norm') else {}
    trunk = timm.create_model('test_vit', num_classes=0, img_size=size, **options)
    line = load_trunk_weights(trunk, 'test_vit', path, unused=NORM)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model.backbone(x)
        options = dict(indices=[1, 3, 5], output_fmt='NCHW', intermediates_only=True)
        features = trunk.eval().forward_intermediates(x, norm=False, **options)
        if backbone.get('final_norm'):  # mmseg applies it to the last output only
            features[-1] = trunk.forward_intermediates(x, norm=True, **options)[-1]
    for feature, reference in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)
    heads = [name for name in model.state_dict() if not name.startswith('backbone.')]
    for part in ('neck', 'decode_head', 'auxiliary_head'):
        assert f'{part} ({sum(name.startswith(part) for name in heads)} tensors)' in line
    without_bias = not backbone.get('patch_bias') and not backbone.get('pre_norm')  # timm has none before a norm
    assert ('patch_embed.proj.bias of zeros, as the file has none' in line) == without_bias
    assert ('left random' in line) == (not backbone.get('final_norm'))
    grid = 'x'.join(str(side // 16) for side in size)
    assert "'state_dict' (beside message_hub, meta, optimizer), backbone.*, OpenMMLab names" in line
    assert f'position grid {grid} -> {grid}' in line


def test_no_final_norm_is_refused_where_it_is_needed(tmp_path):
    path = save(stock_segmentor(), tmp_path / 'w.pth')
    trunk = build_trunk('test_vit')
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with pytest.raises(WeightsError, match=r'missing: norm\.bias, norm\.weight\..*norm_outputs=False'):
        load_trunk_weights(trunk, 'test_vit', path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_backbone_option(tmp_path):
    """Through the option of the backbone, the last feature map equals mmseg's, final norm included."""
    model = stock_segmentor(patch_bias=True, final_norm=True)
    path = save(model, tmp_path / 'w.pth')
    backbone = PromptedViT('test_vit', path, out_indices=(5,), tuning='frozen')
    backbone.init_weights()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(x)[-1], model.backbone(x)[-1], rtol=1e-4, atol=1e-4)


def test_without_final_norm_through_the_config(tmp_path):
    """mmseg's ViT has no final norm by default: norm_outputs=False needs none, and the features equal mmseg's."""
    model = stock_segmentor(patch_bias=True, final_norm=False)
    path = save(model, tmp_path / 'w.pth')
    backbone = PromptedViT('test_vit', path, out_indices=(2, 5), tuning='frozen', norm_outputs=False)
    backbone.init_weights()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(x)[-1], model.backbone(x)[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError, match=r'no final norm.*norm_outputs=False'):
        PromptedViT('test_vit', path, out_indices=(2, 5), tuning='frozen').init_weights()


def test_beit_of_mmseg(tmp_path):
    sizes = dict(img_size=(32, 32), patch_size=8, num_heads=2, init_values=0.1)
    options = dict(embed_dims=32, num_layers=2, norm_cfg=dict(type='LN', eps=1e-6), out_indices=(0, 1))
    model = MODELS.build(dict(type='BEiT', qv_bias=True, **sizes, **options))
    model.init_weights()
    spread(model)
    torch.save(dict(state_dict={f'backbone.{n}': t for n, t in model.state_dict().items()}), tmp_path / 'w.pth')
    options = dict(embed_dim=32, depth=2, num_classes=0, use_abs_pos_emb=False, use_rel_pos_bias=True)
    trunk = Beit(**sizes, **options).eval()
    model.eval()
    line = load_trunk_weights(trunk, 'beit', str(tmp_path / 'w.pth'))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = trunk.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
        for feature, reference in zip(features, model(x), strict=True):
            torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)
    assert 'blocks.0.attn.relative_position_index, blocks.1.attn.relative_position_index' in line


class TestCheckpointsOfThisProject:
    def checkpoint(self, path, tuning):
        prompts = dict(num=2) if tuning.startswith('davpt') else None
        model = PromptedViT('test_vit', False, out_indices=(5,), prompts=prompts, tuning=tuning, allow_random=True)
        spread(model)
        state = {f'backbone.{name}': tensor for name, tensor in model.state_dict().items()}
        torch.save(dict(state_dict=state | {'decode_head.conv_seg.weight': torch.ones(2)}), path)
        return model, str(path)

    def test_trunk_is_read_and_prompts_are_skipped(self, tmp_path):
        model, path = self.checkpoint(tmp_path / 'w.pth', 'davpt')
        trunk = build_trunk('test_vit')
        line = load_trunk_weights(trunk, 'test_vit', path)
        for name, tensor in model.trunk.state_dict().items():
            assert torch.equal(trunk.state_dict()[name], tensor)
        assert 'backbone.trunk.*' in line
        assert 'skipped: backbone.tuned.prompts (7 tensors), decode_head.conv_seg.weight.' in line

    @pytest.mark.parametrize(
        ('tuning', 'part'),
        [('lora', r'tuned\.lora\.layers\.0\.q'), ('adaptformer', r'tuned\.adaptformer\.branches\.0\.down')],
    )
    def test_lora_and_adapters_are_not_lost(self, tmp_path, tuning, part):
        _, path = self.checkpoint(tmp_path / 'w.pth', tuning)
        with pytest.raises(WeightsError, match=rf'backbone\.{part}.*not what was trained'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', path)

    def test_split_biases_are_merged_first(self, tmp_path):
        """A trunk without its tuned biases is not what was trained; merged, it is."""
        model, path = self.checkpoint(tmp_path / 'w.pth', 'davpt_plus')
        with pytest.raises(WeightsError, match=r'backbone\.tuned\.bias\.offsets\.0\.k.*merged_trunk'):
            load_trunk_weights(build_trunk('test_vit'), 'test_vit', path)
        with pytest.raises(ValueError, match='prompts cannot be merged'):
            model.merged_trunk()
        with pytest.raises(ValueError, match="no method 'lora'"):
            model.merged_trunk(['lora'])
        merged = model.merged_trunk(['bias'])
        torch.save(merged, tmp_path / 'merged.pth')
        trunk = build_trunk('test_vit')
        load_trunk_weights(trunk, 'test_vit', str(tmp_path / 'merged.pth'))
        offsets = model.tuned['bias'].offsets['3']
        bias = model.trunk.blocks[3].attn.qkv.bias + torch.cat([torch.zeros(64), offsets['k'], offsets['v']])
        assert torch.equal(trunk.blocks[3].attn.qkv.bias, bias)
        assert not torch.equal(bias, model.trunk.blocks[3].attn.qkv.bias)
