"""``trunk_dtype='int8'``: rounding, products and gradients, files of every type, families, exports, ranks."""

import copy
import os

import families
import pytest
import torch
import torch.distributed as dist
from conftest import batch, free_port, segmentor_cfg
from faults.scenes import run_ranks
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from models.test_trunk_dtype import assert_equal, segmentor, trained
from safetensors.torch import load_file
from small_tasks import make_task, save_trunk, state_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmseg_davpt.apis import leave_process_group
from mmseg_davpt.export.graph import SegmentationGraph
from mmseg_davpt.models import PromptedViT
from mmseg_davpt.tasks.model import build_task
from mmseg_davpt.trunks.int8 import Int8Linear, named_weights, quantize, restore_float32, store_int8
from mmseg_davpt.weights.fingerprint import tensor_digest

DTYPES = ('float32', 'bfloat16', 'int8')


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
    return save_trunk(tmp_path_factory.mktemp('trunk') / 'trunk.safetensors')


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(96, 48).requires_grad_(False)


def small_copy(layer):
    small = copy.deepcopy(layer)
    store_int8(small)
    return small


@pytest.mark.parametrize('size', [1e-30, 1e-4, 1.0, 1e4])
def test_rounding(size):
    """At most half a level off, and 0.4 % of it for the rounding of the largest level."""
    torch.manual_seed(0)
    weight = torch.randn(512, 64) * size
    values, scale = quantize(weight)
    level = weight.double().abs().amax(1, keepdim=True) / 127
    assert ((values.double() * scale[:, None].double() - weight).abs() <= 0.502 * level).all()
    assert (values.abs().amax(1) == 127).all()


def test_every_level_in_bfloat16_comes_back():
    largest = torch.arange(128, 256).to(torch.bfloat16).float()  # all mantissas
    levels = torch.arange(-127, 128).expand(128, -1).to(torch.int8)
    scale = largest / 127
    values, found = quantize((levels * scale[:, None]).to(torch.bfloat16))
    assert torch.equal(values, levels) and torch.equal(found, scale)
    values, found = quantize(torch.zeros(2, 3))
    assert not values.any() and (found > 0).all()


def test_product_and_gradient_are_those_of_the_dequantized_weight(layer):
    small = small_copy(layer)
    exact = nn.Linear(96, 48)
    exact.load_state_dict(dict(weight=small.values * small.scale[:, None], bias=layer.bias))
    x = torch.randn(4, 7, 96)
    out = []
    for module in (small, exact):
        y = x.clone().requires_grad_()
        result = module(y)
        (result.float() * torch.linspace(-1, 1, 48)).sum().backward()
        out.append((result.float(), y.grad))
    for found, expected in zip(*out):
        assert (found - expected).norm() < 0.01 * expected.norm()
    rows = slice(16, 32)
    bias = layer.bias[rows]
    torch.testing.assert_close(small.project(x, rows, bias), small(x)[..., rows], rtol=0, atol=0)


def test_the_backward_pass_keeps_no_floating_point_weight(layer):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        small_copy(layer)(torch.randn(5, 96, requires_grad=True))
    assert {t.dtype for t in kept if t.numel() >= 48 * 96} == {torch.int8}


@pytest.mark.parametrize('tuning', ['frozen', 'bias', 'partial-2', 'lora', 'full'])
def test_only_frozen_matrices_are_converted(vit, tuning):
    model, half = (vit(tuning=tuning, trunk_dtype=dtype) for dtype in ('int8', 'bfloat16'))
    linear = {name for name, layer in half.trunk.named_modules() if isinstance(layer, nn.Linear)}
    linear = {name for name in linear if not half.trunk.get_parameter(f'{name}.weight').requires_grad}
    assert {name for name, layer in model.trunk.named_modules() if isinstance(layer, Int8Linear)} == linear
    assert bool(linear) == (tuning != 'full')
    state, expected = model.state_dict(), half.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
    assert {name: p.dtype for name, p in half.named_parameters() if name in dict(model.named_parameters())} == {
        name: p.dtype for name, p in model.named_parameters()
    }
    assert count(model) == count(half)


def count(model):
    return {name: tensor.numel() for name, tensor in named_weights(model)}


def test_conversion_keeps_hooks_and_can_be_undone(layer):
    layer.register_forward_hook(lambda _, __, out: out + 1)
    small = small_copy(layer)
    x, weight = torch.randn(3, 96), small.weight
    out = small(x)
    assert type(small) is Int8Linear and weight.dtype == torch.bfloat16
    restore_float32(small)
    assert type(small) is nn.Linear and torch.equal(small.weight, weight.float()) and not list(small.buffers())
    torch.testing.assert_close(small(x), out.float(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)


def test_missing_and_wrong_weights_are_named(layer):
    small = small_copy(layer)
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        small.load_state_dict(dict(bias=layer.bias))
    with pytest.raises(RuntimeError, match=r'size mismatch for weight: \(48, 95\).*\(48, 96\)'):
        small.load_state_dict(dict(weight=layer.weight[:, 1:], bias=layer.bias))
    before = small.values
    assert small.load_state_dict(dict(bias=layer.bias), strict=False).missing_keys == ['weight']
    assert small.values is before


@pytest.mark.parametrize('arch', families.ARCHS)
@pytest.mark.parametrize('tuning', ['vpt_deep', 'lora'])
def test_every_family(arch, tuning, monkeypatch):
    """The maps of a bfloat16 trunk with the same values. Some blocks have no method: timm's code runs there."""
    families.shrink(monkeypatch)
    options = dict(pretrained=False, allow_random=True, out_indices=(0, 2), norm_outputs='pe_spatial' not in arch)
    options |= dict(prompts=dict(num=2, blocks=(2,)), tuning=tuning)
    if tuning == 'lora':
        options |= dict(tuning=dict(lora=dict(blocks=(2,))), prompts=None)
    model, half = (PromptedViT(arch, **options, trunk_dtype=dtype).train() for dtype in ('int8', 'bfloat16'))
    half.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, *((224, 224) if families.is_beit(arch) else (70, 90)))
    for found, expected in zip(model(x), half(x), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize('saved', DTYPES)
@pytest.mark.parametrize('loaded', DTYPES)
@pytest.mark.parametrize('whole', [True, False], ids=['checkpoint', 'task'])
def test_files_load_into_every_type(trunk, tmp_path, saved, loaded, whole):
    if 'int8' not in (saved, loaded):
        return
    model = segmentor(trunk, saved)
    torch.save(model.state_dict() if whole else state_of(model), tmp_path / 'model.pth')
    fresh = segmentor(trunk, loaded, seed=1)
    fresh.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    assert_equal(trained(fresh), trained(model))
    expected = segmentor(trunk, 'float32').backbone.fingerprint()
    assert expected.tensors['blocks.0.attn.qkv.weight'] == tensor_digest(load_file(trunk)['blocks.0.attn.qkv.weight'])
    assert model.backbone.fingerprint() == fresh.backbone.fingerprint() == expected
    if saved == loaded:
        assert_equal(fresh.state_dict(), model.state_dict())
        assert_equal(dict(fresh.named_parameters()), dict(model.named_parameters()))
        x, _ = batch()
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(fresh.backbone.eval()(x), model.backbone.eval()(x)))


def test_task_files_are_those_of_float32(trunk, tmp_path):
    for dtype in ('float32', 'int8'):
        make_task(tmp_path / f'{dtype}.task.safetensors', trunk, trunk_dtype=dtype)
    (first, _), (second, model) = (build_task(tmp_path / f'{d}.task.safetensors', trunk) for d in ('float32', 'int8'))
    assert first.trunk == second.trunk and first.model == second.model
    assert model.backbone.trunk_dtype == 'float32'


@pytest.mark.parametrize('tuning', ['davpt', 'davpt_plus', dict(prompts=dict(num=3), lora=dict(rank=2))])
def test_guided_steps_are_those_of_bfloat16_with_the_same_values(trunk, tuning):
    state, steps = {}, []
    for dtype in ('int8', 'bfloat16'):
        model = segmentor(trunk, dtype, tuning=tuning, prompts=dict(num=3)).train()
        state = state or copy.deepcopy(model.state_dict())
        model.load_state_dict(state)
        torch.manual_seed(0)
        losses = model.loss(*batch())
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        gradients = {name: parameter.grad for name, parameter in trained(model).items() if parameter.grad is not None}
        steps.append((losses, gradients))
    for found, expected in zip(*steps):
        assert_equal(found, expected)


def test_moving_averages_and_copies(trunk):
    model = segmentor(trunk, 'int8').eval()
    average = ExponentialMovingAverage(model, momentum=0.5)
    for _ in range(2):
        average.update_parameters(model)
    x, _ = batch()
    with torch.no_grad():
        for other in (average.module, copy.deepcopy(model)):
            assert all(torch.equal(a, b) for a, b in zip(other.backbone(x), model.backbone(x), strict=True))


@pytest.mark.parametrize('tuning', ['lora', 'dora', 'ssf', 'bias'])
def test_merged_trunks(trunk, tuning):
    """The dequantized weights with the update, in float32: what a float32 trunk with the same values merges."""
    model = segmentor(trunk, 'int8', tuning=tuning, prompts=None, guidance=False).backbone
    exact = segmentor(trunk, 'float32', tuning=tuning, prompts=None, guidance=False).backbone
    exact.load_state_dict(model.state_dict())
    merged, expected = model.merged_trunk(), exact.merged_trunk()
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)


def test_exports_are_float32(trunk):
    model, exact = segmentor(trunk, 'int8').eval(), segmentor(trunk, 'float32').eval()
    graph = SegmentationGraph(model)
    assert {tensor.dtype for tensor in graph.parameters()} == {torch.float32}
    exact.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(graph(x), SegmentationGraph(exact)(x), rtol=0, atol=0)
    assert any(isinstance(module, Int8Linear) for module in model.modules())


def test_a_step_compiles_without_a_graph_break(trunk):
    model, (x, _) = segmentor(trunk, 'int8').train(), batch()
    expected = model.backbone(x)
    torch._dynamo.reset()
    compiled = torch.compile(model.backbone, backend='aot_eager', fullgraph=True)
    for found, plain in zip(compiled(x), expected):
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)


def test_blocks_before_the_first_prompt_build_no_graph(vit):
    model, seen = vit(trunk_dtype='int8', out_indices=(1, 3, 4, 5), prompts=dict(blocks=(4, 5))).train(), []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out.grad_fn is not None))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [False] * 4 + [True] * 2


def step_on_a_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', RANK=str(rank))
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    dist.init_process_group('gloo')
    torch.manual_seed(rank)  # DistributedDataParallel sends the first rank's weights
    model = MODELS.build(segmentor_cfg(tuning='lora', guidance=False, trunk_dtype='int8')).train()
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(rank)
    sum(value for name, value in wrapped(*batch(), mode='loss').items() if 'loss' in name).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.save(dict(state=model.state_dict(), gradients=gradients), f'{folder}/{rank}.pth')
    leave_process_group()


def test_two_ranks(tmp_path):
    run_ranks(step_on_a_rank, free_port(), str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2))
    kept = [name for name in first['state'] if 'running' not in name]
    assert all(torch.equal(first['state'][name], second['state'][name]) for name in kept)
    assert_equal(second['gradients'], first['gradients'])
