"""What learns under each preset, and one battery that every preset must pass."""

import sys

import pytest
import timm
import torch
from conftest import DEPTH, batch, segmentor_cfg
from mmseg.registry import MODELS

from mmseg_davpt.models import PromptedViT
from mmseg_davpt.tuning import presets, resolve_tuning

PRESETS = [*sorted(set(presets()) - {'frozen'}), 'partial-2']
EXPLICIT = [
    dict(prompts=True, bias=('v',), norm=True, cls_token=True),
    dict(bias=('proj', 'fc1')),
    dict(blocks=(-1, 0)),
    dict(prompts=True, bias=('v',), lora=dict(targets=('v', 'proj'), rank=2), adaptformer=dict(dim=4)),
]


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trunk_names(model):
    return {f'trunk.{name}' for name, _ in model.trunk.named_parameters()}


def few_prompts(tuning):
    """Three prompts for a tuning that has any."""
    methods = resolve_tuning(tuning, None, DEPTH).methods
    return dict(prompts=dict(num=3) if {'prompts', 'shallow_prompts'} & set(methods) else None, tuning=tuning)


def test_what_each_preset_tunes(vit):
    def of(tuning, **options):
        return trainable(vit(**few_prompts(tuning), **options))

    every = trunk_names(vit(tuning='frozen'))
    prompts = {f'tuned.prompts.tokens.{i}' for i in range(DEPTH)}
    gates = {f'tuned.prompts.gates.{i}' for i in range(DEPTH)}
    biases = {name for name in every if name.endswith('.bias')}
    offsets = {f'tuned.bias.offsets.{i}.{target}' for i in range(DEPTH) for target in 'kv'}
    assert of('frozen') == set()
    assert of('full') == every
    assert of('bias') == biases
    assert of('norm') == {name for name in every if '.norm' in name}
    last_two = {name for name in every if name.startswith(('trunk.blocks.4.', 'trunk.blocks.5.'))}
    assert of('partial-2') == last_two | {'trunk.norm.weight', 'trunk.norm.bias'}
    assert of('vpt_shallow') == {'tuned.shallow_prompts.tokens.0'}
    assert of('vpt_deep') == of('davpt') == prompts
    assert of('davpt_gated') == prompts | gates
    assert of('davpt_plus') == prompts | offsets
    assert of('davpt_gated_plus') == prompts | gates | offsets
    assert of('davpt_gated_bias') == prompts | gates | biases
    assert of('vpt_bias') == prompts | biases
    assert of(dict(cls_token=True)) == {'trunk.cls_token'}
    lora = {f'tuned.lora.layers.{i}.{t}.lora_{m}.default.weight' for i in range(DEPTH) for t in 'qv' for m in 'AB'}
    assert of('lora') == lora
    assert {name.split('.')[4] for name in of('lora_all')} == {'q', 'k', 'v', 'proj'}
    layers = [f'{layer}.{kind}' for layer in ('down', 'up') for kind in ('weight', 'bias')]
    adapters = {f'branches.{i}.{layer}' for i in range(DEPTH) for layer in layers}
    assert of('adaptformer') == {f'tuned.adaptformer.{name}' for name in adapters}
    assert of('parallel_adapter_lora') == lora | {f'tuned.parallel_adapter.{name}' for name in adapters}


def test_named_biases_are_those_of_the_blocks(vit):
    """The patch embedding has a layer called proj, too: its bias would make the graph reach the stem."""
    model = vit(tuning=dict(bias=('proj', 'fc1')))
    names = {name for name in trunk_names(model) if name.endswith(('attn.proj.bias', 'fc1.bias')) and 'blocks' in name}
    assert trainable(model) == names
    stem = []
    model.trunk.blocks[0].register_forward_pre_hook(lambda _, args: stem.append(args[0].requires_grad))
    model.train()(torch.randn(1, 3, 32, 32))
    assert stem == [False]


def test_prompts_are_kept_in_the_order_of_their_blocks():
    model = PromptedViT('vit_tiny_patch16_224', False, allow_random=True, tuning='davpt_gated', prompts=dict(num=2))
    assert list(model.prompts.tokens) == list(model.prompts.gates) == [str(index) for index in range(12)]


def test_nothing_behind_the_last_output_is_trainable(vit):
    """A parameter that no output depends on breaks distributed training."""
    for tuning in (set(PRESETS) | {'partial-1'}) - {'partial-2'}:
        model = vit(out_indices=(0, 2), norm_outputs=False, **few_prompts(tuning))
        names = trainable(model)
        assert names
        assert not any(f'.{block}.' in f'.{name}.' for name in names for block in (3, 4, 5)), tuning
        assert 'trunk.norm.weight' not in names


@pytest.mark.parametrize('tuning', PRESETS + EXPLICIT, ids=str)
class TestEveryPreset:
    def build(self, tuning):
        model = MODELS.build(segmentor_cfg(**few_prompts(tuning), guidance=False, type_='EncoderDecoder'))
        if getattr(model.backbone.prompts, 'init', '') == 'prototype':
            model.backbone.prompts.mark_initialised()
        return model.train()

    def test_a_step_changes_only_what_is_tuned(self, tuning):
        model = self.build(tuning)
        for name, parameter in model.backbone.named_parameters():
            if name.startswith('tuned') and not parameter.any():  # behind a zero, nothing changes in the first step
                torch.nn.init.normal_(parameter)
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        losses = model(*batch(), mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        tuned = trainable(model.backbone)
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, before[name]) == (name not in tuned), name

    def test_train_returns_self_and_frozen_parts_evaluate(self, tuning):
        model = self.build(tuning)
        backbone = model.backbone
        assert backbone.train() is backbone
        for block in backbone.trunk.blocks:
            whole = all(parameter.requires_grad for parameter in block.parameters())
            assert block.training == whole
        assert backbone.training
        assert not backbone.eval().training
        assert not any(module.training for module in backbone.modules())


def test_frozen_drop_path_is_dead_and_tuned_is_live(vit):
    x = torch.randn(4, 3, 32, 32)
    frozen = vit(tuning='davpt', prompts=dict(num=2), drop_path_rate=0.9).train()
    assert torch.equal(frozen(x)[-1], frozen(x)[-1])
    full = vit(tuning='full', drop_path_rate=0.9).train()
    assert not torch.equal(full(x)[-1], full(x)[-1])


@pytest.mark.parametrize(
    ('tuning', 'message'),
    [
        ('vpt', 'vpt_deep'),
        (dict(prompts='deep'), 'expected True or a dict'),
        (dict(lora=True, dora=True), 'choose one'),
        (dict(prompts=True, residual_prompts=True), 'prompts and residual_prompts both have deep prompts: choose one'),
        (dict(lora=dict(rnk=2)), "unknown option 'rnk'"),
        ('partial-9', '6 blocks'),
        (dict(promts=True), 'promts'),
        (dict(bias=('w',)), "bias.layers='w'"),
        (dict(bias='k'), "bias.layers='k'"),
        (dict(blocks=(6,)), 'tuning.blocks'),
        (dict(blocks='all', bias=('k',)), 'twice'),
        (dict(lora=dict(targets=('query',))), 'targets'),
        (dict(lora=dict(rank=0)), 'rank=0'),
        (dict(adaptformer=dict(dim=0)), 'dim=0'),
    ],
)
def test_names_that_match_nothing_are_errors(vit, tuning, message):
    with pytest.raises(ValueError, match=message):
        vit(tuning=tuning)


def test_class_token_that_is_not_there(vit):
    with pytest.raises(ValueError, match='cls_token matches no parameter'):
        vit(arch='test_vit2', norm_outputs=False, tuning=dict(cls_token=True))


@pytest.mark.parametrize(('alpha', 'scale'), [(6, 2.0), (None, 1.0)])
@pytest.mark.parametrize('arch', ['test_vit', 'eva02_tiny_patch14_224', 'vit_tiny_patch16_dinov3_qkvb'])
def test_lora_is_its_formula(arch, alpha, scale):
    """W + alpha / r * B A in timm's own weights gives the same maps; fused, split and biased projections."""
    options = dict(pretrained=False, allow_random=True, out_indices=(0, 2))
    tuning = dict(lora=dict(targets=('q', 'k', 'v', 'proj'), rank=3, alpha=alpha))
    model = PromptedViT(arch, **options, tuning=tuning).double().eval()
    before = PromptedViT(arch, **options, tuning='frozen').double().eval()
    before.trunk.load_state_dict(model.trunk.state_dict())
    x = torch.randn(1, 3, 2 * model.patch_size[0], 3 * model.patch_size[1], dtype=torch.float64)
    for a, b in zip(model(x), before(x), strict=True):  # B starts at zero
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for parameter in model.tuned['lora'].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for index, layers in model.tuned['lora'].layers.items():
        attn = before.trunk.blocks[int(index)].attn
        for number, part in enumerate(('q', 'k', 'v', 'proj')):
            a, b = (layers[part].get_parameter(f'lora_{matrix}.default.weight') for matrix in 'AB')
            whole = (
                attn.proj if part == 'proj' else attn.get_submodule(f'{part}_proj') if attn.qkv is None else attn.qkv
            )
            rows = slice(number * len(b), (number + 1) * len(b)) if whole is attn.qkv else slice(None)
            with torch.no_grad():
                whole.weight[rows] += scale * b @ a
    for a, b in zip(model(x), before(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    merged = model.merged_trunk()
    assert all(torch.allclose(merged[name], value) for name, value in before.trunk.state_dict().items())


def test_lora_without_peft_says_what_to_install(vit, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match='pip install'):
        vit(tuning='lora')


@pytest.mark.parametrize('arch', ['test_vit', 'vit_small_patch14_dinov2'])
def test_adapter_is_its_formula(arch):
    """AdaptFormer's equations, block by block; with LayerScale the branch joins behind it."""
    model = PromptedViT(
        arch,
        False,
        out_indices=(2,),
        allow_random=True,
        norm_outputs=False,
        tuning=dict(adaptformer=dict(dim=5, scale=0.7)),
    ).double()
    for parameter in [
        *model.tuned['adaptformer'].parameters(),
        *(p for n, p in model.trunk.named_parameters() if 'gamma' in n),
    ]:
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 2 * model.patch_size[0], 2 * model.patch_size[1], dtype=torch.float64)
    trunk = timm.create_model(arch, num_classes=0, dynamic_img_size=True).double()
    trunk.load_state_dict(model.trunk.state_dict())
    tokens = trunk._pos_embed(trunk.patch_embed(x))
    branches = model.tuned['adaptformer'].branches
    for block, adapter in zip(trunk.blocks, branches.values()):
        tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
        z = block.norm2(tokens)
        branch = (z @ adapter['down'].weight.T + adapter['down'].bias).clamp(min=0) @ adapter['up'].weight.T + adapter[
            'up'
        ].bias
        tokens = tokens + block.ls2(block.mlp(z)) + 0.7 * branch
        if adapter is branches['2']:
            break
    expected = tokens[:, trunk.num_prefix_tokens :].transpose(1, 2).reshape(2, -1, 2, 2)
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-10)
