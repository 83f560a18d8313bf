"""``MetricGuidance`` on recorded tensors, without a backbone."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mmseg_davpt.guidance
from mmseg_davpt import MetricGuidance

C, D, M, N = 5, 16, 4, 12


@dataclass(frozen=True)
class Recorded:
    """What a guided block with linear projections records."""

    attn_out: torch.Tensor
    tokens: torch.Tensor
    prompts: torch.Tensor
    weights: dict

    def project(self, x, space):
        return F.linear(x, self.weights[space])

    def to(self, dtype):
        return Recorded(
            self.attn_out.to(dtype),
            self.tokens.to(dtype),
            self.prompts.to(dtype),
            {space: weight.to(dtype) for space, weight in self.weights.items()},
        )


def recorded():
    weights = {space: torch.randn(D, D) / D**0.5 for space in ('query', 'key')}
    return Recorded(torch.randn(2, N, D), torch.randn(2, N, D), torch.randn(M, D), weights)


def guidance(assigned=True, **options):
    model = MetricGuidance(C, [0, M], D, **options)
    if assigned:
        model.assignments[0].assignment.copy_(torch.arange(C) % M)
    return model


def fractions():
    return torch.rand(2, N, C) / C


def test_imports_nothing_of_the_package():
    """The guidance is usable without the backbone; its files import each other, and checks of values, only."""
    for path in Path(mmseg_davpt.guidance.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2 or node.module == 'options', path
                assert not (node.module or '').startswith('mmseg_davpt'), path


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(prompt_counts=[0, 0]), 'are none'),
        (dict(prompt_counts=[]), 'are none'),
        (dict(blocks=(0,)), r'block 0 has no prompts; .* are \[1\]'),
        (dict(blocks=(2,)), 'block 2 has no prompts'),
        (dict(blocks=()), 'empty'),
    ],
)
def test_blocks_are_checked_in_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        MetricGuidance(**dict(num_classes=C, prompt_counts=[0, M], embed_dims=D) | options)


def test_state_has_the_shapes_of_the_guided_blocks():
    model = MetricGuidance(C, [2, 0, 3], D, blocks=(-1, 0))
    assert model.blocks == (0, 2)
    assert [tuple(item.centroids.shape) for item in model.assignments] == [(2, D), (3, D)]
    assert model.assignment_of == dict(zip((0, 2), model.assignments))


@pytest.mark.parametrize('prompt_space', ['query', 'key', 'token'])
@pytest.mark.parametrize('sample_space', ['attn_out', 'query', 'key', 'token'])
def test_projections_run_outside_of_autocast(sample_space, prompt_space):
    """Recorded tensors with bfloat16 values give the same losses under autocast: nothing else is rounded."""
    spaces = dict(sample_space=sample_space, proto_space=sample_space, prompt_space=prompt_space)
    model, label_fractions = guidance(**spaces), fractions()
    weights = recorded().weights
    low = Recorded(*(t.bfloat16() for t in (torch.randn(2, N, D), torch.randn(2, N, D), torch.randn(M, D))), weights)
    exact = Recorded(low.attn_out.float(), low.tokens.float(), low.prompts.float(), weights)
    expected = model({1: exact}, label_fractions)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model({1: low}, label_fractions)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize('center', [False, True])
def test_bfloat16_models_compare_in_float32(center):
    """Weights, tokens and prompts in bfloat16: the losses are float32 and near those of the same values."""
    model, low, label_fractions = (
        guidance(center_prototypes=center).bfloat16(),
        recorded().to(torch.bfloat16),
        fractions(),
    )
    losses = model({1: low}, label_fractions)
    expected = model({1: low.to(torch.float32)}, label_fractions)
    for name, loss in expected.items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], loss, rtol=2e-2, atol=0)


def test_class_means_are_collected_in_training_mode_only():
    """A loss on validation data must not move the assignment."""
    model, activations, label_fractions = guidance(), {1: recorded()}, fractions()
    model.eval()(activations, label_fractions)
    assert not model.assignments[0].sums.any()
    model.train()(activations, label_fractions)
    assert model.assignments[0].sums.any()
    warm_up = guidance().eval()
    warm_up.collect(activations, label_fractions)  # the warm-up before training runs in eval mode
    assert torch.equal(warm_up.assignments[0].sums, model.assignments[0].sums)


def test_collect_fills_the_blocks_that_it_is_given():
    model, activations = MetricGuidance(C, [M, M], D, blocks=(0, 1)), recorded()
    model.collect({1: activations}, fractions())
    assert not model.assignments[0].sums.any()
    assert model.assignments[1].sums.any()


class TestMissingAssignment:
    def test_is_an_error_in_the_first_training_step(self):
        with pytest.raises(RuntimeError, match=r'guided blocks \[1\].*PromptAssignmentHook.*reduce_zero_label'):
            guidance(assigned=False).train()({1: recorded()}, fractions())

    def test_of_one_of_two_blocks_is_named(self):
        model = MetricGuidance(C, [M, M], D, blocks=(0, 1))
        model.assignments[1].assignment.fill_(0)
        with pytest.raises(RuntimeError, match=r'guided blocks \[0\]'):
            model({0: recorded(), 1: recorded()}, fractions())

    def test_is_looked_for_once(self):
        """Later steps do not wait for the device."""
        model, activations, label_fractions = guidance(), {1: recorded()}, fractions()
        model(activations, label_fractions)
        model.assignments[0].assignment.fill_(-1)
        assert all(loss == 0 for loss in model(activations, label_fractions).values())

    def test_does_not_matter_in_eval_mode(self):
        losses = guidance(assigned=False).eval()({1: recorded()}, fractions())
        assert all(loss == 0 for loss in losses.values())


@pytest.mark.parametrize('center', [True, False])
def test_clustering_compares_what_the_losses_compare(center):
    """Two prompts for four classes around a shared vector of length 100.

    Without their mean, classes 0 and 1 have the same direction. With it, cosines measure distances, and the k-means
    optimum is class 0 against the rest (sums of squares 30.2 against 42.5 for the pairs).
    """
    model = MetricGuidance(4, [2], 3, center_prototypes=center)
    means = torch.tensor([[10.0, 0, 100], [1, 0, 100], [-5.5, 1, 100], [-5.5, -1, 100]])
    item = model.assignments[0]
    item.collect(means.unsqueeze(0), torch.ones(1, 4))
    item.refresh(seed=0)
    first = item.assignment == item.assignment[0]
    assert first.tolist() == ([True, True, False, False] if center else [True, False, False, False])
