"""Projections of attention: equal to timm's, also with swapped, parametrized and quantised weights."""

import warnings

import families
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from mmseg_davpt.trunks import build_trunk, project, projection

PARTS = ('q', 'k', 'v', 'proj')
ARCHS = {
    'fused': 'vit_base_patch16_224.augreg_in21k',
    'fused, rotary': 'vit_base_patch16_rope_mixed_224.naver_in1k',
    'split (EVA-02)': 'eva02_base_patch14_224.mim_in22k',
    'fused without bias (DINOv3)': 'vit_base_patch16_dinov3.lvd1689m',
    'fused, separate biases (DINOv3)': 'vit_base_patch16_dinov3_qkvb.lvd1689m',
    'fused, separate biases (BEiT)': 'beitv2_base_patch16_224.in1k_ft_in22k',
}
WIDTH = families.DIMS


def _randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)


@pytest.fixture(params=ARCHS.values(), ids=ARCHS.keys())
def attn(request, monkeypatch):
    """One attention module of timm with random weights and biases."""
    families.shrink(monkeypatch)
    module = build_trunk(request.param, img_size=families.image_size(request.param)).blocks[0].attn.eval()
    _randomize(module)
    return module


@pytest.fixture
def x():
    return torch.randn(2, 33, WIDTH)


def timm_projections(attn, x, monkeypatch):
    """Queries, keys, values, output and input of the last projection in timm's forward pass, ``(B, N, D)`` each."""
    inputs = {}

    def record_attention(q, k, v, **_):
        inputs.update({part: heads.transpose(1, 2).flatten(2) for part, heads in zip('qkv', (q, k, v))})
        return v

    with monkeypatch.context() as patch:
        patch.setattr(F, 'scaled_dot_product_attention', record_attention)
        output = attn(x)
    return inputs | {'proj': output}, inputs['v']


class Projections(nn.Module):
    """All four projections of one attention module, for transformations of modules."""

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x, part):
        return project(self.attn, part, x)


def test_equals_timm(attn, x, monkeypatch):
    expected, values = timm_projections(attn, x, monkeypatch)
    for part in PARTS:
        out = project(attn, part, values if part == 'proj' else x)
        torch.testing.assert_close(out, expected[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(WIDTH,), (5, WIDTH), (2, 3, 5, WIDTH)])
def test_equals_linear_bit_for_bit(attn, shape):
    x = torch.randn(shape)
    for part in PARTS:
        out = project(attn, part, x)
        assert out.shape == shape
        assert torch.equal(out, F.linear(x, *projection(attn, part)))


def test_is_a_view_of_the_trunks_parameters(attn):
    """Tuned weights get their gradient."""
    for part in PARTS:
        for tensor in projection(attn, part):
            assert tensor is None or any(
                tensor.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
                for parameter in attn.parameters()
            )


def test_key_bias_of_zeros_is_no_bias(attn):
    """EVA and BEiT keep a buffer of zeros in place of a key bias."""
    has_bias = any(name in ('qkv.bias', 'k_proj.bias') for name, _ in attn.named_parameters())
    assert (projection(attn, 'k')[1] is not None) == has_bias


def test_functional_call_uses_the_given_weights(attn, x, monkeypatch):
    """Per-sample gradients, model ensembles and meta-learning pass parameters as plain tensors."""
    tensors = {name: torch.randn_like(parameter) for name, parameter in attn.named_parameters()}
    module = Projections(attn)
    outs = {
        part: torch.func.functional_call(module, {f'attn.{name}': t for name, t in tensors.items()}, (x, part))
        for part in PARTS
    }
    attn.load_state_dict(tensors)
    expected, _ = timm_projections(attn, x, monkeypatch)
    for part in 'qkv':
        torch.testing.assert_close(outs[part], expected[part], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs['proj'], attn.proj(x))


def test_gradients_per_sample(attn, x):
    """vmap over grad equals one backward pass for each sample."""
    module = Projections(attn)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters, sample):
        return sum(torch.func.functional_call(module, parameters, (sample, part)).square().sum() for part in PARTS)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        module.zero_grad()
        sum(module(sample, part).square().sum() for part in PARTS).backward()
        for name, parameter in module.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name][index], expected, rtol=1e-4, atol=1e-4)


class Doubled(nn.Module):
    """A parametrization that counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def forward(self, tensor):
        self.evaluations += 1
        return 2 * tensor


def test_parametrized_weights_and_biases(attn, x, monkeypatch):
    parametrizations = []
    for module in list(attn.modules()):
        for name, _ in list(module.named_parameters(recurse=False)):
            parametrizations.append(Doubled())
            parametrize.register_parametrization(module, name, parametrizations[-1])
    outs = {part: project(attn, part, x) for part in PARTS}
    for parametrization in parametrizations:
        parametrization.evaluations = 0
    project(attn, 'proj', x)
    assert sum(parametrization.evaluations for parametrization in parametrizations) == 2  # weight and bias, once each
    expected, _ = timm_projections(attn, x, monkeypatch)
    for part in 'qkv':
        torch.testing.assert_close(outs[part], expected[part], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs['proj'], attn.proj(x))


def test_quantised_layers_are_called(attn, x):
    """``quantize_dynamic`` makes ``weight`` and ``bias`` methods; the quantised kernel is the module itself."""
    original = {part: project(attn, part, x) for part in PARTS}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        quantised = torch.ao.quantization.quantize_dynamic(attn, {nn.Linear})
    assert not isinstance(quantised.proj, nn.Linear)
    if quantised.qkv is None:
        expected = {part: getattr(quantised, f'{part}_proj')(x) for part in 'qkv'}
    else:
        expected = dict(zip('qkv', quantised.qkv(x).chunk(3, dim=-1)))
        for part in 'qv':
            if getattr(quantised, f'{part}_bias', None) is not None:
                expected[part] = expected[part] + getattr(quantised, f'{part}_bias')
    expected['proj'] = quantised.proj(x)
    for part in PARTS:
        out = project(quantised, part, x)
        assert torch.equal(out, expected[part])
        assert 0 < (out - original[part]).abs().max() < 0.05 * original[part].abs().max()
