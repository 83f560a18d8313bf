"""Where timm's attention modules keep the projections of queries, keys and values: fused or split, biases apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

QKV = ('q', 'k', 'v')


def projection(attn: nn.Module, part: str) -> tuple[Tensor, Tensor | None]:
    """Weight ``(D, D)`` and bias ``(D,)``, if any, of one projection; views, no copies.

    Args:
        attn: An attention module of a supported trunk.
        part: ``'q'``, ``'k'``, ``'v'``, or ``'proj'``, the projection of the output.
    """
    (name, rows), bias = weight_home(attn, part), bias_home(attn, part)
    return attn.get_parameter(name)[rows], None if bias is None else attn.get_parameter(bias[0])[bias[1]]


def weight_home(attn: nn.Module, part: str) -> tuple[str, slice]:
    """Name of the parameter of ``attn`` that holds a projection's weight, and the rows of it."""
    if part == 'proj':
        return 'proj.weight', slice(None)
    return (f'{part}_proj.weight', slice(None)) if attn.qkv is None else ('qkv.weight', _rows(attn, part))


def bias_home(attn: nn.Module, part: str) -> tuple[str, slice] | None:
    """Name of the parameter of ``attn`` that holds a projection's bias, and the rows of it; ``None`` without bias.

    EVA-02 and BEiT have no key bias by design, DINOv3 has none at all.
    """
    if part == 'proj':
        return None if attn.proj.bias is None else ('proj.bias', slice(None))
    if attn.qkv is None:
        return None if attn.get_submodule(f'{part}_proj').bias is None else (f'{part}_proj.bias', slice(None))
    if attn.qkv.bias is not None:
        return 'qkv.bias', _rows(attn, part)
    # EVA and BEiT: q_bias and v_bias beside a fused weight; their k_bias is a buffer of zeros.
    return (f'{part}_bias', slice(None)) if isinstance(getattr(attn, f'{part}_bias', None), nn.Parameter) else None


def _rows(attn: nn.Module, part: str) -> slice:
    width = attn.qkv.out_features // 3
    start = QKV.index(part) * width
    return slice(start, start + width)


def project(attn: nn.Module, part: str, x: Tensor) -> Tensor:
    """``W x + b``."""
    return F.linear(x, *projection(attn, part))
