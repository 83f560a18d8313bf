"""Label fractions, prototypes and the loss against slow references."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pytorch_metric_learning import losses as pml

from mmseg_davpt import ProxyAnchorLoss, class_prototypes, patch_class_fractions

C = 4


@given(
    gt=hnp.arrays(np.int64, st.tuples(st.integers(1, 2), st.integers(1, 13), st.integers(1, 13)),
                  elements=st.sampled_from([0, 1, 2, 3, 255])),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_label_shares_against_numpy(gt, patch):
    fractions = patch_class_fractions(torch.from_numpy(gt), patch, C)
    np.testing.assert_allclose(fractions.numpy(), oracles.class_fractions(gt, patch, C), rtol=0, atol=1e-6)


def test_label_shares_take_mmseg_shapes_and_types():
    gt = torch.randint(0, C, (2, 1, 8, 8))
    expected = patch_class_fractions(gt, 4, C)
    assert expected.shape == (2, 4, C)
    assert torch.equal(patch_class_fractions(gt[:, 0].to(torch.uint8), (4, 4), C), expected)
    assert torch.equal(expected.sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize('wrong', [C, 254, -1])
def test_ids_out_of_range_are_named(wrong):
    gt = torch.zeros(1, 4, 4, dtype=torch.int64)
    gt[0, 0, 0] = wrong
    with pytest.raises(ValueError, match=rf'\[{wrong}\].*reduce_zero_label'):
        patch_class_fractions(gt, 2, C)


def test_wrong_label_shapes_are_named():
    with pytest.raises(ValueError, match='float32'):
        patch_class_fractions(torch.zeros(1, 4, 4), 2, C)
    with pytest.raises(ValueError, match=r'\(4, 4\)'):
        patch_class_fractions(torch.zeros(4, 4, dtype=torch.int64), 2, C)


@given(seed=st.integers(0, 10_000), b=st.integers(1, 3), n=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_prototypes_against_numpy(seed, b, n):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(b, n, 3, generator=generator, dtype=torch.float64)
    fractions = torch.rand(b, n, C, generator=generator, dtype=torch.float64)
    fractions = fractions * (torch.rand(b, 1, C, generator=generator) > 0.4)
    result, present = class_prototypes(tokens, fractions)
    expected = oracles.prototypes(tokens, fractions)
    for image in range(b):
        for c in range(C):
            assert bool(present[image, c]) == (expected[image][c] is not None)
            want = np.zeros(3) if expected[image][c] is None else expected[image][c]
            np.testing.assert_allclose(result[image, c].numpy(), want, rtol=0, atol=1e-12)


def test_prototypes_are_float32_under_autocast():
    tokens, fractions = torch.randn(1, 8, 16), torch.rand(1, 8, C)
    with torch.autocast('cpu', torch.bfloat16):
        low, _ = class_prototypes(tokens.bfloat16(), fractions)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, class_prototypes(tokens.bfloat16().float(), fractions)[0])


def test_prototypes_refuse_other_patches():
    with pytest.raises(ValueError, match=r'\(1, 4, 8\) and fractions \(1, 5, 4\)'):
        class_prototypes(torch.randn(1, 4, 8), torch.rand(1, 5, C))


def random_case(seed, k=9, m=4, c=6, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(k, d, generator=generator, dtype=dtype)
    labels = torch.randint(-1, c, (k,), generator=generator)
    proxies = torch.randn(m, d, generator=generator, dtype=dtype)
    assignment = torch.randint(-1, m, (c,), generator=generator)
    return samples, labels, proxies, assignment


@given(seed=st.integers(0, 10_000), k=st.integers(0, 9), m=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_loss_against_a_plain_loop(seed, k, m):
    """Unlabeled samples, classes without a prompt, prompts without a class, prompts without a sample: all occur."""
    case = random_case(seed, k=k, m=m)
    assert ProxyAnchorLoss()(*case).item() == pytest.approx(oracles.proxy_anchor(*case), rel=1e-9, abs=1e-12)
    assert ProxyAnchorLoss(8.0, 0.3)(*case).item() == pytest.approx(
        oracles.proxy_anchor(*case, 8.0, 0.3), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize('alpha', [32.0, 4.0])
def test_loss_against_pytorch_metric_learning(alpha):
    """Where the two coincide: every class has a separate prompt. Value and gradients."""
    c, d = 5, 7
    samples = torch.randn(12, d, dtype=torch.float64, requires_grad=True)
    proxies = torch.randn(c, d, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 3, 0, 4, 4, 1, 0])  # class 2 has no sample
    theirs = pml.ProxyAnchorLoss(num_classes=c, embedding_size=d, margin=0.1, alpha=alpha).double()
    theirs.proxies = torch.nn.Parameter(proxies.detach().clone())
    expected = theirs(samples, labels)
    ours = ProxyAnchorLoss(alpha, 0.1)(samples, labels, proxies, torch.arange(c))
    torch.testing.assert_close(ours, expected)
    a = torch.autograd.grad(ours, [samples, proxies])
    b = torch.autograd.grad(expected, [samples, theirs.proxies])
    for mine, other in zip(a, b, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize('case', ['no sample', 'no label', 'no prompt'])
def test_nothing_to_compare_is_zero_with_a_graph(case):
    samples, labels, proxies, assignment = random_case(0, dtype=torch.float32)
    samples, proxies = samples.requires_grad_(), proxies.requires_grad_()
    if case == 'no sample':
        samples, labels = torch.zeros(0, 5, requires_grad=True), labels[:0]
    elif case == 'no label':
        labels = torch.full_like(labels, -1)
    else:
        assignment = torch.full_like(assignment, -1)
    loss = ProxyAnchorLoss()(samples, labels, proxies, assignment)
    assert loss.item() == 0.0
    loss.backward()
    assert proxies.grad is not None
    assert not proxies.grad.any()
    assert not samples.grad.any()


def test_loss_survives_extremes_and_zero_vectors():
    """Identical and opposite vectors at a large alpha, and the zero rows of absent classes."""
    samples = torch.tensor([[1.0, 0], [-1.0, 0], [0, 0], [0, 0]], requires_grad=True)
    proxies = torch.tensor([[1.0, 0], [-1.0, 0]], requires_grad=True)
    loss = ProxyAnchorLoss(alpha=1e4)(samples, torch.tensor([1, 0, -1, -1]), proxies, torch.arange(2))
    loss.backward()
    assert loss.isfinite()
    assert samples.grad.isfinite().all()
    assert proxies.grad.isfinite().all()
    assert not samples.grad[2:].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_half_precision(dtype):
    samples, labels, proxies, assignment = random_case(3, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        loss = ProxyAnchorLoss()(samples.to(dtype), labels, proxies.to(dtype), assignment)
    assert loss.dtype == torch.float32
    exact = oracles.proxy_anchor(samples.to(dtype).double(), labels, proxies.to(dtype).double(), assignment)
    assert loss.item() == pytest.approx(exact, rel=1e-5)


def test_loss_refuses_a_senseless_alpha():
    with pytest.raises(ValueError, match='alpha=0'):
        ProxyAnchorLoss(alpha=0)
