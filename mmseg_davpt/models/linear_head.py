"""``LinearBNHead``: the linear protocol on frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from ..options import check_integer, check_integers, check_mapping, wrong


@MODELS.register_module()
class LinearBNHead(BaseDecodeHead):
    """Batch norm and one linear layer a position, as DINOv2 evaluates frozen features; no stock head is that little.

    Args:
        in_channels: Channels of the maps; they are concatenated at the size of the first one.
        in_index: Which of the backbone's maps; as many as ``in_channels``.
        norm_cfg: The batch norm.
        **kwargs: As for ``BaseDecodeHead``, but for ``channels`` and ``input_transform``, which follow.

    Raises:
        ValueError: An option out of range; the message names it.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int],
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        **kwargs: object,
    ) -> None:
        in_channels = check_integers('decode_head.in_channels', in_channels)
        if not in_channels or min(in_channels) < 1:
            raise wrong('decode_head.in_channels', in_channels, 'a list or tuple of whole numbers >= 1')
        in_index = check_integers('decode_head.in_index', in_index, len(in_channels))
        check_mapping('decode_head.norm_cfg', norm_cfg)
        check_integer('decode_head.num_classes', kwargs.get('num_classes'), low=2)
        super().__init__(
            in_channels=in_channels,
            in_index=in_index,
            input_transform='resize_concat',
            channels=sum(in_channels),
            norm_cfg=norm_cfg,
            **kwargs,
        )
        self.norm = build_norm_layer(norm_cfg, self.in_channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, C, h, w)`` of maps ``(B, in_channels[i], h_i, w_i)``."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
