"""Variants of the method that only the benchmarks use."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.trials.balanced_guidance import BalancedGuidance
from benchmarks.trials.residual_values import VariantValues
from mmseg_davpt.guidance import MetricGuidance, class_prototypes
from mmseg_davpt.models import PromptedViT

VARIANTS = [
    dict(where='mlp'),
    dict(where='both'),
    dict(choice='sigmoid'),
    dict(choice='relu'),
    dict(choice='top'),
    dict(scaled=True),
    dict(null=True),
    dict(free_keys=True),
    dict(rank=2),
]


def vit(**variant):
    options = dict(out_indices=(5,), allow_random=True, prompts=dict(num=6, init='xavier'))
    return PromptedViT('test_vit', False, tuning=dict(residual_variant=variant), **options)


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_start_is_the_trunk_and_values_are_trained(variant):
    model = vit(**variant).train()
    x = torch.randn(1, 3, 64, 64)
    with model.without_tuning():
        expected = model(x)[0]
    assert torch.equal(model(x)[0], expected)
    (model(x)[0] * torch.randn_like(expected)).sum().backward()
    values = [*model.prompts.values.values(), *model.prompts.mlp_values.values()]
    assert all(value.grad is not None and value.grad.any() for value in values)


def test_proxies_do_not_act():
    model = vit(where='nowhere').train()
    x = torch.randn(1, 3, 64, 64)
    with model.without_tuning():
        expected = model(x)[0]
    model.prompts.tokens['0'].data.mul_(100)
    assert torch.equal(model(x)[0], expected)


@pytest.mark.parametrize(
    ('variant', 'weights'),
    [
        (dict(choice='sigmoid'), lambda scores: 1 / (1 + torch.exp(-scores)) / 6),
        (dict(choice='relu'), lambda scores: scores.clamp(min=0) / 6),
        (dict(choice='top'), lambda scores: _softmax_of_highest(scores, 4)),
        (dict(scaled=True), lambda scores: 3 * torch.exp(2 * scores) / torch.exp(2 * scores).sum(-1, keepdim=True)),
    ],
    ids=['sigmoid', 'relu', 'top', 'scaled'],
)
def test_weights(variant, weights):
    """Against the equation, one head and query at a time."""
    model = vit(**variant).eval()
    method, attention = model.prompts, model.trunk.blocks[0].attn
    if method.scales:
        method.scales['0'].data[0].fill_(2)
        method.scales['0'].data[1].fill_(3)
    heads, d = attention.num_heads, model.trunk.embed_dim // attention.num_heads
    q, keys = torch.randn(2, heads, 5, d), torch.randn(heads, 6, d)
    found = VariantValues(torch.empty(0), keys, torch.empty(0), method).weights(attention, q)
    scores = torch.stack([q[:, head].flatten(0, 1) @ keys[head].T / d**0.5 for head in range(heads)])
    torch.testing.assert_close(found, weights(scores))


def _softmax_of_highest(scores, number):
    weights = torch.zeros_like(scores)
    for row, out in zip(scores.flatten(0, 1), weights.flatten(0, 1)):
        indices = row.argsort(descending=True)[:number]
        out[indices] = row[indices].softmax(-1)
    return weights


def test_balanced_images_have_the_same_weight():
    """Class means against the plain mean over the images; the patch term does not change."""
    torch.manual_seed(0)
    classes, width, prompts = 5, 8, 5
    fractions = torch.rand(3, 6, classes) * torch.tensor([1.0, 0.1, 0.01]).view(3, 1, 1)
    fractions[0, :, 2] = 0  # a class that is absent from one image
    activations = {0: SimpleNamespace(tokens=torch.randn(3, 6, width), prompts=torch.randn(prompts, width))}
    losses, means = {}, {}
    for kind in (MetricGuidance, BalancedGuidance):
        model = kind(classes, [prompts], width, sample_space='token', prompt_space='token', proto_space='token')
        model.assignments[0].assignment.copy_(torch.arange(classes))
        losses[kind] = model.train()(activations, fractions)
        means[kind] = model.assignments[0].class_means
    prototypes, present = class_prototypes(activations[0].tokens, fractions)
    expected = torch.stack([prototypes[present[:, c], c].mean(dim=0) for c in range(classes)])
    torch.testing.assert_close(means[BalancedGuidance], expected)
    assert not torch.allclose(means[MetricGuidance], expected, atol=1e-2)
    plain, balanced = losses[MetricGuidance], losses[BalancedGuidance]
    torch.testing.assert_close(balanced['loss_guide_patch'], plain['loss_guide_patch'])
    assert not torch.isclose(balanced['loss_guide_proto'], plain['loss_guide_proto'])
