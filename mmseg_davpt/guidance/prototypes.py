"""Tokens and label fractions -> pixel-class prototypes."""

from __future__ import annotations

import torch
from torch import Tensor


def class_prototypes(tokens: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean token of each class in each image, weighted by the patches' label fractions.

        proto[b, c] = sum_n A[b, n, c] Z[b, n] / sum_n A[b, n, c]

    Dense, so that nothing waits for the device.

    Args:
        tokens: ``Z``, ``(B, N, D)``; half precision is raised to float32.
        fractions: ``A``, ``(B, N, C)``, non-negative, of :func:`~mmseg_davpt.patch_class_fractions`.

    Returns:
        Prototypes ``(B, C, D)``, zero for absent classes, and which classes are present, ``(B, C)`` bool.

    Raises:
        ValueError: The two differ in the number of images or patches.
    """
    if tokens.ndim != 3 or fractions.ndim != 3 or tokens.shape[:2] != fractions.shape[:2]:
        raise ValueError(
            f'tokens {tuple(tokens.shape)} and fractions {tuple(fractions.shape)}: expected (B, N, D) and (B, N, C)'
        )
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    with torch.autocast(tokens.device.type, enabled=False):
        fractions = fractions.to(dtype)
        mass = fractions.sum(dim=1)
        present = mass > 0
        mean = fractions.transpose(1, 2) / torch.where(present, mass, 1).unsqueeze(-1)
        return mean @ tokens.to(dtype), present
