"""What every registered tuning method must do, on trunks with fused and split projections, rotary codes, LayerScale."""

import copy
import pickle
import re

import families
import pytest
import torch
from conftest import batch, segmentor_cfg
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS

from mmseg_davpt.models import PromptedViT
from mmseg_davpt.reports import count_parameters, format_report
from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.tuning import TUNING_METHODS, presets

TRUNKS = dict(fused='vit_tiny_patch16_224', split='eva02_tiny_patch14_224', layer_scale='vit_small_patch14_dinov2')
OPTIONS = {  # method -> further settings that the battery runs, beside the defaults
    'prompts': [dict(num=3), dict(num=3, gate=True)],
    'residual_prompts': [dict(num=3)],
    'shallow_prompts': [dict(num=3)],
    'adaptformer': [{}, dict(blocks=(1, -1))],
    'parallel_adapter': [{}, dict(blocks=(1, -1))],
    'convpass': [{}, dict(blocks=(1, -1))],
    'lora': [dict(rank=2), dict(rank=2, blocks=(1, -1)), dict(rank=2, targets=('q', 'k', 'v', 'proj'), alpha=5)],
    'dora': [dict(rank=2, blocks=(1, -1)), dict(rank=2, targets=('q', 'k', 'v', 'proj'))],
    'bias': [{}, dict(layers=('q', 'v')), dict(layers=('v', 'proj', 'fc2'))],
    'blocks': [dict(indices=(1, -1))],
}
MIXTURES = [
    dict(prompts=dict(num=3, gate=True), lora=dict(rank=2), adaptformer=dict(dim=4)),
    dict(residual_prompts=dict(num=3), lora=dict(rank=2), bias=('v',)),
    dict(dora=dict(rank=2), bias=('v',), ssf=True),
    dict(lora=dict(rank=2), ssf=True, norm=True),
    dict(parallel_adapter=dict(dim=4), lora=dict(rank=2), convpass=dict(dim=4)),
]
# The package's methods: trials of the benchmarks may be registered, too.
METHODS = sorted(name for name, m in TUNING_METHODS.module_dict.items() if m.__module__.startswith('mmseg_davpt.'))
ALONE = [{name: options} for name in METHODS for options in OPTIONS.get(name, [{}])]
# Trainable parameters of each method, by full match; `n` is an index of a block in use. A method without an entry must
# have parameters beside the trunk only.
EXPECTED = dict(
    prompts=r'tuned\.prompts\.(tokens|gates)\.n',
    residual_prompts=r'tuned\.residual_prompts\.(tokens|values)\.n',
    shallow_prompts=r'tuned\.shallow_prompts\.tokens\.0',
    lora=r'tuned\.lora\.layers\.n\.(q|k|v|proj)\.lora_[AB]\.default\.weight',
    dora=r'tuned\.dora\.layers\.n\.(q|k|v|proj)\.lora_([AB]|magnitude_vector)\.default\.weight',
    adaptformer=r'tuned\.adaptformer\.branches\.n\.(down|up)\.(weight|bias)',
    parallel_adapter=r'tuned\.parallel_adapter\.branches\.n\.(down|up)\.(weight|bias)',
    convpass=r'tuned\.convpass\.(attention|mlp)\.n\.(down|up|conv)\.(weight|bias)',
    ssf=r'tuned\.ssf\.(scales|shifts)\.n\.(q|k|v|proj|norm[12]|mlp_\w+)',
    bias=r'tuned\.bias\.offsets\.n\.[qkv]|trunk\.(blocks\.n\.(.*\.)?([qv]_)?bias|patch_embed\.proj\.bias|norm\.bias)',
    norm=r'trunk\.(blocks\.n\.(.*\.)?\w*norm\w*|norm)\.(weight|bias)',
    blocks=r'trunk\.(blocks\.[12]\..*|norm\.(weight|bias))',
    stem=r'trunk\.(patch_embed\..*|pos_embed|cls_token|reg_token|norm_pre\..*)',
    cls_token=r'trunk\.cls_token',
)


def expected(name):
    """Pattern of the names of a method's trainable parameters."""
    return EXPECTED.get(name, rf'tuned\.{name}\..+').replace('.n', '.[012]')


def tuning_id(tuning):
    return '+'.join(
        name + ''.join(f'-{key}' for key in (value if isinstance(value, dict) else ()))
        for name, value in tuning.items()
    )


@pytest.fixture(params=TRUNKS)
def trunk(request, monkeypatch):
    families.shrink(monkeypatch)
    return request.param


@pytest.fixture(params=ALONE + MIXTURES, ids=tuning_id)
def tuning(request):
    return request.param


def build(trunk, tuning, seed=0, **options):
    torch.manual_seed(seed)
    options = dict(out_indices=(0, 2), pretrained=False, allow_random=True) | options
    return PromptedViT(TRUNKS[trunk], tuning=tuning, **options)


@torch.no_grad()
def perturb(model, seed=1):
    """Values of a method that was trained: zeros and ones would hide mistakes."""
    torch.manual_seed(seed)
    for _, _, parameter in model.trainable_parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(model, b=2):
    torch.manual_seed(2)
    return torch.randn(b, 3, 2 * model.patch_size[0], 3 * model.patch_size[1], dtype=next(model.parameters()).dtype)


def plain(model, trunk, state=None):
    """timm's model with the tensors of the trunk."""
    reference = build_trunk(TRUNKS[trunk]).to(next(model.parameters()).dtype)
    reference.load_state_dict(model.trunk.state_dict() if state is None else state)
    return reference.eval()


def plain_outputs(reference, x):
    return reference.forward_intermediates(x, indices=[0, 2], norm=True, intermediates_only=True)


def gradients(model, x):
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(x)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(a, b, **tolerance):
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, **tolerance)


def segmentor(tuning, trunk):
    options = dict(arch=TRUNKS[trunk], out_indices=(0, 1, 2), prompts=None)
    cfg = segmentor_cfg(tuning=tuning, guidance=False, **options)
    cfg.decode_head.in_channels = families.DIMS
    return MODELS.build(cfg).train()


def test_the_battery_covers_the_registry():
    assert set(EXPECTED) <= set(TUNING_METHODS.module_dict)
    assert {name for preset in presets().values() for name in preset.methods} <= set(TUNING_METHODS.module_dict)


class TestFunction:
    """What the trunk computes: at the start, disabled, merged."""

    def test_the_start_is_the_plain_trunk(self, trunk, tuning):
        """For every method but prompts without a gate, which change the softmax from the first step on."""
        model = build(trunk, tuning).double().eval()
        x = images(model)
        outputs, expected = model(x), plain_outputs(plain(model, trunk), x)
        if 'shallow_prompts' in tuning or ('prompts' in tuning and not tuning['prompts'].get('gate')):
            assert not torch.equal(outputs[-1], expected[-1])
        else:
            assert_close(outputs, expected, rtol=0, atol=1e-5 if 'dora' in tuning else 1e-9)  # its norms are float32

    def test_merged_trunk_equals_the_tuned_one_or_is_refused(self, trunk, tuning):
        model = perturb(build(trunk, tuning)).double().eval()
        unmergeable = {
            'prompts',
            'residual_prompts',
            'shallow_prompts',
            'adaptformer',
            'parallel_adapter',
            'convpass',
        } & set(tuning)
        if unmergeable:
            with pytest.raises(ValueError, match='cannot be merged'):
                model.merged_trunk()
            return
        before = {name: tensor.clone() for name, tensor in model.trunk.state_dict().items()}
        merged = model.merged_trunk()
        x = images(model)
        assert_close(model(x), plain_outputs(plain(model, trunk, merged), x), rtol=0, atol=1e-9)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.trunk.state_dict().items())

    def test_disabled_is_the_plain_trunk(self, trunk, tuning):
        model = perturb(build(trunk, tuning)).double().eval()
        x = images(model)
        tuned = model(x)
        with model.without_tuning():
            assert_close(model(x), plain_outputs(plain(model, trunk), x), rtol=0, atol=1e-9)
        assert_close(model(x), tuned, rtol=0, atol=0)


class TestTraining:
    """Which parameters are trainable, and their gradients."""

    def test_exactly_the_stated_parameters_are_trainable(self, trunk, tuning):
        model = build(trunk, tuning)
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        pattern = re.compile('|'.join(f'({expected(name)})' for name in tuning))
        assert trainable
        assert all(pattern.fullmatch(name) for name in trainable), [n for n in trainable if not pattern.fullmatch(n)]
        assert trainable == {name for name, _, _ in model.trainable_parameters()}
        for name in tuning:  # none of the methods is empty
            assert any(re.fullmatch(expected(name), key) for key in trainable)

    def test_every_trainable_parameter_gets_a_gradient(self, trunk, tuning):
        model = perturb(build(trunk, tuning)).train()
        found = gradients(model, images(model))
        assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(value.isfinite().all() for value in found.values())

    def test_checkpointing_gives_the_same_gradients_and_frees_them(self, trunk, tuning):
        plain_model, recomputed = (perturb(build(trunk, tuning, with_cp=with_cp)).train() for with_cp in (False, True))
        x = images(plain_model)
        expected, found = gradients(plain_model, x), gradients(recomputed, x)
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        copy.deepcopy(recomputed)  # fails while a module holds a tensor of the graph


class TestCopies:
    """State dicts, copies, pickles and moving averages."""

    def test_saved_and_loaded_strictly(self, trunk, tuning, tmp_path):
        model = perturb(build(trunk, tuning)).eval()
        torch.save(model.state_dict(), tmp_path / 'model.pth')
        fresh = build(trunk, tuning, seed=5).eval()
        fresh.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
        with torch.no_grad():
            assert_close(model(images(model)), fresh(images(model)), rtol=0, atol=0)

    @pytest.mark.parametrize(
        'copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=['copy', 'pickle']
    )
    def test_copies_are_equal_and_independent(self, trunk, tuning, copied):
        model = perturb(build(trunk, tuning)).eval()
        x = images(model)
        with torch.no_grad():
            before = model(x)
            twin = copied(model)
            assert_close(twin(x), before, rtol=0, atol=0)
            perturb(model, seed=7)
            assert_close(twin(x), before, rtol=0, atol=0)
            perturb(twin, seed=8)
            assert not torch.equal(twin(x)[-1], before[-1])

    def test_moving_average_of_the_weights(self, trunk, tuning):
        """EMAHook copies the model and swaps tensors in place."""
        model = build(trunk, tuning)
        average = ExponentialMovingAverage(model, momentum=0.5)
        start = {name: parameter.clone() for name, parameter in model.named_parameters()}
        average.update_parameters(model)  # the first call copies
        perturb(model)
        average.update_parameters(model)
        for name, parameter in average.module.named_parameters():
            torch.testing.assert_close(parameter, (start[name] + dict(model.named_parameters())[name]) / 2)
        fresh = build(trunk, tuning, seed=5).eval()
        fresh.load_state_dict(average.module.state_dict())
        with torch.no_grad():
            assert_close(average.module.eval()(images(model)), fresh(images(model)), rtol=0, atol=0)


class TestPrecision:
    """Autocast and functional calls."""

    def test_bfloat16_autocast_is_close(self, trunk, tuning):
        model = perturb(build(trunk, tuning)).train()
        x = images(model)
        exact = model(x)[-1]
        with torch.autocast('cpu', torch.bfloat16):
            low = model(x)[-1]
        assert (low.float() - exact).abs().mean() < 0.05 * exact.abs().mean()

    def test_half_precision_trunk_is_autocast_with_float32_weights(self, trunk, tuning):
        """The same maps and gradients, bit for bit; only the frozen matrices are stored in bfloat16."""
        model = perturb(build(trunk, tuning)).train()
        half = build(trunk, tuning, seed=4, trunk_dtype='bfloat16').train()
        half.load_state_dict(model.state_dict())
        x = images(model)
        with torch.autocast('cpu', torch.bfloat16):
            expected, expected_gradients = model(x), gradients(model, x)
        found, found_gradients = half(x), gradients(half, x)
        assert (
            {out.dtype for out in found} == {gradient.dtype for gradient in found_gradients.values()} == {torch.float32}
        )
        assert set(found_gradients) == set(expected_gradients)
        # DoRA norms the stored weights: those of bfloat16 have other norms.
        maps, grads = (dict(rtol=0, atol=0.01), dict(rtol=0.05, atol=0.05)) if 'dora' in tuning else ({}, {})
        assert_close(found, expected, **(maps or dict(rtol=0, atol=0)))
        for name, value in expected_gradients.items():
            torch.testing.assert_close(found_gradients[name], value, **(grads or dict(rtol=0, atol=0)))
        with torch.no_grad():
            assert_close(half.eval()(x), half(x), rtol=0, atol=0)

    @pytest.mark.parametrize('mode', [True, False])
    def test_functional_call_uses_the_given_parameters(self, trunk, tuning, mode):
        """Also in eval mode without gradients, after prompts have cached their keys and values."""
        model, other = (perturb(build(trunk, tuning), seed=seed).train(mode) for seed in (1, 9))
        x = images(model)
        with torch.set_grad_enabled(mode):
            before = model(x)
            found = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
            assert_close(found, other(x), rtol=0, atol=0)
            assert_close(model(x), before, rtol=0, atol=0)
        assert not torch.equal(found[-1], before[-1])


class TestCompile:
    """``torch.compile``."""

    def test_compiled_model_is_the_same(self, trunk, tuning):
        model = perturb(build(trunk, tuning)).train()
        x = images(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


class TestSegmentor:
    """Report, optimizer groups and heads of a whole segmentor."""

    def test_report_has_a_row_per_method(self, tuning, trunk):
        model = segmentor(tuning, trunk)
        counts = count_parameters(model)
        trainable = {name: 0 for name in tuning}
        for _, method, parameter in model.backbone.trainable_parameters():
            trainable[method] += parameter.numel()
        for name in tuning:
            assert counts[name][0] == trainable[name] > 0
            assert f'\n{name} ' in format_report(model)
        assert sum(t for t, _ in counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(every for _, every in counts.values()) == sum(p.numel() for p in model.parameters())

    def test_optimizer_groups(self, tuning, trunk):
        """Each method has its learning rate; nothing but matrices of the trunk is decayed."""
        model = segmentor(tuning, trunk)
        rates = {name: 2.0 + index for index, name in enumerate(sorted(tuning))}
        wrapper = build_optim_wrapper(
            model,
            dict(
                type='OptimWrapper',
                constructor='TunedOptimWrapperConstructor',
                optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
                paramwise_cfg=dict(custom_keys={f'tuned.{name}': dict(lr_mult=rate) for name, rate in rates.items()}),
            ),
        )
        groups = {id(parameter): group for group in wrapper.param_groups for parameter in group['params']}
        assert set(groups) >= {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        for name, method, parameter in model.backbone.trainable_parameters():
            group = groups[id(parameter)]
            assert group['lr'] == pytest.approx(0.01 * rates[method]), name
            decayed = name.startswith('trunk.') and name.endswith('weight') and parameter.ndim > 1
            assert group['weight_decay'] == pytest.approx(0.1 if decayed else 0.0), name

    def test_batch_norm_statistics_are_kept(self, tuning, trunk, tmp_path):
        model = segmentor(tuning, trunk)
        model.decode_head.convs[0].bn.running_mean.fill_(3.0)
        model(*batch(), mode='loss')
        torch.save(model.state_dict(), tmp_path / 'model.pth')
        fresh = segmentor(tuning, trunk)
        fresh.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
        x, _ = batch()
        with torch.no_grad():
            assert torch.equal(model.eval()(x, mode='tensor'), fresh.eval()(x, mode='tensor'))
