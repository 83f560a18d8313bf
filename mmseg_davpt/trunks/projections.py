"""Where timm's attention modules keep the projections of queries, keys, values and output.

One fused layer or three split ones, with their biases in the layer, as separate parameters, or absent.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

QKV = ('q', 'k', 'v')


def project(attn: nn.Module, part: str, x: Tensor) -> Tensor:
    """Return ``W x + b`` of one projection, not split into heads.

    Weights are read as attributes, so that ``torch.func.functional_call`` and parametrizations take effect. A quantised
    layer has no weight tensor: the layer is called, and of a fused one all three projections are computed.

    Args:
        attn: An attention module of a supported trunk.
        part: ``'q'``, ``'k'``, ``'v'``, or ``'proj'``, the projection of the output.
        x: Tokens, ``(..., D)``.

    Returns:
        Projected tokens, ``(..., D)``.
    """
    layer, rows = _layer(attn, part)
    weight = layer.weight  # once: a parametrization computes it on each access
    if isinstance(weight, Tensor):
        return F.linear(x, weight[rows], _bias(attn, part))
    out: Tensor = layer(x)[..., rows]
    bias = _separate_bias(attn, part)
    return out if bias is None else out + bias


def projection(attn: nn.Module, part: str) -> tuple[Tensor, Tensor | None]:
    """Return the weight ``(D, D)`` and the bias ``(D,)``, if any, of one projection; views, no copies.

    Args:
        attn: An attention module of a supported trunk, not quantised.
        part: ``'q'``, ``'k'``, ``'v'``, or ``'proj'``, the projection of the output.
    """
    layer, rows = _layer(attn, part)
    return layer.weight[rows], _bias(attn, part)


def weight_home(attn: nn.Module, part: str) -> tuple[str, slice]:
    """Return the name of the parameter of ``attn`` that holds a projection's weight, and its rows there."""
    if part == 'proj':
        return 'proj.weight', slice(None)
    return (f'{part}_proj.weight', slice(None)) if attn.qkv is None else ('qkv.weight', _rows(attn, part))


def bias_home(attn: nn.Module, part: str) -> tuple[str, slice] | None:
    """Return the name of the parameter of ``attn`` that holds a projection's bias, and its rows there.

    ``None`` where there is no bias. EVA-02 and BEiT have no key bias by design. Some DINOv3 have no bias of queries,
    keys and values at all.
    """
    layer, rows = _layer(attn, part)
    if layer.bias is not None:
        return weight_home(attn, part)[0].removesuffix('weight') + 'bias', rows
    return None if _separate_bias(attn, part) is None else (f'{part}_bias', slice(None))


def _layer(attn: Any, part: str) -> tuple[Any, slice]:
    """Return the linear layer that holds a projection, and the rows of it."""
    if part == 'proj':
        return attn.proj, slice(None)
    if attn.qkv is None:
        return getattr(attn, f'{part}_proj'), slice(None)
    return attn.qkv, _rows(attn, part)


def _bias(attn: nn.Module, part: str) -> Tensor | None:
    layer, rows = _layer(attn, part)
    bias: Tensor | None = layer.bias  # once, as the weight
    return _separate_bias(attn, part) if bias is None else bias[rows]


def _separate_bias(attn: nn.Module, part: str) -> Tensor | None:
    """Return ``q_bias`` or ``v_bias`` beside a fused weight (EVA, BEiT). Their ``k_bias`` is a buffer of zeros."""
    return None if part == 'k' else getattr(attn, f'{part}_bias', None)


def _rows(attn: Any, part: str) -> slice:
    width = attn.qkv.out_features // 3
    start = QKV.index(part) * width
    return slice(start, start + width)
