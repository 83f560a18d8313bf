"""The backbone: options, sizes, weights that must have been loaded."""

import copy

import pytest
import timm
import torch
from conftest import DIMS
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch.nn import functional as F

from mmseg_davpt import PromptedViT, WeightsError
from mmseg_davpt.models.prompted_vit import _crop_to_image


@given(height=st.integers(17, 90), width=st.integers(17, 90))
@settings(max_examples=15, deadline=None)
def test_any_size(height, width):
    model = _tiny().eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    assert [m.shape for m in maps] == [(1, DIMS, -(-height // 16), -(-width // 16))] * 3
    assert all(m.isfinite().all() for m in maps)


_model = None


def _tiny():
    global _model
    if _model is None:
        _model = PromptedViT('test_vit', False, out_indices=(1, 3, 5), prompts=dict(num=3), allow_random=True)
    return _model


def test_padding_is_cropped_back():
    """A map that is linear in the pixel position stays where it was when the image ends inside a patch."""
    h, w, patch = 4, 5, (16, 16)
    height, width = 3 * 16 + 5, 4 * 16 + 9
    centers = (torch.arange(w) + 0.5) * 16
    x = centers.expand(1, 1, h, w)
    cropped = _crop_to_image(x, (height, width), patch)
    expected = (torch.arange(w) + 0.5) * width / w  # centers of w cells over the image alone
    inside = (expected >= centers[0]) & (expected <= centers[-1])
    torch.testing.assert_close(cropped[0, 0, 0][inside], expected[inside])
    assert _crop_to_image(x, (64, 80), patch) is x or torch.equal(_crop_to_image(x, (64, 80), patch), x)


def test_padding_equals_padding_by_hand():
    """Before the crop, the trunk sees the image filled up to whole patches, to the right and below."""
    model = _tiny().eval()
    x = torch.randn(1, 3, 40, 60)
    with torch.no_grad():
        expected = _crop_to_image(model(F.pad(x, (0, 4, 0, 8)))[-1], (40, 60), (16, 16))
        torch.testing.assert_close(model(x)[-1], expected)


def test_position_table_is_resampled_in_float32(vit):
    model = vit(tuning='frozen').eval()
    x = torch.randn(1, 3, 64, 96)
    table = model.trunk.pos_embed
    grid = table[:, 1:].reshape(1, 10, 10, DIMS).permute(0, 3, 1, 2)
    new = F.interpolate(grid, size=(4, 6), mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
    seen = {}
    model.trunk.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model(x)
    expected = model.trunk.patch_embed.proj(x).flatten(2).transpose(1, 2) + new
    torch.testing.assert_close(seen['x'][:, 1:], expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='vit_bse_patch16_224'), 'vit_base_patch16_224'),
        (dict(arch='resnet18'), 'resnet18'),
        (dict(arch='vit_base_patch16_rpn_224', out_indices=(1,)), 'ResPostBlock'),
        (dict(out_indices=(1, 6)), 'out_indices'),
        (dict(out_indices=(3, 1)), 'ascending'),
        (dict(out_indices=()), 'out_indices'),
        (dict(prompts=dict(num=0)), 'prompts.num'),
        (dict(prompts=dict(num=[3, 3])), 'prompts.num'),
        (dict(prompts=dict(blocks=(7,))), 'prompts.blocks'),
        (dict(prompts=dict(blocks=(5, -1))), 'twice'),
        (dict(prompts=dict(init='zeros')), 'prompts.init'),
        (dict(prompts=dict(dropout=1.0)), 'prompts.dropout'),
        (dict(prompts=dict(kind='middle')), "unknown option 'kind'"),
        (dict(prompts=dict(blocks=(1,)), tuning='vpt_shallow'), "unknown option 'blocks'"),
        (dict(prompts=dict(num=[3, 3]), tuning='vpt_shallow'), 'prompts.num'),
        (dict(prompts=dict(num=3), tuning='full'), 'set prompts=None'),
        (dict(tuning={}), "tuning='frozen'"),
        (dict(pretrained='x.pth', init_cfg=dict(type='Pretrained', checkpoint='y.pth')), 'init_cfg'),
        (dict(pretrained=True), 'allow_random'),
        (dict(arch='vit_pe_spatial_tiny_patch16_512', out_indices=(1,)), 'norm_outputs'),
    ],
)
def test_bad_options_are_named(vit, options, message):
    with pytest.raises(ValueError, match=message):
        vit(**options)


def test_prompts_differ_in_number(vit):
    model = vit(prompts=dict(num=[4, 2], blocks=(1, -1)))
    assert model.prompt_counts == [0, 4, 0, 0, 0, 2]


def test_xavier_over_eight(vit):
    """Bound of VPT's initialization, divided by 8, reached but not passed."""
    model = PromptedViT('test_vit', False, out_indices=(5,), prompts=dict(num=500))
    bound = (6 / (3 * 16 * 16 + DIMS)) ** 0.5 / 8
    largest = model.prompts.tokens['0'].abs().max().item()
    assert 0.99 * bound < largest <= bound


class TestWeightsMustBeLoaded:
    def test_random_trunk_is_refused_in_training(self, vit):
        model = vit(allow_random=False).train()
        with pytest.raises(WeightsError, match='test_vit has random weights'):
            model(torch.randn(1, 3, 32, 32))

    def test_written_out_random_is_allowed(self, vit):
        vit().train()(torch.randn(1, 3, 32, 32))

    def test_init_weights_loads(self, vit, tmp_path):
        torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'w.pth')
        model = vit(allow_random=False, pretrained=str(tmp_path / 'w.pth'))
        model.init_weights()
        model.train()(torch.randn(1, 3, 32, 32))

    def test_init_cfg_loads(self, vit, tmp_path):
        source = timm.create_model('test_vit').state_dict()
        torch.save(source, tmp_path / 'w.pth')
        cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth'))
        model = vit(allow_random=False, init_cfg=cfg)
        model.init_weights()
        assert all(torch.equal(value, source[name]) for name, value in model.trunk.state_dict().items())
        model.train()(torch.randn(1, 3, 32, 32))

    @pytest.mark.parametrize('through', ['torch', 'mmengine'])
    def test_full_checkpoint_loads(self, vit, through):
        state = vit().state_dict()
        model = vit(allow_random=False, pretrained='not/there.pth')
        if through == 'torch':
            model.load_state_dict(state)
        else:
            _load_checkpoint_to_model(model, {'state_dict': state})
        model.train()(torch.randn(1, 3, 32, 32))

    def test_partial_checkpoint_does_not(self, vit):
        state = vit().state_dict()
        del state['trunk.blocks.4.mlp.fc1.bias']
        model = vit(allow_random=False)
        model.load_state_dict(state, strict=False)
        with pytest.raises(WeightsError):
            model.train()(torch.randn(1, 3, 32, 32))

    def test_prototype_start_must_have_happened(self, vit):
        model = vit(prompts=dict(num=2, init='prototype')).train()
        with pytest.raises(RuntimeError, match='PromptAssignmentHook'):
            model(torch.randn(1, 3, 32, 32))


def test_deepcopy_is_independent(vit):
    """EMA copies models: the copy's attention must read the copy's prompts."""
    model = vit(prompts=dict(num=2), tuning='davpt_plus').eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tokens in model.prompts.tokens.values():
            tokens.zero_()
        x = torch.randn(1, 3, 32, 32)
        assert not torch.equal(model(x)[-1], twin(x)[-1])
    assert twin.trunk.blocks[0].methods[0] is twin.prompts


def test_bfloat16_autocast_is_close(vit):
    model = vit(prompts=dict(num=3)).train()
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        low = model(x)[-1]
    assert (low.float() - model(x)[-1]).abs().mean() < 5e-2


class TestCheckpointsOfVersion01:
    """Names from before each method had a folder; written out here as that version wrote them."""

    @pytest.mark.parametrize(
        ('tuning', 'renamed'),
        [
            ('davpt_plus', {'tuned.prompts.': 'prompts.', 'tuned.bias.offsets.': 'biases.'}),
            ('vpt_shallow', {'tuned.shallow_prompts.': 'prompts.'}),
            ('lora', {'tuned.lora.layers.': 'lora.'}),
            ('adaptformer', {'tuned.adaptformer.branches.': 'adapters.'}),
        ],
    )
    def test_old_names_load_strictly(self, vit, tuning, renamed):
        model, fresh = vit(tuning=tuning), vit(tuning=tuning)
        state = {}
        for name, tensor in model.state_dict().items():
            for new, old in renamed.items():
                name = name.replace(new, old)
            if not name.endswith('initialised'):  # a buffer that version 0.1 did not have
                state[name] = tensor
        assert not any(name.startswith('tuned') for name in state)
        fresh.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())

    def test_prompts_of_an_old_checkpoint_are_initialised(self, vit):
        model = vit(tuning='davpt_gated', prompts=dict(num=2))
        state = {name.replace('tuned.prompts.', 'prompts.'): tensor for name, tensor in model.state_dict().items()}
        del state['prompts.initialised']
        model.load_state_dict(state)
        assert model.prompts_initialised
        model.train()(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('tuning', ['davpt_plus', 'davpt_gated', 'ssf', 'convpass'])
def test_dynamically_quantised_model_runs(vit, tuning):
    """Quantised linear layers have no weight tensor, which the attention would slice."""
    model, x = vit(tuning=tuning).eval(), torch.randn(1, 3, 64, 64)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with torch.no_grad():
        expected, found = model(x)[-1], quantised(x)[-1]
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
