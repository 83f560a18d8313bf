"""``PromptedEncoderDecoder``: the stock ``EncoderDecoder``, with guidance of its backbone's prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ..guidance import MetricGuidance, patch_class_fractions
from ..options import check_choice, check_integer, check_mapping, check_size
from ..trunks import pixel_statistics
from .prompted_vit import PromptedViT


@MODELS.register_module()
class PromptedEncoderDecoder(EncoderDecoder):
    """Encoder and decoder as in mmseg; in training, the labels also guide the prompts of the guided blocks.

    ``guidance=None``, or with both weights zero, is VPT-Deep exactly. Inference does not use the guidance.

    Args:
        guidance: Config of :class:`~mmseg_davpt.MetricGuidance`, or ``None``. ``num_classes`` defaults to the decode
            head's; ``prompt_counts`` and ``embed_dims`` come from the backbone.
        **kwargs: As for ``EncoderDecoder``.

    Raises:
        TypeError: Guidance for a backbone that is no :class:`PromptedViT`.
        ValueError: Guidance for another number of classes than the decode head's; a guided ``tuning`` without
            guidance; sliding windows that leave gaps; a head that reads a map which nobody makes; an option out of
            range. The message names the option.
        ImportError: A decode head of mmdet without mmdet, or without the compiled operators that it needs.
    """

    backbone: PromptedViT

    def __init__(self, *, guidance: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        heads = _head_configs(kwargs)
        for key, head in heads.items():
            _require_mmdet(str(head.get('type')))
            if 'num_classes' in head:  # with one class every pixel is right and the loss is 0
                check_integer(f'{key}.num_classes', head['num_classes'], low=2)
        if guidance is not None:
            check_mapping('guidance', guidance)
        super().__init__(**kwargs)
        maps = _number_of_maps(self)
        for key, head in heads.items():
            _check_in_index(key, head, maps)
        if isinstance(self.backbone, PromptedViT) and isinstance(kwargs.get('data_preprocessor'), Mapping):
            _compare_statistics(kwargs['data_preprocessor'], self.backbone)
        if self.test_cfg is not None:
            _check_test_cfg(self.test_cfg)
        self.guidance = None if guidance is None else self._build_guidance(guidance)
        if guidance is None and getattr(self.backbone, 'expects_guidance', False):
            raise ValueError(
                f'backbone.tuning={kwargs["backbone"].get("tuning")!r} is a guided method: add '
                "guidance=dict(type='MetricGuidance', ...) to the model or use tuning='vpt_deep'"
            )

    def _build_guidance(self, guidance: Mapping[str, Any]) -> MetricGuidance:
        if not isinstance(self.backbone, PromptedViT):
            raise TypeError(f'guidance needs a PromptedViT backbone, not {type(self.backbone).__name__}')
        options = {'type': 'MetricGuidance', 'num_classes': self.num_classes, **guidance}
        if options['num_classes'] != self.num_classes:
            raise ValueError(
                f'guidance.num_classes={options["num_classes"]}, decode_head.num_classes={self.num_classes}: '
                'leave guidance.num_classes out or set the same number'
            )
        backbone = self.backbone
        return MODELS.build(dict(**options, prompt_counts=backbone.prompt_counts, embed_dims=backbone.embed_dims))

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Losses of the heads and of the guidance.

        Args:
            inputs: Normalized images, ``(B, 3, H, W)``.
            data_samples: Their labels, ``gt_sem_seg.data`` of shape ``(1, H, W)``.
        """
        if self.guidance is None or not self.guidance.enabled:
            return super().loss(inputs, data_samples)
        with self.backbone.record(self.guidance.blocks) as activations:
            losses = super().loss(inputs, data_samples)
        losses.update(self.guidance(activations, self.class_fractions(data_samples)))
        return losses

    def slide_inference(self, inputs: Tensor, batch_img_metas: Sequence[Mapping[str, Any]]) -> Tensor:
        """Logits by mmseg's sliding windows, ``test_cfg.slide_batch`` windows at a time (default: 1).

        Args:
            inputs: Normalized images, ``(B, 3, H, W)``.
            batch_img_metas: Their meta information.

        Returns:
            ``(B, C, H, W)``, the mean over the windows that cover a pixel. Memory grows with ``slide_batch``, not with
            the number of windows.

        Raises:
            ValueError: ``test_cfg`` was changed so that windows leave gaps.
        """
        _check_windows(self.test_cfg)
        (h, w), (h_crop, w_crop), (h_stride, w_stride) = (
            inputs.shape[-2:],
            self.test_cfg.crop_size,
            self.test_cfg.stride,
        )
        h_crop, w_crop = min(h_crop, h), min(w_crop, w)
        windows = [(y, x) for y in _starts(h, h_crop, h_stride) for x in _starts(w, w_crop, w_stride)]
        logits = inputs.new_zeros(len(inputs), self.out_channels, h, w)
        counts = inputs.new_zeros(h, w)
        number = self.test_cfg.get('slide_batch', 1)
        for group in (windows[start : start + number] for start in range(0, len(windows), number)):
            crops = torch.cat([inputs[:, :, y : y + h_crop, x : x + w_crop] for y, x in group])
            metas = [{**meta, 'img_shape': crops.shape[-2:]} for meta in batch_img_metas] * len(group)
            for (y, x), window_logits in zip(group, self.encode_decode(crops, metas).split(len(inputs))):
                logits[:, :, y : y + h_crop, x : x + w_crop] += window_logits
                counts[y : y + h_crop, x : x + w_crop] += 1
        assert counts.all(), f'windows {windows} of {h_crop}x{w_crop} do not cover an image of {h}x{w}'
        return logits.div_(counts)

    @torch.no_grad()
    def collect_prototypes(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample], blocks: Sequence[int] | None = None
    ) -> None:
        """Collect class means for the assignment from the trunk without prompts.

        Args:
            inputs: Normalized images, ``(B, 3, H, W)``.
            data_samples: Their labels, as in :meth:`loss`.
            blocks: Guided blocks to collect for; by default all.
        """
        if self.guidance is None:
            raise RuntimeError('collect_prototypes needs a model with guidance')
        blocks = self.guidance.blocks if blocks is None else blocks
        with self.backbone.without_tuning(), self.backbone.record(blocks) as activations:
            self.backbone(inputs)
        self.guidance.collect(activations, self.class_fractions(data_samples))

    def class_fractions(self, data_samples: Sequence[SegDataSample]) -> Tensor:
        """Label fractions of the backbone's patches, ``(B, N, C)``."""
        gt = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
        return patch_class_fractions(gt, self.backbone.patch_size, self.num_classes, self.decode_head.ignore_index)


def _head_configs(kwargs: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name of each head as a config writes it -> its config."""
    heads = {'decode_head': check_mapping('decode_head', kwargs.get('decode_head'))}
    auxiliary = kwargs.get('auxiliary_head')
    if isinstance(auxiliary, (list, tuple)):
        heads.update(
            (f'auxiliary_head[{i}]', check_mapping('auxiliary_head', head)) for i, head in enumerate(auxiliary)
        )
    elif auxiliary is not None:
        heads['auxiliary_head'] = check_mapping('auxiliary_head', auxiliary)
    return heads


def _number_of_maps(model: EncoderDecoder) -> int | None:
    """How many maps the heads get; ``None`` where that is not known before a forward pass."""
    if not model.with_neck:
        indices = getattr(model.backbone, 'out_indices', None)
        return None if indices is None else len(indices)
    rescales = getattr(model.neck, 'rescales', None)  # of Feature2Pyramid
    return getattr(model.neck, 'num_outs', None) if rescales is None else len(rescales)


def _check_in_index(key: str, head: Mapping[str, Any], maps: int | None) -> None:
    indices = head.get('in_index', -1)
    absent = [i for i in (indices if isinstance(indices, (list, tuple)) else [indices]) if not _is_map(i, maps)]
    if absent:
        raise ValueError(f'{key}.in_index={indices!r}: the head gets {maps} maps, there is no map {absent[0]!r}')


def _is_map(index: Any, maps: int | None) -> bool:
    return maps is None or (isinstance(index, int) and -maps <= index < maps)


def _check_test_cfg(test_cfg: Mapping[str, Any]) -> None:
    check_integer('test_cfg.slide_batch', test_cfg.get('slide_batch', 1))
    if check_choice('test_cfg.mode', test_cfg.get('mode'), ('whole', 'slide')) == 'slide':
        _check_windows(test_cfg)


def _check_windows(test_cfg: Mapping[str, Any]) -> None:
    """Sliding windows must leave no gaps: pixels without a window have no logits."""
    crop_size, stride = test_cfg.get('crop_size'), test_cfg.get('stride')
    if crop_size is None or stride is None:
        raise ValueError("test_cfg.mode='slide' needs test_cfg.crop_size and test_cfg.stride, each (height, width)")
    crop_size, stride = check_size('test_cfg.crop_size', crop_size), check_size('test_cfg.stride', stride)
    if any(not 0 < step <= crop for step, crop in zip(stride, crop_size)):
        raise ValueError(
            f'test_cfg.stride={stride}, test_cfg.crop_size={crop_size}: windows must cover the image, '
            'so each stride must be at least 1 and at most the crop size'
        )


def _starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends with the image."""
    return [min(index * stride, size - crop) for index in range(-(-(size - crop) // stride) + 1)]


def _compare_statistics(preprocessor: Mapping[str, Any], backbone: PromptedViT) -> None:
    """Warn where images are normalized otherwise than the weights expect: a frozen trunk cannot adapt to it."""
    mean, std = pixel_statistics(backbone.trunk)
    configured = [preprocessor.get('mean'), preprocessor.get('std')]
    same = None not in configured and np.allclose(np.asarray(configured, float), (mean, std), rtol=0, atol=0.5)
    if same and preprocessor.get('bgr_to_rgb', False):
        return
    print_log(
        f'data_preprocessor has mean={configured[0]}, std={configured[1]}, '
        f'bgr_to_rgb={preprocessor.get("bgr_to_rgb", False)}, but the weights of {backbone.arch} were trained with '
        f'mean={np.round(mean, 3).tolist()}, std={np.round(std, 3).tolist()} on RGB images (mmseg reads BGR: '
        'bgr_to_rgb=True). If your file holds other weights, name the tag whose statistics they have in arch '
        '(docs/backbones.md).',
        logger='current',
        level=logging.WARNING,
    )


def _require_mmdet(head: str) -> None:
    """Mask2Former and MaskFormer belong to mmdet; without it, mmseg's error does not name the cause."""
    if 'Mask2FormerHead' not in head and 'MaskFormerHead' not in head:
        return
    missing = []
    if find_spec('mmdet') is None:
        missing.append('mmdet: pip install onedl-mmdetection (the maintained fork) or mmdet==3.3.0 (upstream)')
    compiled = find_spec('mmcv._ext')
    if compiled is None or compiled.loader is None:  # without a loader: the stub of compat.py
        missing.append(
            "mmcv's compiled operators: install onedl-mmcv or mmcv with operators built for this torch, not mmcv-lite"
        )
    if missing:
        raise ImportError(f'decode_head.type={head!r} needs {"; and ".join(missing)}. See docs/heads.md')
