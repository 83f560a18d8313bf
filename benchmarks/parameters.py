"""Trainable parameters of a segmentor, inside and outside of its backbone."""

from __future__ import annotations

from torch import nn


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Count trainable parameters.

    Args:
        model: A segmentor with a ``backbone``.

    Returns:
        In the backbone (trunk, prompts, adapters), and elsewhere (neck and heads).
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inside = sum(parameter.numel() for name, parameter in trainable if name.startswith('backbone.'))
    return inside, sum(parameter.numel() for _, parameter in trainable) - inside
