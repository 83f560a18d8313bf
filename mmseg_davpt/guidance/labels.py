"""Pixels -> label fractions of each patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_class_fractions(
    gt: Tensor, patch_size: int | tuple[int, int], num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Share of each patch's pixels that carry each class.

    Ignored pixels, and those that fill the last patches up, count for no class: a patch's fractions sum to at most 1.
    On an accelerator nothing waits for the device; no one-hot image is made.

    Args:
        gt: Integer class ids, ``(B, H, W)`` or ``(B, 1, H, W)``, in ``[0, num_classes)`` or ``ignore_index``.
        patch_size: Patch size in pixels, one number or (height, width).
        num_classes: Number of classes ``C``.
        ignore_index: Id of pixels without a label.

    Returns:
        Shares ``(B, N, C)``, float32 in ``[0, 1]``, with ``N = ceil(H / ph) * ceil(W / pw)`` patches in row order.

    Raises:
        ValueError: Wrong shape or type; ids out of range (checked on a CPU only: a check on a GPU would wait for the
            device).
    """
    if gt.ndim == 4 and gt.shape[1] == 1:
        gt = gt[:, 0]
    if gt.ndim != 3 or gt.is_floating_point():
        raise ValueError(f'gt: expected integer ids of shape (B, H, W), got {gt.dtype} of shape {tuple(gt.shape)}')
    ph, pw = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    valid = (gt != ignore_index) & (gt >= 0) & (gt < num_classes)
    if gt.device.type == 'cpu' and bool(((gt != ignore_index) & ~valid).any()):
        wrong = gt[(gt != ignore_index) & ~valid].unique().tolist()
        raise ValueError(
            f'gt holds ids {wrong}, outside of [0, {num_classes}) and not ignore_index={ignore_index}: check '
            'num_classes and reduce_zero_label'
        )
    labels = torch.where(valid, gt, num_classes).long()  # one more bin, for what counts for no class
    labels = F.pad(labels, (0, -gt.shape[2] % pw, 0, -gt.shape[1] % ph), value=num_classes)
    b, height, width = labels.shape
    h, w = height // ph, width // pw
    row = torch.arange(height, device=gt.device) // ph
    column = torch.arange(width, device=gt.device) // pw
    patch = torch.arange(b, device=gt.device)[:, None, None] * (h * w) + row[:, None] * w + column
    bins = (patch * (num_classes + 1) + labels).flatten()
    # torch.bincount would wait for the device to read its length.
    counts = torch.zeros(b * h * w * (num_classes + 1), device=gt.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=counts.dtype))
    return counts.view(b, h * w, num_classes + 1)[..., :num_classes] / (ph * pw)
