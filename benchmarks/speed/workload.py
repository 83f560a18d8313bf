"""The work that is the same for all cases: model size, images, labels, precision."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmseg_davpt.trunks import build_trunk

TINY = 'test_vit'  # timm's trunk of 1 MB, to load libraries before memory is measured


@dataclass(frozen=True)
class Workload:
    """The work that is the same for all cases.

    Attributes:
        arch: timm name. Weights are random; they cost as much as trained ones.
        size: Height and width of the images in pixels.
        batch: Number of images.
        dtype: ``float32``, or ``bfloat16`` for autocast.
        device: ``cpu`` or ``cuda``.
        head: Whether every case has the same light stock head; without it, the maps get fixed gradients.
        classes: Number of classes ``C``.
    """

    arch: str = 'vit_base_patch16_224'
    size: int = 512
    batch: int = 1
    dtype: str = 'float32'
    device: str = 'cpu'
    head: bool = False
    classes: int = 150

    @property
    def patch(self) -> int:
        """Patch size in pixels."""
        return shape(self.arch).patch_embed.patch_size[0]

    @property
    def side(self) -> int:
        """Patches per side."""
        return math.ceil(self.size / self.patch)

    @property
    def dims(self) -> int:
        """Width ``D``."""
        return shape(self.arch).embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(shape(self.arch).blocks)

    @property
    def activations(self) -> tuple[int, ...]:
        """Blocks whose outputs are used: the last block of each quarter."""
        return tuple(self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))

    def images(self) -> Tensor:
        """``(B, 3, H, W)``, the same for all cases."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, 3, self.size, self.size, generator=generator).to(self.device)

    def labels(self) -> Tensor:
        """Class ids ``(B, H, W)`` in cells of 32 pixels."""
        cells = (self.batch, *[self.size // 32 + 1] * 2)
        cells = torch.randint(self.classes, cells, generator=torch.Generator().manual_seed(1))
        return cells.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, : self.size, : self.size].to(self.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision according to ``dtype``."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == 'bfloat16')


@functools.cache
def shape(arch: str) -> nn.Module:
    """The trunk on the meta device, for its sizes."""
    with torch.device('meta'):
        return build_trunk(arch)


def light_head(workload: Workload) -> dict:
    """Config of a small stock head."""
    return dict(
        type='FCNHead',
        in_channels=workload.dims,
        in_index=3,
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        num_classes=workload.classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    )


def samples(labels: Tensor) -> list[SegDataSample]:
    """Class ids ``(B, H, W)`` as samples of mmseg."""
    size = tuple(labels.shape[-2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
    return [SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=meta) for label in labels]
