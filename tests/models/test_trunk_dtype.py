"""``trunk_dtype``: which tensors are converted, files of either type, fingerprints of the file, guidance, ranks."""

import os

import families
import pytest
import torch
import torch.distributed as dist
from conftest import batch, free_port, segmentor_cfg, spread
from faults.scenes import run_ranks
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from safetensors.torch import load_file
from small_tasks import make_task, save_trunk, state_of, task_cfg
from torch.nn.parallel import DistributedDataParallel

from mmseg_davpt import WeightsError
from mmseg_davpt.apis import leave_process_group
from mmseg_davpt.export.graph import SegmentationGraph
from mmseg_davpt.models import PromptedViT
from mmseg_davpt.models.prompted_vit import _crop_to_image
from mmseg_davpt.tasks.model import build_task
from mmseg_davpt.weights.fingerprint import tensor_digest

MATRICES = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2', 'patch_embed.proj')


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
    return save_trunk(tmp_path_factory.mktemp('trunk') / 'trunk.safetensors')


def segmentor(trunk, dtype, seed=0, **options):
    options = dict(tuning='davpt_plus', guidance=True, prompts=dict(num=3)) | options
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    model = MODELS.build(task_cfg(trunk, trunk_dtype=dtype, **options).model)
    model.init_weights()
    spread(model.backbone.tuned)
    for part in getattr(model.guidance, 'assignments', ()):
        part.assignment.copy_(torch.arange(len(part.assignment)) % 3)
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('tuning', ['frozen', 'bias', 'norm', 'partial-2', 'lora', 'full'])
def test_only_frozen_matrices_are_converted(vit, dtype, tuning):
    model = vit(tuning=tuning, trunk_dtype=dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer = name.rpartition('.')[0]
        matrix = layer.endswith(MATRICES) and not tensor.requires_grad
        expected = getattr(torch, dtype) if matrix else torch.float32
        assert tensor.dtype == expected or not tensor.is_floating_point(), (name, tensor.dtype)
    assert any(tensor.dtype == getattr(torch, dtype) for tensor in model.parameters()) == (tuning != 'full')
    stored = sum(tensor.nbytes for tensor in model.trunk.parameters() if not tensor.requires_grad)
    alone = vit(tuning=tuning).trunk.parameters()
    assert stored <= 0.7 * sum(tensor.nbytes for tensor in alone if not tensor.requires_grad)  # norms of a tiny trunk


def test_maps_and_gradients_are_close_to_float32(trunk):
    exact, half = (segmentor(trunk, dtype, tuning='davpt', guidance=True) for dtype in ('float32', 'bfloat16'))
    x, _ = batch()
    steps = []
    for model in (exact.backbone, half.backbone):
        maps = model.train()(x)
        (maps[-1] * torch.linspace(-1, 1, maps[-1].numel()).view_as(maps[-1])).sum().backward()
        steps.append((maps[-1].detach(), model.prompts.tokens['0'].grad))
    for low, expected in zip(steps[1], steps[0]):
        assert low.dtype == torch.float32
        assert 0 < (low - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize('arch', families.ARCHS)
def test_every_family_keeps_its_residual_stream_in_float32(arch, monkeypatch):
    families.shrink(monkeypatch)
    options = dict(pretrained=False, allow_random=True, out_indices=(0, 2), prompts=dict(num=2))
    options['norm_outputs'] = 'pe_spatial' not in arch
    exact, half = (PromptedViT(arch, **options, trunk_dtype=dtype).train() for dtype in ('float32', 'bfloat16'))
    half.load_state_dict(exact.state_dict())
    seen = []
    for block in half.trunk.blocks:
        block.register_forward_hook(lambda _, args, out: seen.extend((args[0].dtype, out.dtype)))
    x = torch.randn(
        1, 3, *((224, 224) if families.is_beit(arch) else (70, 90))
    )  # no whole patches: the maps are cropped
    with torch.autocast('cpu', torch.bfloat16):
        expected = exact(x)
    assert all(torch.equal(a, b) for a, b in zip(half(x), expected, strict=True))
    assert set(seen) == {torch.float32}


def test_cropping_to_the_image_is_exact_under_autocast():
    x = torch.randn(1, 4, 5, 7)
    expected = _crop_to_image(x, torch.Size((60, 90)), (14, 14))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(_crop_to_image(x, torch.Size((60, 90)), (14, 14)), expected)


def test_float16_needs_a_gpu(vit):
    model = vit(trunk_dtype='float16')
    with pytest.raises(ValueError, match=r"trunk_dtype='float16' runs on GPUs only.*bfloat16"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(('saved', 'loaded'), [('float32', 'bfloat16'), ('bfloat16', 'float32'), ('bfloat16',) * 2])
@pytest.mark.parametrize('whole', [True, False], ids=['checkpoint', 'task'])
def test_files_load_into_either_type(trunk, tmp_path, saved, loaded, whole):
    """Trainable tensors bit for bit, and the fingerprint of the weight file throughout."""
    model = segmentor(trunk, saved)
    torch.save(model.state_dict() if whole else state_of(model), tmp_path / 'model.pth')
    fresh = segmentor(trunk, loaded, seed=1)
    fresh.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    assert_equal(trained(fresh), trained(model))
    expected = segmentor(trunk, 'float32').backbone.fingerprint()
    assert expected.tensors['blocks.0.attn.qkv.weight'] == tensor_digest(load_file(trunk)['blocks.0.attn.qkv.weight'])
    assert model.backbone.fingerprint() == fresh.backbone.fingerprint() == expected
    state = torch.load(tmp_path / 'model.pth', weights_only=True)
    if whole:  # a third model, from the second one's checkpoint, never sees the weight file
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        third = MODELS.build(task_cfg(trunk, tuning='davpt_plus', guidance=True, prompts=dict(num=3)).model)
        third.load_state_dict(fresh.state_dict())
        assert third.backbone.fingerprint() == expected
        assert_equal(trained(third), trained(model))
        assert 'backbone.trunk_fingerprint' in third.state_dict() or saved == loaded == 'float32'


def test_a_half_precision_checkpoint_gives_float32_models_the_same_weights(trunk):
    half, exact = segmentor(trunk, 'bfloat16'), segmentor(trunk, 'float32', seed=1)
    exact.load_state_dict(half.state_dict())
    x, _ = batch()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = exact.backbone.eval()(x)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(half.backbone.eval()(x), expected))


def test_new_weights_have_their_own_fingerprint(trunk, tmp_path):
    """Values that are loaded later replace what was noted of earlier ones."""
    other = save_trunk(tmp_path / 'other.safetensors', seed=3)
    model, expected = segmentor(trunk, 'bfloat16'), segmentor(other, 'float32').backbone
    model.backbone.trunk.load_state_dict(expected.trunk.state_dict())
    assert model.backbone.fingerprint() == expected.fingerprint()
    with pytest.raises(WeightsError, match='other weights'):
        model.load_state_dict(state_of(segmentor(trunk, 'bfloat16')) | {'backbone.trunk_fingerprint': _damaged(model)})
    exact = segmentor(trunk, 'float32')
    exact.load_state_dict(segmentor(trunk, 'bfloat16').state_dict())
    exact.backbone.trunk.load_state_dict(expected.trunk.state_dict())
    assert exact.backbone.fingerprint() == expected.fingerprint()


def _damaged(model):
    fingerprint = model.backbone.fingerprint().to_dict()
    return fingerprint | dict(tensors={name: '0' * 32 for name in fingerprint['tensors']})


def test_a_damaged_fingerprint_is_named(trunk):
    model = segmentor(trunk, 'bfloat16')
    state = model.state_dict()
    state['backbone.trunk_fingerprint'] = state['backbone.trunk_fingerprint'][:-5]
    with pytest.raises(WeightsError, match='damaged'):
        model.load_state_dict(state)


def test_task_files_of_either_type_are_the_same(trunk, tmp_path):
    """A task has no type of the trunk: it is built on float32, shared by all tasks."""
    for dtype in ('float32', 'bfloat16'):
        make_task(tmp_path / f'{dtype}.task.safetensors', trunk, trunk_dtype=dtype)
    paths = [tmp_path / f'{dtype}.task.safetensors' for dtype in ('float32', 'bfloat16')]
    (first, exact), (second, half) = (build_task(path, trunk) for path in paths)
    assert first.trunk == second.trunk and first.model == second.model
    assert half.backbone.trunk_dtype == 'float32'
    own, other = exact.state_dict(), half.state_dict()
    bias = 'decode_head.conv_seg.bias'  # set from the model's own logits
    assert_equal({k: v for k, v in other.items() if k != bias}, {k: v for k, v in own.items() if k != bias})


@pytest.mark.parametrize('tuning', ['lora', 'bias', 'ssf'])
def test_merging_does_not_round_updates(trunk, tuning):
    """The update of a bfloat16 weight may be smaller than its spacing."""
    model = segmentor(trunk, 'bfloat16', tuning=tuning, prompts=None, guidance=False).backbone
    name = 'blocks.0.attn.qkv.weight' if tuning == 'lora' else 'blocks.0.attn.qkv.bias'
    with torch.no_grad():
        for key, parameter in model.tuned.named_parameters():
            if 'lora_B' in key or 'shifts' in key:
                parameter.fill_(1e-5)
    before, merged = model.trunk.state_dict()[name], model.merged_trunk()
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    assert torch.equal(merged[name], before.float()) == (tuning == 'bias')  # trained in place
    assert (merged[name] - before.float()).abs().max() < 1e-3
    assert model.trunk.state_dict()[name] is not merged[name]


@pytest.mark.parametrize('tuning', ['davpt', 'davpt_plus', dict(prompts=dict(num=3), lora=dict(rank=2), bias='all')])
def test_guidance_without_autocast(trunk, tuning):
    """Its losses are close to those of float32; class means stay float32."""
    losses = []
    for dtype in ('float32', 'bfloat16'):
        model = segmentor(trunk, dtype, tuning=tuning, prompts=dict(num=3)).train()
        torch.manual_seed(0)
        inputs, samples = batch()
        found = model.loss(inputs, samples)
        (found['loss_guide_patch'] + found['loss_guide_proto']).backward()
        assert model.guidance.assignments[0].sums.dtype == torch.float32
        assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in model.parameters())
        losses.append([found[name].detach() for name in ('loss_guide_patch', 'loss_guide_proto')])
        model.eval().collect_prototypes(inputs, samples)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_exports_are_float32(trunk):
    model = segmentor(trunk, 'bfloat16').eval()
    graph = SegmentationGraph(model)
    assert {tensor.dtype for tensor in graph.parameters()} == {torch.float32}
    exact = segmentor(trunk, 'float32')
    exact.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(graph(x), SegmentationGraph(exact.eval())(x), rtol=0, atol=0)
    assert model.backbone.trunk_dtype == 'bfloat16'


def test_a_guided_step_compiles_without_a_graph_break(trunk):
    model, (x, _) = segmentor(trunk, 'bfloat16').train(), batch()
    expected = model.backbone(x)
    torch._dynamo.reset()
    compiled = torch.compile(model.backbone, backend='aot_eager', fullgraph=True)
    for found, plain in zip(compiled(x), expected):
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)


def test_blocks_before_the_first_prompt_build_no_graph(vit):
    """Also with half precision: the autocast does not attach anything to frozen tensors."""
    for options in (
        dict(prompts=dict(blocks=(4, 5))),
        dict(tuning=dict(lora=dict(blocks=(4, 5)))),
        *(dict(tuning={name: dict(blocks=(4, 5))}) for name in ('dora', 'adaptformer', 'parallel_adapter', 'convpass')),
    ):
        for dtype in ('float32', 'bfloat16'):
            model, seen = vit(trunk_dtype=dtype, out_indices=(1, 3, 4, 5), **options).train(), []
            for block in model.trunk.blocks:
                block.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.grad_fn is not None))
            maps = model(torch.zeros(1, 3, 32, 32))
            assert seen == [False] * 4 + [True] * 2, options
            assert [out.grad_fn is not None for out in maps] == [False, False, True, True]


def step_on_a_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', RANK=str(rank))
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    dist.init_process_group('gloo')
    torch.manual_seed(rank)  # DistributedDataParallel sends the first rank's weights
    model = MODELS.build(segmentor_cfg(tuning='lora', guidance=False, trunk_dtype='bfloat16')).train()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
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
    assert any(value.dtype == torch.bfloat16 for value in first['state'].values())
    assert_equal(second['gradients'], first['gradients'])
