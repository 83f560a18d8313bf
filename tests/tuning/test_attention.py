"""Prompts as keys and values against the literal concatenation, in float64."""

import threading

import oracles
import pytest
import timm
import torch
from conftest import DEPTH, DIMS, spread

from mmseg_davpt.models import PromptedViT

TOLERANCE = dict(rtol=0, atol=1e-10)


def prompts_of(model):
    return {int(index): tokens for index, tokens in model.prompts.tokens.items()}


def plain(model):
    """timm's own model with the same weights."""
    trunk = timm.create_model(model.arch, num_classes=0, dynamic_img_size=True).to(next(model.parameters()).dtype)
    trunk.load_state_dict(model.trunk.state_dict())
    return trunk


@pytest.mark.parametrize('arch', ['test_vit', 'vit_small_patch14_reg4_dinov2', 'vit_xsmall_patch16_clip_224'])
@pytest.mark.parametrize('blocks', ['all', (0, 2), (-1,)])
def test_equals_literal_concatenation(vit, arch, blocks):
    """Outputs, gradients of the prompts and gradients of the image; with registers and LayerScale, with a pre-norm."""
    last = 5 if arch == 'test_vit' else 3
    model = vit(arch=arch, out_indices=(1, last), prompts=dict(num=7, blocks=blocks)).double().train()
    size = (2 * model.patch_size[0], 3 * model.patch_size[1])
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    fast = model(x)
    literal = oracles.vpt_deep(plain(model), prompts_of(model), x, (1, last))
    for a, b in zip(fast, literal, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    weights = [torch.randn_like(m) for m in fast]
    inputs = [*model.prompts.tokens.values(), x]
    gradients = torch.autograd.grad(sum((m * w).sum() for m, w in zip(fast, weights)), inputs)
    expected = torch.autograd.grad(sum((m * w).sum() for m, w in zip(literal, weights)), inputs)
    for a, b in zip(gradients, expected, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize('arch', ['test_vit', 'vit_small_patch14_reg4_dinov2', 'vit_xsmall_patch16_clip_224'])
def test_gated_prompts_are_attended_to_apart(vit, arch):
    """Outputs and gradients of prompts and gates, then through the cache of eval mode."""
    last = 5 if arch == 'test_vit' else 3
    model = vit(arch=arch, out_indices=(1, last), prompts=dict(num=7, gate=True)).double().train()
    x = torch.randn(2, 3, 2 * model.patch_size[0], 3 * model.patch_size[1], dtype=torch.float64)
    learns = [*model.prompts.tokens.values(), *model.prompts.gates.values()]
    gates = {int(index): gate for index, gate in model.prompts.gates.items()}
    assert all(gate.abs() > 1e-3 for gate in gates.values())
    found, expected = model(x), oracles.gated_vpt(plain(model), prompts_of(model), gates, x, (1, last))
    weights = [torch.randn_like(m) for m in expected]
    gradients = [
        torch.autograd.grad(sum((m * w).sum() for m, w in zip(maps, weights)), learns) for maps in (found, expected)
    ]
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[-1], expected[-1], **TOLERANCE)
        model.prompts.gates['0'].add_(1)  # a write in eval mode is noticed
        assert not torch.allclose(model(x)[-1], expected[-1])


@pytest.mark.parametrize('arch', ['test_vit', 'vit_small_patch14_reg4_dinov2', 'vit_xsmall_patch16_clip_224'])
@pytest.mark.parametrize('blocks', ['all', (0, 2)])
def test_residual_values_join_behind_layer_scale(vit, arch, blocks):
    """Outputs and gradients of prompts, values and image, then through the cache of eval mode."""
    last = 5 if arch == 'test_vit' else 3
    options = dict(arch=arch, out_indices=(1, last), prompts=dict(num=7, blocks=blocks), tuning='vpt_residual')
    model = vit(**options).double().train()
    size = (2 * model.patch_size[0], 3 * model.patch_size[1])
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs = [*model.prompts.tokens.values(), *model.prompts.values.values(), x]
    values = {int(index): value for index, value in model.prompts.values.items()}
    assert all(value.abs().max() > 1e-3 for value in values.values())
    outputs, expected = model(x), oracles.residual_vpt(plain(model), prompts_of(model), values, x, (1, last))
    weights = [torch.randn_like(m) for m in expected]
    gradients = [
        torch.autograd.grad(sum((m * w).sum() for m, w in zip(maps, weights)), inputs) for maps in (outputs, expected)
    ]
    for a, b in zip((*outputs, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, **TOLERANCE)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[-1], expected[-1], **TOLERANCE)
        model.prompts.values['0'].mul_(2)  # a write in eval mode is noticed
        assert not torch.allclose(model(x)[-1], expected[-1])


def test_residual_values_are_zero_at_the_start_and_trained():
    options = dict(prompts=dict(num=3), tuning='vpt_residual', out_indices=(5,), allow_random=True)
    model = PromptedViT('test_vit', False, **options).train()
    x = torch.randn(1, 3, 64, 64)
    with model.without_tuning():
        expected = model(x)[0]
    assert torch.equal(model(x)[0], expected)
    (model(x)[0] * torch.randn_like(expected)).sum().backward()
    assert all(value.grad.abs().max() > 0 for value in model.prompts.values.values())
    assert not any(tokens.grad.any() for tokens in model.prompts.tokens.values())  # zero values: no choice matters yet
    with pytest.raises(ValueError, match=r"residual_prompts: unknown option 'gate'"):
        PromptedViT('test_vit', False, prompts=dict(gate=True), tuning='vpt_residual', out_indices=(5,))


def test_a_gate_starts_shut_and_learns():
    model = PromptedViT('test_vit', False, prompts=dict(num=3, gate=True), out_indices=(5,), allow_random=True).train()
    x = torch.randn(1, 3, 64, 64)
    with model.without_tuning():
        expected = model(x)[0]
    assert torch.equal(model(x)[0], expected)
    (model(x)[0] * torch.randn_like(expected)).sum().backward()
    assert all(gate.grad.abs() > 0 for gate in model.prompts.gates.values())
    with pytest.raises(ValueError, match=r"shallow_prompts: unknown option 'gate'"):
        PromptedViT('test_vit', False, prompts=dict(gate=True), tuning='vpt_shallow', out_indices=(5,))


def test_q_and_k_norms_stay(vit):
    """A trunk that norms queries and keys: prompts' keys are normed too, as in the literal form."""
    model = vit(prompts=dict(num=4), out_indices=(1, 2))
    norms = [(torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)) for _ in model.trunk.blocks]
    trunk = plain(model)
    for tower in (model.trunk, trunk):
        for block, (q_norm, k_norm) in zip(tower.blocks, norms):
            block.attn.q_norm, block.attn.k_norm = q_norm, k_norm
    spread(model)
    model, trunk = model.double().train(), trunk.double()
    trunk.load_state_dict(model.trunk.state_dict())
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    for a, b in zip(model(x), oracles.vpt_deep(trunk, prompts_of(model), x, (1, 2)), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_shallow_equals_literal(vit):
    model = vit(prompts=dict(num=5), tuning='vpt_shallow').double().train()
    x = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    fast = model(x)
    literal = oracles.vpt_shallow(plain(model), model.prompts.tokens['0'], x, (1, 3, 5))
    for a, b in zip(fast, literal, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    fast[0].sum().backward()
    assert model.prompts.tokens['0'].grad.abs().max() > 0


@pytest.mark.parametrize('norm_outputs', [True, False])
@pytest.mark.parametrize('out_indices', [(1, 3, 5), (-3, -1), (2,)])
def test_no_prompts_equals_timm(vit, norm_outputs, out_indices):
    model = vit(tuning='frozen', norm_outputs=norm_outputs, out_indices=out_indices).eval()
    x = torch.randn(2, 3, 64, 96)
    expected = (
        plain(model)
        .eval()
        .forward_intermediates(
            x, indices=[i % 6 for i in out_indices], norm=norm_outputs, output_fmt='NCHW', intermediates_only=True
        )
    )
    for a, b in zip(model(x), expected, strict=True):
        assert torch.equal(a, b)


def test_without_prompts_equals_timm(vit):
    """The switch that the assignment's warm-up uses, and split biases at their start, change nothing."""
    model = vit(prompts=dict(num=4), tuning='davpt_plus').eval()
    for bias in model.tuned['bias'].parameters():
        torch.nn.init.zeros_(bias)
    x = torch.randn(1, 3, 64, 64)
    expected = plain(model).eval().forward_intermediates(x, indices=[1, 3, 5], norm=True, intermediates_only=True)
    with model.without_tuning(), torch.no_grad():
        for a, b in zip(model(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x)[-1], expected[-1], atol=1e-3)


def test_split_biases_merge_into_qkv(vit):
    """Tuned offsets equal a plain trunk with the merged qkv.bias."""
    model = vit(tuning=dict(bias=('k', 'v'))).double().eval()
    assert any(bias.abs().max() > 0.1 for bias in model.tuned['bias'].parameters())
    merged = timm.create_model('test_vit', num_classes=0, dynamic_img_size=True).double().eval()
    merged.load_state_dict(model.merged_trunk())
    before = model.trunk.state_dict()['blocks.0.attn.qkv.bias']
    assert torch.equal(model.merged_trunk()['blocks.0.attn.qkv.bias'][:DIMS], before[:DIMS])
    x = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    expected = merged.forward_intermediates(x, indices=[1, 3, 5], norm=True, intermediates_only=True)
    for a, b in zip(model(x), expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_key_bias_gets_no_gradient(vit):
    """Softmax cancels it; beside the value bias its gradient is rounding."""
    model = vit(prompts=dict(num=3), tuning='davpt_plus').double().train()
    loss = sum((m * torch.randn_like(m)).sum() for m in model(torch.randn(2, 3, 64, 64, dtype=torch.float64)))
    loss.backward()
    for bias in model.tuned['bias'].offsets.values():
        assert bias.k.grad.abs().max() < 1e-10
        assert bias.v.grad.abs().max() > 1e-3


def test_tap_hands_out_the_attention_output(vit):
    model = vit(prompts=dict(num=4)).double().train()
    x = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    trunk, prompts = plain(model), prompts_of(model)
    with model.record((3,)) as activations:
        model(x)
    tokens = trunk._pos_embed(trunk.patch_embed(x))
    prefix = trunk.num_prefix_tokens
    for index in range(3):
        joined = trunk.blocks[index](torch.cat([tokens, prompts[index].expand(2, -1, -1)], dim=1))
        tokens = joined[:, : tokens.shape[1]]
    expected = oracles.attention_output(trunk.blocks[3], tokens, prompts[3], prefix)
    torch.testing.assert_close(activations[3].attn_out, expected, **TOLERANCE)
    torch.testing.assert_close(activations[3].tokens, trunk.blocks[3].norm1(tokens)[:, prefix:], **TOLERANCE)
    torch.testing.assert_close(activations[3].prompts, trunk.blocks[3].norm1(prompts[3]), **TOLERANCE)
    q, k, _ = trunk.blocks[3].attn.qkv(activations[3].prompts).chunk(3, dim=-1)
    torch.testing.assert_close(activations[3].project(activations[3].prompts, 'query'), q, **TOLERANCE)
    torch.testing.assert_close(activations[3].project(activations[3].prompts, 'key'), k, **TOLERANCE)
    assert all(block.attn.recorder is None for block in model.trunk.blocks)


def logits(model, x):
    with torch.no_grad():
        return model(x)[-1]


def silent_writes(model):
    """Writes that do not bump a tensor's version, as fused optimizers and the swap of EMAHook do them."""
    for parameter in model.tuned.parameters():
        parameter.data.copy_(parameter.data + torch.randn_like(parameter))


@pytest.mark.parametrize('tuning', ['vpt_deep', dict(prompts=dict(gate=True)), 'vpt_residual'])
def test_validation_after_training_uses_the_new_prompts(vit, tuning):
    """Keys and values of eval mode are dropped by train() and eval(), however the prompts were written."""
    options = dict(prompts=dict(num=4), tuning=tuning)
    model, x = vit(**options).eval(), torch.randn(1, 3, 64, 64)
    first = logits(model, x)
    assert torch.equal(logits(model, x), first)
    silent_writes(model.train())
    model.eval()
    fresh = vit(**options).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(model, x), logits(fresh, x))
    assert not torch.allclose(logits(model, x), first, atol=1e-4)
    silent_writes(model)  # EMAHook swaps before eval() is called
    assert not torch.allclose(logits(model.eval(), x), logits(fresh, x), atol=1e-4)


def test_constants_are_computed_once_and_follow_every_change(vit, monkeypatch):
    model, x = vit(prompts=dict(num=4), tuning=dict(prompts=True, lora=True)).eval(), torch.randn(1, 3, 64, 64)
    calls = []
    project = type(model.prompts)._project
    monkeypatch.setattr(
        type(model.prompts), '_project', lambda self, block: calls.append(block) or project(self, block)
    )
    first = logits(model, x)
    assert len(calls) == DEPTH
    assert torch.equal(logits(model, x), first)
    assert len(calls) == DEPTH
    with torch.autocast('cpu', torch.bfloat16):  # another type of keys and values
        low = logits(model, x)
        assert torch.equal(low, model(x)[-1].detach())  # with gradients: nothing is kept
        assert torch.equal(logits(model, x), low)
    assert torch.equal(logits(model, x), first)
    model.tuned['lora'].layers['0']['v'].lora_B['default'].weight.data.normal_()
    with torch.no_grad():
        model.prompts.tokens['0'].add_(1)  # bumps the version
    changed = logits(model, x)
    assert not torch.allclose(changed, first, atol=1e-4)
    torch.testing.assert_close(changed, model(x)[-1].detach())  # with gradients: nothing is kept
    with torch.no_grad():
        model.tuned['lora'].layers['1']['v'].lora_B['default'].weight.normal_()
    torch.testing.assert_close(logits(model, x), model(x)[-1].detach())
    double = logits(model.double(), x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, model(x.double())[-1].detach())


def test_constants_after_loading_and_under_inference_mode(vit):
    model, other, x = vit(prompts=dict(num=4)).eval(), vit(prompts=dict(num=4)).eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first = model(x)[-1].clone()
    assert torch.equal(logits(model, x), first)
    model(x)[-1].sum().backward()  # tensors of inference mode would be refused here
    model.load_state_dict(other.state_dict())
    assert torch.equal(logits(model, x), logits(other, x))


def test_threads_with_other_types_do_not_disturb(vit):
    model, x = vit(prompts=dict(num=4)).eval(), torch.randn(1, 3, 32, 32)
    expected, results = logits(model, x), []
    stop = threading.Event()

    def half():
        while not stop.is_set():
            with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
                model(x)

    thread = threading.Thread(target=half)
    thread.start()
    try:
        results = [logits(model, x) for _ in range(100)]
    finally:
        stop.set()
        thread.join()
    assert all(torch.equal(result, expected) for result in results)


def test_dropout_of_prompts_is_live_only_in_training(vit):
    model = vit(prompts=dict(num=4, dropout=0.5))
    x = torch.randn(1, 3, 64, 64)
    model.train()
    assert not torch.equal(model(x)[-1], model(x)[-1])
    model.eval()
    assert torch.equal(model(x)[-1], model(x)[-1])


def test_blocks_before_the_first_prompt_build_no_graph(vit):
    model = vit(prompts=dict(num=2, blocks=(3, 5)), norm_outputs=False).train()
    first, middle, last = model(torch.randn(1, 3, 64, 64))
    assert not first.requires_grad
    assert middle.requires_grad
    assert last.requires_grad


@pytest.mark.parametrize('tuning', ['vpt_deep', dict(prompts=dict(gate=True)), 'vpt_residual'])
def test_checkpointing_gives_the_same_gradients(tuning):
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        options = dict(out_indices=(5,), prompts=dict(num=3), tuning=tuning, with_cp=with_cp, allow_random=True)
        model = PromptedViT('test_vit', False, **options)
        torch.manual_seed(1)
        spread(model)
        model.train()
        with model.record((5,)) as activations:
            out = model(x)[0]
        loss = out.square().mean() + activations[5].attn_out.square().mean() + activations[5].prompts.square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.prompts.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)
