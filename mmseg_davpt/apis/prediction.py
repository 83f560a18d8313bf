"""Class ids and scores of images, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmseg.models import BaseSegmentor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

# Logits (classes x pixels) that mmseg may hold at once: 1 GiB in float32.
MAX_LOGITS = 2**28
# Pixels of a model's input that are predicted at once; sides of the tiles of larger ones, and of what overlaps.
MAX_INPUT = 2**22
TILE, MARGIN = 1024, 128
STRIP = 256  # rows whose scores are computed at once


class Prediction(NamedTuple):
    """Classes of an image.

    Attributes:
        mask: Class ids, ``(H, W)``.
        scores: Softmax probability of each pixel's class, float32, ``(H, W)``; ``None`` without ``with_scores``.
    """

    mask: NDArray[np.integer]
    scores: NDArray[np.float32] | None


def predict(model: BaseSegmentor, samples: Sequence[Mapping[str, Any]], with_scores: bool = False) -> list[Prediction]:
    """Predict images of the same size, in bounded memory.

    Images are predicted by mmseg, as many at once as memory allows. Of large ones, the logits are resized in parts:
    mmseg would hold those of all classes for all pixels (14 GB for 24 megapixels and 150 classes). This differs from
    mmseg by rounding alone. If the input of the model is large too, it is predicted in overlapping tiles, of which the
    model sees one at a time.

    Args:
        model: From mmseg's ``init_model``.
        samples: Images, from the test pipeline: ``inputs`` of shape ``(3, H, W)``, the same for all, and
            ``data_samples``, with the same ``ori_shape``.
        with_scores: Whether to compute scores.

    Returns:
        One prediction an image, of the image's size before the pipeline.

    Raises:
        ValueError: Scores of a head that gives no logits.
    """
    if with_scores and type(model.decode_head).__name__ in ('MaskFormerHead', 'Mask2FormerHead'):
        raise ValueError(f'{type(model.decode_head).__name__} gives no logits, hence there are no scores')
    shape, inputs = samples[0]['data_samples'].ori_shape[:2], samples[0]['inputs']
    values = model.out_channels * max(inputs.shape[-2:].numel(), int(np.prod(shape)))
    with torch.no_grad():
        if _needs_tiles(model, inputs) or values > MAX_LOGITS:
            return [_predict_in_parts(model, sample, with_scores) for sample in samples]
        number = max(1, MAX_LOGITS // values)
        predictions = []
        for start in range(0, len(samples), number):
            part = samples[start : start + number]
            data = {key: [sample[key] for sample in part] for key in ('inputs', 'data_samples')}
            for result in model.test_step(data):
                ids, logits = result.pred_sem_seg.data[0].long(), result.seg_logits.data
                if len(logits) == 1:  # mmseg took the sigmoid already
                    logits = logits.logit()
                scores = _scores(logits, ids) if with_scores else None
                predictions.append(Prediction(ids.cpu().numpy(), scores))
    return predictions


def _needs_tiles(model: BaseSegmentor, inputs: Tensor) -> bool:
    pixels = inputs.shape[-2:].numel()
    windows = model.test_cfg.get('mode', 'whole') == 'slide'  # of bounded size already
    return model.out_channels * pixels > MAX_LOGITS or (pixels > MAX_INPUT and not windows)


def _scores(logits: Tensor, ids: Tensor) -> NDArray[np.float32]:
    """Probability of the chosen classes: softmax, or sigmoid with one channel; ``(C, H, W)`` -> ``(H, W)``."""
    scores = []
    for part, chosen in zip(logits.split(STRIP, dim=1), ids.split(STRIP)):
        part = part.float()
        if len(part) == 1:
            foreground = part[0].sigmoid()
            scores.append(torch.where(chosen > 0, foreground, 1 - foreground))
        else:
            scores.append((part - part.amax(0)).exp_().sum(0).reciprocal_())
    return torch.cat(scores).cpu().numpy()


def _predict_in_parts(model: BaseSegmentor, sample: Mapping[str, Any], with_scores: bool) -> Prediction:
    data = model.data_preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]), False)
    inputs, meta = data['inputs'], data['data_samples'][0].metainfo
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    inputs = inputs[..., top : inputs.shape[-2] - bottom, left : inputs.shape[-1] - right]
    (h, w), (height, width) = inputs.shape[-2:], meta['ori_shape'][:2]
    side = max(h, w)
    if _needs_tiles(model, inputs):
        side = min(max(int((MAX_LOGITS / model.out_channels) ** 0.5) - 2 * MARGIN, MARGIN), TILE)
    rows, columns = _sources(height, h, model.align_corners), _sources(width, w, model.align_corners)
    ids = np.zeros((height, width), np.int16)
    scores = np.zeros((height, width), np.float32) if with_scores else None
    for y0, y1 in _tiles(h, side):
        for x0, x1 in _tiles(w, side):
            # Rows and columns of the result whose nearest source lies in the tile. The margin around it is context.
            inside_y = np.flatnonzero((rows.round() >= y0) & (rows.round() < y1))
            inside_x = np.flatnonzero((columns.round() >= x0) & (columns.round() < x1))
            if not (inside_y.size and inside_x.size):
                continue
            y, x = max(y0 - MARGIN, 0), max(x0 - MARGIN, 0)
            crop = inputs[..., y : y1 + MARGIN, x : x1 + MARGIN]
            shape = tuple(crop.shape[-2:])
            logits = model.inference(crop, [{**meta, 'img_shape': shape, 'ori_shape': shape}])[0]
            number = max(1, MAX_LOGITS // 8 // (len(logits) * max(shape[1], inside_x.size)))
            for part in np.split(inside_y, range(number, inside_y.size, number)):
                values = _sample(logits, rows[part] - y, 1)
                if inside_x.size == width:  # torch's resize is faster, and cannot resize a part
                    size = (part.size, width)
                    values = interpolate(values[None], size, mode='bilinear', align_corners=model.align_corners)[0]
                else:
                    values = _sample(values, columns[inside_x] - x, 2)
                chosen = values.argmax(0) if len(values) > 1 else values[0].sigmoid() > model.decode_head.threshold
                place = slice(part[0], part[-1] + 1), slice(inside_x[0], inside_x[-1] + 1)
                ids[place] = chosen.cpu().numpy()
                if scores is not None:
                    scores[place] = _scores(values, chosen)
    return Prediction(ids, scores)


def _tiles(size: int, side: int) -> Iterator[tuple[int, int]]:
    """Equal parts of a side of the image, none longer than the side of a tile."""
    number = -(-size // side)
    edges = np.linspace(0, size, number + 1).round().astype(int)
    yield from zip(edges[:-1].tolist(), edges[1:].tolist())


def _sources(size: int, source: int, align_corners: bool) -> np.ndarray:
    """Where torch's bilinear resize from ``source`` to ``size`` pixels takes its values from."""
    places = np.arange(size, dtype=np.float64)
    if align_corners:
        return places * ((source - 1) / max(size - 1, 1))
    return ((places + 0.5) * (source / size) - 0.5).clip(0, source - 1)


def _sample(values: Tensor, places: np.ndarray, dim: int) -> Tensor:
    """Interpolate linearly along a dimension, at ascending places between the first and the last value."""
    last = values.shape[dim] - 1
    first = places.astype(np.int64)
    if np.array_equal(places, np.arange(first[0], first[0] + len(first))):  # not resized
        return values.narrow(dim, int(first[0]), len(first))
    weight = torch.as_tensor(places - first, dtype=values.dtype, device=values.device)
    low, high = (
        values.index_select(dim, torch.as_tensor(index, device=values.device))
        for index in (first, np.minimum(first + 1, last))
    )
    return low.lerp_(high, weight.unsqueeze(-1) if dim == 1 else weight)
