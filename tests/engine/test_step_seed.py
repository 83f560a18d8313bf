"""What a step draws depends on seed, rank and iteration, and on nothing before it."""

from itertools import product
from types import SimpleNamespace

import torch

from mmseg_davpt.engine import StepSeedHook


def draw(seed, rank, iteration):
    torch.rand(7)  # whatever was drawn before
    StepSeedHook().before_train_iter(SimpleNamespace(seed=seed, rank=rank, iter=iteration), batch_idx=0)
    return tuple(torch.rand(4).tolist())


def test_the_same_step_draws_the_same():
    assert draw(3, 1, 20) == draw(3, 1, 20)


def test_ranks_iterations_and_seeds_draw_differently():
    """Two ranks with the same dropout masks would halve the noise of the gradient's mean."""
    assert draw(0, 0, 5) != draw(0, 1, 5)
    assert len({draw(*step) for step in product(range(3), repeat=3)}) == 27
