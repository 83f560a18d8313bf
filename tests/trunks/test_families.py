"""Every family of docs/backbones.md: against timm, against the literal concatenation, tuned, in a training step."""

import re

import families
import oracles
import pytest
import timm
import torch
from conftest import ROOT, batch, segmentor_cfg, spread
from families import ARCHS, DEPTH, DIMS, FAMILIES, image_size, is_beit
from mmseg.registry import MODELS
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import nn

from mmseg_davpt.models import PromptedViT

TOLERANCE = dict(rtol=0, atol=1e-9)
HAS_TABLE = [arch for arch in ARCHS if is_beit(arch)]


@pytest.fixture
def small(monkeypatch):
    """Make trunks 96 wide and 3 deep; the fixture is that builder, for references."""
    return families.shrink(monkeypatch)


def build(arch, **options):
    size = image_size(arch)
    options = dict(arch=arch, pretrained=False, img_size=size, out_indices=(0, 2), norm_outputs=_normed(arch)) | options
    model = PromptedViT(**options, allow_random=True)
    spread(model)
    with torch.no_grad():  # tables and gammas of zeros would hide an error
        for name, parameter in model.trunk.named_parameters():
            if 'gamma' in name or 'relative_position' in name:
                parameter.normal_()
    return model


def _normed(arch):
    return 'pe_spatial' not in arch  # it has no final norm


def reference(small, model):
    """timm's model with the same weights; its norm is before or after the pooling."""
    options = {} if is_beit(model.arch) else dict(dynamic_img_size=True, dynamic_img_pad=True)
    trunk = small(model.arch, num_classes=0, img_size=image_size(model.arch), **options)
    state = model.trunk.state_dict()
    if pooled := not isinstance(trunk.fc_norm, nn.Identity):
        state = {re.sub('^norm', 'fc_norm', name): value for name, value in state.items()}
    trunk.load_state_dict(state)
    if pooled:
        trunk.norm = trunk.fc_norm
    return trunk.to(next(model.parameters()).dtype).eval()


def images(arch, dtype=torch.float32):
    return torch.randn(2, 3, *image_size(arch), dtype=dtype)


@pytest.mark.parametrize('arch', ARCHS)
def test_without_prompts_equals_timm(small, arch):
    model = build(arch, tuning='frozen').eval()
    x = images(arch)
    with torch.no_grad():
        expected = reference(small, model).forward_intermediates(
            x, indices=[0, 2], norm=_normed(arch), intermediates_only=True
        )
        for a, b in zip(model(x), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize('arch', ARCHS)
def test_prompts_equal_the_literal_concatenation(small, arch):
    """Outputs and gradients of the prompts, in float64, and again through the cached keys and values of eval mode."""
    model = build(arch, prompts=dict(num=[5, 3], blocks=(0, 2))).double().train()
    x = images(arch, torch.float64)
    tokens = {int(index): parameter for index, parameter in model.prompts.tokens.items()}
    literal = oracles.vpt_deep(reference(small, model), tokens, x, (0, 2), _normed(arch))
    fast = model(x)
    for a, b in zip(fast, literal, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    weights = [torch.randn_like(m) for m in fast]
    gradients = torch.autograd.grad(sum((m * w).sum() for m, w in zip(fast, weights)), list(tokens.values()))
    expected = torch.autograd.grad(sum((m * w).sum() for m, w in zip(literal, weights)), list(tokens.values()))
    for a, b in zip(gradients, expected, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, **TOLERANCE)
    with torch.no_grad():
        for a, b in zip(model.eval()(x), literal, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize('arch', [family.archs[0] for family in FAMILIES])
def test_gates_of_zero_give_timm(small, arch):
    model = build(arch, prompts=dict(num=5, gate=True)).double().eval()
    x = images(arch, torch.float64)
    trunk = reference(small, model)
    expected = trunk.forward_intermediates(x, indices=[0, 2], norm=_normed(arch), intermediates_only=True)
    with torch.no_grad():
        assert not torch.allclose(model(x)[-1], expected[-1], atol=1e-4)
        for gate in model.prompts.gates.values():
            gate.zero_()
        for a, b in zip(model(x), expected, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize('gate', [False, True])
@pytest.mark.parametrize('arch', [family.archs[0] for family in FAMILIES])
def test_explicit_attention_equals_the_fused_one(small, arch, gate):
    """timm's option ``fused_attn``, for machines where the explicit form is faster."""
    model = build(arch, prompts=dict(num=5, gate=gate)).double().eval()
    x = images(arch, torch.float64)
    with torch.no_grad():
        fused = model(x)
        for block in model.trunk.blocks:
            assert block.attn.fused_attn
            block.attn.fused_attn = False
        for a, b in zip(model(x), fused, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize('arch', [family.archs[0] for family in FAMILIES])
def test_davpt_takes_a_step(small, arch):
    """Both losses train prompts and head; the trunk stays frozen."""
    size = image_size(arch)
    cfg = segmentor_cfg(arch=arch, img_size=size, out_indices=(0, 1, 2), norm_outputs=_normed(arch))
    cfg.decode_head.in_channels = DIMS
    cfg.data_preprocessor.size = size
    model = MODELS.build(cfg).train()
    model.guidance.assignments[0].assignment.copy_(torch.tensor([0, 1, 2, 0, 1]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = model(*batch(size=size), mode='loss')
    assert {'decode.loss_ce', 'loss_guide_patch', 'loss_guide_proto'} <= set(losses)
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    optimizer.step()
    assert total.isfinite()
    for name, value in model.state_dict().items():
        if name.startswith('backbone.'):
            assert torch.equal(value, before[name]) == (not name.startswith('backbone.tuned.prompts.tokens')), name


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
class TestTuning:
    def test_presets_train_the_stated_parameters(self, small, family):
        """By shape: biases and norms are vectors, under any name in timm."""
        arch = family.archs[0]
        model = build(arch, tuning='full')
        every = {name for name, _ in model.trunk.named_parameters() if not name.startswith(('attn_pool', 'norm.'))}
        final = {'norm.weight', 'norm.bias'} & dict(model.trunk.named_parameters()).keys()
        assert _trainable_names(model) == every | final
        vectors = {name for name, p in model.trunk.named_parameters() if p.ndim == 1 and name in every | final}
        norms = {
            f'{path}.{name}'
            for path, module in model.trunk.named_modules()
            if isinstance(module, (nn.LayerNorm, timm.layers.RmsNorm)) and not path.startswith('attn_pool')
            for name, _ in module.named_parameters()
        }
        gammas = {name for name in vectors if 'gamma' in name}
        norm_weights = {name for name in norms if name.endswith('weight')}
        assert _trainable_names(build(arch, tuning='norm')) == norms
        assert _trainable_names(build(arch, tuning='bias')) == vectors - gammas - norm_weights

    def test_split_biases_need_a_bias_in_the_trunk(self, small, family):
        arch = family.archs[0]
        for part, has in (('k', family.key_bias), ('v', family.value_bias)):
            if has:
                model = build(arch, tuning=dict(bias=(part,)))
                assert {name for name, p in model.named_parameters() if p.requires_grad} == {
                    f'tuned.bias.offsets.{block}.{part}' for block in range(DEPTH)
                }
            else:
                with pytest.raises(ValueError, match=f"bias.layers='{part}' matches no parameter"):
                    build(arch, tuning=dict(bias=(part,)))

    def test_every_trainable_parameter_gets_a_gradient(self, small, family):
        """A parameter without one breaks distributed training."""
        for tuning in ('full', 'bias', 'norm'):
            model = build(family.archs[0], tuning=tuning).train()
            sum((m * torch.randn_like(m)).sum() for m in model(images(family.archs[0]))).backward()
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters()), tuning


@pytest.mark.parametrize('family', [family for family in FAMILIES if family.value_bias], ids=lambda family: family.name)
def test_split_biases_merge(small, family):
    """timm's model with the merged biases gives the maps of the tuned model."""
    arch = family.archs[0]
    model = build(arch, tuning=dict(prompts=False, bias=('q', 'v'))).double().eval()
    assert all(offset.abs().max() > 0 for offset in model.tuned['bias'].parameters())
    trunk = reference(small, model)
    merged = model.merged_trunk()
    if isinstance(trunk.norm, nn.Identity) or trunk.norm is trunk.fc_norm:
        merged |= {re.sub('^norm', 'fc_norm', name): merged[name] for name in merged if name.startswith('norm.')}
    trunk.load_state_dict(merged, strict=not hasattr(trunk, 'fc_norm'))
    x = images(arch, torch.float64)
    expected = trunk.forward_intermediates(x, indices=[0, 2], norm=_normed(arch), intermediates_only=True)
    for a, b in zip(model(x), expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def _trainable_names(model):
    return {name for name, parameter in model.trunk.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('arch', ARCHS)
def test_weights_of_the_family_load(small, arch, tmp_path):
    """A file of timm's model with classifier fills the trunk."""
    options = {} if is_beit(arch) else dict(dynamic_img_size=True)
    source = small(arch, num_classes=10, img_size=image_size(arch), **options)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    model = PromptedViT(arch, str(tmp_path / 'w.pth'), img_size=image_size(arch), out_indices=(2,), norm_outputs=False)
    model.init_weights()
    expected = source.state_dict()
    for name, tensor in model.trunk.state_dict().items():
        name = name if name in expected else name.replace('norm.', 'fc_norm.')
        assert torch.equal(tensor, expected[name]), name


def test_norm_after_the_pooling_becomes_the_final_norm(small):
    model = build('eva02_base_patch14_224.mim_in22k', tuning='frozen').eval()
    raw = build('eva02_base_patch14_224.mim_in22k', tuning='frozen', norm_outputs=False).eval()
    raw.load_state_dict(model.state_dict())
    x = images(model.arch)
    norm = model.trunk.norm
    for a, b in zip(model(x), raw(x), strict=True):
        expected = nn.functional.layer_norm(b.movedim(1, -1), (DIMS,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(a, expected.movedim(-1, 1))


@pytest.mark.parametrize('arch', ['vit_base_patch16_dinov3.lvd1689m', 'eva02_base_patch14_224.mim_in22k'])
def test_shallow_prompts_have_no_rotary_position(small, arch):
    """Literal form: prompts after the prefix, which rotary attention does not rotate, through all blocks."""
    model = build(arch, tuning='vpt_shallow', prompts=dict(num=4), norm_outputs=False).double().train()
    trunk, x, p = reference(small, model), images(arch, torch.float64), model.prompts.tokens['0']
    tokens, rope = trunk._pos_embed(trunk.patch_embed(x))
    prefix = trunk.num_prefix_tokens
    tokens = torch.cat([tokens[:, :prefix], p.expand(2, -1, -1), tokens[:, prefix:]], dim=1)
    for block in trunk.blocks:
        block.attn.num_prefix_tokens = prefix + 4
        tokens = block(tokens, rope=rope)
    torch.testing.assert_close(model(x)[-1].flatten(2).transpose(1, 2), tokens[:, prefix + 4 :], **TOLERANCE)


class TestOneSize:
    """BEiT's relative positions are a table for one size of image."""

    arch = 'beitv2_base_patch16_224.in1k_ft_in22k'

    def test_smaller_images_are_padded(self, small):
        model = build(self.arch, prompts=dict(num=2)).eval()
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 40, 64))
        assert [m.shape for m in maps] == [(1, DIMS, 4, 8)] * 2

    @pytest.mark.parametrize(('train', 'size'), [(True, (32, 128)), (True, (64, 96)), (False, (64, 160))])
    def test_other_sizes_are_refused(self, small, train, size):
        model = build(self.arch, prompts=dict(num=2)).train(train)
        with pytest.raises(ValueError, match='made for 64x128'):
            model(torch.randn(1, 3, *size))

    def test_shallow_prompts_are_refused(self, small):
        with pytest.raises(ValueError, match='shallow prompts have no place'):
            build(self.arch, tuning='vpt_shallow')


@pytest.mark.parametrize(
    ('arch', 'reason'),
    [
        ('samvit_base_patch16.sa1b', 'VisionTransformerSAM is not one sequence'),
        ('swin_tiny_patch4_window7_224', 'SwinTransformer is not one sequence'),
        ('hiera_tiny_224', 'Hiera is not one sequence'),
        ('vit_base_r50_s16_224.orig_in21k', 'HybridEmbed'),
        ('vit_base_patch16_rpn_224', 'ResPostBlock'),
        ('vit_base_patch16_xp_224', 'ParallelScalingBlock'),
        ('vit_dwee_patch16_reg1_gap_256', 'DiffAttention'),
        ('eva02_enormous_patch14_clip_224', 'EvaBlockPostNorm'),
        ('resnet18', 'ResNet is not one sequence'),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(monkeypatch, arch, reason):
    if arch.startswith(('vit', 'eva02')):
        families.shrink(monkeypatch)
    with pytest.raises(ValueError, match=reason) as error:
        PromptedViT(arch, pretrained=False, out_indices=(0,))
    assert arch in str(error.value)


STATISTICS = {
    'ImageNet': (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    'CLIP': (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    'half': (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
}


def test_page_agrees_with_timm():
    """docs/backbones.md: patch, prefix tokens, biases, statistics and license of every family."""
    page = (ROOT / 'docs/backbones.md').read_text()
    for name, statistics in STATISTICS.items():
        mean, std = (', '.join(f'{255 * value:.3f}' for value in part) for part in statistics)
        assert f'| {name} | `[{mean}]` | `[{std}]` |' in page
    for family in FAMILIES:
        assert table_row(family) in page, f'docs/backbones.md should have\n{table_row(family)}'


def table_row(family):
    arch = family.archs[0]
    cfg = timm.get_pretrained_cfg(arch)
    with torch.device('meta'):
        trunk = timm.create_model(arch, num_classes=0, depth=1)
    prefix = {0: 'none', 1: 'class'}.get(trunk.num_prefix_tokens, f'class, {trunk.num_prefix_tokens - 1} registers')
    biases = ', '.join(part for part, has in zip('qkv', (family.value_bias, family.key_bias, family.value_bias)) if has)
    statistics = next(name for name, values in STATISTICS.items() if values == (cfg.mean, cfg.std))
    size, license = trunk.patch_embed.patch_size[0], family.license or cfg.license
    return f'| {family.name} | `{arch}` | {size} | {prefix} | {biases or "none"} | {statistics} | {license} |'
