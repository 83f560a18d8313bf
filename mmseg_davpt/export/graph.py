"""A segmentor as one plain module, from pixels to logits, that exporters can trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch
from mmengine.model import revert_sync_batchnorm
from mmseg.models.segmentors import EncoderDecoder
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..models import PromptedViT
from ..tuning import DeepPrompts
from ..tuning.attention import JoinedPrompts
from ..tuning.block import TunedBlock


class SegmentationGraph(nn.Module):
    """Logits of whole images, without sliding windows: what ``encode_decode`` of the segmentor computes in eval mode.

    It holds a float32 copy of the segmentor on the CPU. In the copy, the keys and values of prompts are constants, and
    operations that exporters cannot express for all sizes are replaced by equal ones.

    Args:
        model: An ``EncoderDecoder`` with a ``PromptedViT``, and with a head that gives logits.
        normalize: Whether images come as RGB pixels, 0 to 255. Otherwise they come as the backbone gets them.

    Attributes:
        patch_size: Height and width of a patch; the sides of images are multiples of it.
        only_size: The only size of images, for trunks of one size (BEiT); ``None`` for others.

    Raises:
        ValueError: A segmentor that cannot be exported; the message says why.
        WeightsError: The trunk's weights were never loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: EncoderDecoder, normalize: bool = True) -> None:
        super().__init__()
        _require_exportable(model)
        model = revert_sync_batchnorm(deepcopy(model)).cpu().float().eval().requires_grad_(False)
        self.backbone: PromptedViT = model.backbone
        self.backbone.trunk_dtype = 'float32'  # as its weights are now: no autocast
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.decode_head, self.align_corners = model.decode_head, bool(model.align_corners)
        self.patch_size = self.backbone.patch_size
        trunk = self.backbone.trunk
        self.only_size: tuple[int, int] | None = None
        if trunk.patch_embed.strict_img_size:
            self.only_size = trunk.patch_embed.img_size
        trunk.patch_embed.dynamic_img_pad = False  # sides are whole patches
        with torch.no_grad():
            self.folded = _fold_prompts(self.backbone)
        for head in (self.neck, self.decode_head):
            _replace_pooling(head)
        self.normalize = normalize
        preprocessor = model.data_preprocessor
        normalized = bool(preprocessor._enable_normalize)
        self.register_buffer('mean', preprocessor.mean if normalized else torch.zeros(3, 1, 1))
        self.register_buffer('std', preprocessor.std if normalized else torch.ones(3, 1, 1))
        # mmseg reads BGR: a preprocessor that exchanges channels feeds RGB to the backbone, another one BGR. Measured,
        # as the two libraries name this setting differently.
        black, blue = normalize_pixels(preprocessor, [torch.zeros(3, 1, 1), torch.tensor([255.0, 0, 0]).view(3, 1, 1)])
        self.channels = 'RGB' if black[0] == blue[0] else 'BGR'

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: ``(B, 3, H, W)``, float32; RGB, 0 to 255, with ``normalize``.

        Returns:
            ``(B, C, H, W)``.
        """
        if self.normalize:
            images = images if self.channels == 'RGB' else images.flip(1)
            images = (images - self.mean) / self.std
        logits = self.decode_head(self.neck(self.backbone(images)))
        return interpolate(logits, images.shape[-2:], mode='bilinear', align_corners=self.align_corners)


def _require_exportable(model: Any) -> None:
    backbone, head = getattr(model, 'backbone', None), getattr(model, 'decode_head', None)
    if not isinstance(backbone, PromptedViT):
        raise ValueError(f'export: the backbone is a {type(backbone).__name__}, not a PromptedViT')
    if type(head).__name__ in ('MaskFormerHead', 'Mask2FormerHead') or isinstance(head, nn.ModuleList):
        raise ValueError(
            f'export: decode_head is a {type(head).__name__}, whose forward gives no logits. --to full keeps it'
        )
    backbone.require_weights()


def normalize_pixels(preprocessor: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """BGR images ``(3, H, W)`` of one size -> what the backbone gets, ``(B, 3, H, W)``, without padding."""
    unpadded: Any = copy(preprocessor)
    unpadded.test_cfg = None  # the padding of tests
    return unpadded(dict(inputs=list(images)))['inputs']


class FoldedPrompts(nn.Module):
    """Prompts of one block as constants, in the place of the method that made them.

    Args:
        joined: What the method gives the block in eval mode.
    """

    active = True
    tokens: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, joined: JoinedPrompts) -> None:
        super().__init__()
        self._kind = joined
        for name in ('tokens', 'keys', 'values'):
            self.register_buffer(name, getattr(joined, name).detach().clone())

    def join(self, block: TunedBlock) -> JoinedPrompts:
        """The constants."""
        return replace(self._kind, tokens=self.tokens, keys=self.keys, values=self.values)

    def attention_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> None:
        """None: prompts have no branch."""

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> None:
        """None: prompts have no branch."""


def _fold_prompts(backbone: PromptedViT) -> nn.ModuleDict:
    """Replace methods that join attention by their constants; returns these, by block."""
    folded = nn.ModuleDict()
    for index, block in enumerate(backbone.trunk.blocks):
        if not isinstance(block, TunedBlock):
            continue
        for position, method in enumerate(block.methods):
            if (joined := method.join(block)) is not None:
                folded[str(index)] = block.methods[position] = FoldedPrompts(joined)
    for name in [name for name, method in backbone.tuned.items() if isinstance(method, DeepPrompts)]:
        del backbone.tuned[name]  # nothing reads it any more
    return folded


class MatrixPooling(nn.Module):
    """``AdaptiveAvgPool2d`` as two products with matrices, which every exporter supports for every size.

    Args:
        output_size: One side, or height and width.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = (output_size, output_size) if isinstance(output_size, int) else output_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, H, W)`` -> ``(B, D, height, width)``."""
        rows = _pooling_matrix(self.height, x.shape[-2], x)
        columns = _pooling_matrix(self.width, x.shape[-1], x)
        return rows @ x @ columns.transpose(0, 1)


def _pooling_matrix(size: int, source: int, like: Tensor) -> Tensor:
    """Means over the cells ``floor(i s / n)`` to ``ceil((i + 1) s / n)``, ``(n, s)``."""
    cell = torch.arange(size, device=like.device)[:, None]
    place = torch.arange(source, device=like.device)[None]
    first, last = cell * source // size, ((cell + 1) * source + size - 1) // size
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _replace_pooling(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and None not in (size := _pair(child.output_size)):
            setattr(module, name, MatrixPooling(cast('tuple[int, int]', size)))
        else:
            _replace_pooling(child)


def _pair(size: Any) -> tuple[int | None, int | None]:
    return (size, size) if size is None or isinstance(size, int) else tuple(size)


@contextmanager
def exportable_positions() -> Iterator[None]:
    """While open, timm resamples position tables by products with matrices, for sizes that are not known yet."""
    with (
        mock.patch.object(vision_transformer, 'resample_abs_pos_embed', _resample_positions),
        mock.patch.object(eva, 'resample_abs_pos_embed', _resample_positions),
    ):
        yield


def _resample_positions(
    posemb: Tensor, new_size: Any, old_size: Any = None, num_prefix_tokens: int = 1, **_: object
) -> Tensor:
    """As timm's ``resample_abs_pos_embed``: bicubic and antialiased, ``(1, T + N, D)`` -> ``(1, T + n, D)``."""
    prefix, table = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    height, width = old_size
    table = table.float().unflatten(1, (height, width)).permute(0, 3, 1, 2)
    rows, columns = (_bicubic_matrix(size, source) for size, source in zip(new_size, (height, width)))
    table = (rows @ table @ columns.transpose(0, 1)).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, table.to(posemb.dtype)], dim=1)


def _bicubic_matrix(size: Any, source: int) -> Tensor:
    """Weights of torch's antialiased bicubic resize (Keys' kernel, a = -1/2), ``(size, source)``."""
    places = torch.arange(size, dtype=torch.float32)[:, None]
    scale = source / (places[-1:] + 1)  # source / size, as a tensor: the size may be open
    distance = (torch.arange(source) + 0.5 - (places + 0.5) * scale) / scale.clamp(min=1.0)
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)
