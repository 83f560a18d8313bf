"""``LinearBNHead``: the linear protocol on frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearBNHead(BaseDecodeHead):
    """Batch norm and one linear layer a position, as DINOv2 evaluates frozen features; no stock head is that little.

    Args:
        in_channels: Channels of the maps; they are concatenated at the size of the first one.
        in_index: Which of the backbone's maps; as many as ``in_channels``.
        norm_cfg: The batch norm.
        **kwargs: As for ``BaseDecodeHead``, but for ``channels`` and ``input_transform``, which follow.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int],
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        **kwargs: object,
    ) -> None:
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
