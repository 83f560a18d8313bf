"""Where timm's attention modules keep the projections of queries, keys and values: fused or split, biases apart."""

from __future__ import annotations

from torch import Tensor, nn

QKV = ('q', 'k', 'v')


def projection(attn: nn.Module, part: str) -> tuple[Tensor, Tensor | None]:
    """Weight ``(D, D)`` and bias ``(D,)``, if any, of one projection; views, no copies.

    Args:
        attn: An attention module of a supported trunk.
        part: ``'q'``, ``'k'`` or ``'v'``.
    """
    weight = attn.get_submodule(f'{part}_proj').weight if attn.qkv is None else attn.qkv.weight[_rows(attn, part)]
    home = bias_home(attn, part)
    if home is None:
        return weight, None
    name, rows = home
    return weight, attn.get_parameter(name)[rows]


def bias_home(attn: nn.Module, part: str) -> tuple[str, slice] | None:
    """Name of the parameter of ``attn`` that holds a projection's bias, and the rows of it; ``None`` without bias.

    EVA-02 and BEiT have no key bias by design, DINOv3 has none at all.
    """
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
