"""Tokens and label shares -> pixel-class prototypes."""

from __future__ import annotations

import torch
from torch import Tensor


def class_prototypes(tokens: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean token of each class in each image, weighted by the patches' label shares.

        proto[b, c] = sum_n A[b, n, c] Z[b, n] / sum_n A[b, n, c]

    Dense, so that nothing waits for the device.

    Args:
        tokens: ``Z``, ``(B, N, D)``; half precision is raised to float32.
        shares: ``A``, ``(B, N, C)``, non-negative, of :func:`~mmseg_davpt.patch_label_shares`.

    Returns:
        Prototypes ``(B, C, D)``, zero for absent classes, and which classes are present, ``(B, C)`` bool.

    Raises:
        ValueError: The two do not speak of the same patches.
    """
    if tokens.ndim != 3 or shares.ndim != 3 or tokens.shape[:2] != shares.shape[:2]:
        raise ValueError(
            f'tokens {tuple(tokens.shape)} and shares {tuple(shares.shape)}: expected (B, N, D) and (B, N, C)'
        )
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    with torch.autocast(tokens.device.type, enabled=False):
        shares = shares.to(dtype)
        mass = shares.sum(dim=1)
        present = mass > 0
        mean = shares.transpose(1, 2) / torch.where(present, mass, 1).unsqueeze(-1)
        return mean @ tokens.to(dtype), present
