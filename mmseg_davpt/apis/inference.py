"""Segment images: index masks and overlays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.apis import init_model
from mmseg.models import BaseSegmentor
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from ..datasets.image_files import MAX_PIXELS, ImageFileError, check_file, first_line, read_header
from ..reports.overlay import draw_overlay
from .checkpoints import require_complete, safe_checkpoints

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')

# Logits (classes x pixels) that mmseg may hold for one image: 1 GiB in float32.
MAX_LOGITS = 2**28
# Pixels of a model's input that are predicted at once; sides of the tiles of larger ones, and of what overlaps.
MAX_INPUT = 2**22
TILE, MARGIN = 1024, 128


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List the images that files and folders name. Subfolders are not searched.

    Args:
        paths: Image files, and folders of images.

    Raises:
        FileNotFoundError: A path does not exist, or a folder holds no image.
        ValueError: Two images have the same name, so that their masks would have the same file.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.glob('*') if file.suffix.lower() in SUFFIXES)
        if not files or not files[0].exists():
            raise FileNotFoundError(f'{path}: no image there (known suffixes: {", ".join(SUFFIXES)})')
        images += files
    stems = [path.stem for path in images]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f'several images are called {repeated[0]}: their masks would overwrite one another')
    return images


def load_segmentor(
    cfg: Config, checkpoint: str | Path, device: str = 'cpu', trust_checkpoint: bool = False
) -> BaseSegmentor:
    """Build a segmentor and load a checkpoint of the whole model.

    Args:
        cfg: A full config.
        checkpoint: The file.
        device: Device of the model.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.

    Returns:
        The segmentor in eval mode, with ``dataset_meta`` (names and colors of the classes) and ``cfg``.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint does not fit the config.
        WeightsError: It is damaged or cannot be read safely.
    """
    with safe_checkpoints(trust_checkpoint):
        model = init_model(cfg, str(checkpoint), device=device)
    require_complete(model, checkpoint, trust_checkpoint)
    return model


def segment_images(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[Path],
    out: Path,
    opacity: float = 0.5,
    device: str = 'cpu',
    max_pixels: int = MAX_PIXELS,
    trust_checkpoint: bool = False,
) -> dict[Path, str]:
    """Segment images one by one. An image that fails does not stop the others.

    Args:
        cfg: Config with a ``test_pipeline``.
        checkpoint: Checkpoint of the whole model, with the names and colors of the classes.
        images: Files to read.
        out: Folder to write to: ``masks/NAME.png`` holds class ids (uint8; uint16 for more than 256 classes),
            ``overlays/NAME.jpg`` the image under the colors of the classes. Both are turned by the image's EXIF
            orientation, as the image is in training.
        opacity: Opacity of the classes in an overlay, in [0, 1].
        device: Device of the model.
        max_pixels: Largest number of pixels of an image.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.

    Returns:
        Images that could not be segmented, each with the reason. The others are written.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint does not fit the config.
    """
    model = load_segmentor(cfg, checkpoint, device, trust_checkpoint)
    pipeline = Compose([step for step in cfg.test_pipeline if 'LoadAnnotations' not in step.type])
    names, palette = model.dataset_meta['classes'], np.array(model.dataset_meta['palette'])
    failed: dict[Path, str] = {}
    for path in tqdm(images, desc='segment'):
        try:
            image = read_image(path, max_pixels)
            mask, _ = predict(model, [_process(pipeline, path, image.shape)], scores=False)[0]
            if mask.shape != image.shape[:2]:
                raise ImageFileError(f'test_pipeline reads {mask.shape}, opencv {image.shape[:2]} (height, width)')
            _write(out / 'masks' / f'{path.stem}.png', mask.astype(np.uint8 if len(palette) <= 256 else np.uint16))
            _write(
                out / 'overlays' / f'{path.stem}.jpg',
                draw_overlay(image, mask, names, palette[:, ::-1], opacity, legend=False),
            )
        except Exception as error:  # readers, pipeline and model may raise any exception
            failed[path] = _reason(error)
    return failed


def _process(pipeline: Compose, path: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    try:
        sample: dict[str, Any] = pipeline(dict(img_path=str(path)))
    except Exception as error:  # for instance Resize, if a side would have no pixel
        raise ImageFileError(f'{shape[1]}x{shape[0]}: test_pipeline fails: {first_line(error)}') from error
    return sample


def predict(
    model: BaseSegmentor, samples: Sequence[Mapping[str, Any]], scores: bool = True
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Class ids of images, in bounded memory.

    Small images are predicted by mmseg, as many at once as memory allows. Of others, the logits are resized in parts:
    mmseg would hold those of all classes for all pixels (14 GB for 24 megapixels and 150 classes). This differs from
    mmseg by rounding alone. If the input of the model is large too, it is predicted in overlapping tiles, of which the
    model sees one at a time.

    Args:
        model: A segmentor in eval mode.
        samples: Images from the test pipeline, with ``inputs`` of one shape ``(3, H, W)`` and ``data_samples``.
        scores: Whether to compute the probability of each pixel's class.

    Returns:
        Of each image: ids, ``(H, W)``, of its size before the pipeline; probabilities, float32, or ``None``.
    """
    results: list[tuple[np.ndarray, np.ndarray | None]] = []
    shapes = [tuple(sample['data_samples'].ori_shape[:2]) for sample in samples]
    pixels = max(samples[0]['inputs'].shape[-2:].numel(), *(height * width for height, width in shapes))
    number = MAX_LOGITS // (model.out_channels * pixels)
    with torch.no_grad():
        if _needs_tiles(model, samples[0]['inputs']) or not number:
            for sample in samples:
                data = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
                data = model.data_preprocessor(data, False)
                results.append(_predict_in_parts(model, data['inputs'], data['data_samples'][0].metainfo, scores))
            return results
        for start in range(0, len(samples), number):
            group = samples[start : start + number]
            data = dict(inputs=[s['inputs'] for s in group], data_samples=[s['data_samples'] for s in group])
            for sample in model.test_step(data):
                ids, probability = _choose(model, sample.seg_logits.data, scores)
                results.append((ids.cpu().numpy(), None if probability is None else probability.cpu().numpy()))
    return results


def _choose(model: BaseSegmentor, logits: Tensor, scores: bool) -> tuple[Tensor, Tensor | None]:
    """Class ids and, if wanted, their probabilities, ``(h, w)``, from logits ``(C, h, w)``."""
    if len(logits) == 1:  # one class against the background
        probability = logits[0].sigmoid()
        chosen = probability > model.decode_head.threshold
        return chosen.long(), torch.where(chosen, probability, 1 - probability).float() if scores else None
    highest, ids = logits.max(0)
    return ids, (highest - logits.logsumexp(0)).exp().float() if scores else None


def _needs_tiles(model: BaseSegmentor, inputs: Tensor) -> bool:
    pixels = inputs.shape[-2:].numel()
    windows = model.test_cfg.get('mode', 'whole') == 'slide'  # of bounded size already
    return model.out_channels * pixels > MAX_LOGITS or (pixels > MAX_INPUT and not windows)


def _predict_in_parts(
    model: BaseSegmentor, inputs: Tensor, meta: Mapping[str, Any], scores: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    inputs = inputs[..., top : inputs.shape[-2] - bottom, left : inputs.shape[-1] - right]
    (h, w), (height, width) = inputs.shape[-2:], meta['ori_shape'][:2]
    side = max(h, w)
    if _needs_tiles(model, inputs):
        side = min(max(int((MAX_LOGITS / model.out_channels) ** 0.5) - 2 * MARGIN, MARGIN), TILE)
    rows, columns = _sources(height, h, model.align_corners), _sources(width, w, model.align_corners)
    ids = np.zeros((height, width), np.int16)
    probabilities = np.zeros((height, width), np.float32) if scores else None
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
                if inside_x.size == width:  # torch's resize is faster, and knows no parts
                    size = (part.size, width)
                    values = interpolate(values[None], size, mode='bilinear', align_corners=model.align_corners)[0]
                else:
                    values = _sample(values, columns[inside_x] - x, 2)
                chosen, probability = _choose(model, values, scores)
                place = slice(part[0], part[-1] + 1), slice(inside_x[0], inside_x[-1] + 1)
                ids[place] = chosen.cpu().numpy()
                if probabilities is not None and probability is not None:
                    probabilities[place] = probability.cpu().numpy()
    return ids, probabilities


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


def read_image(path: Path, max_pixels: int) -> np.ndarray:
    """Read an image file.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; checked before anything is decoded.

    Returns:
        BGR, uint8, ``(H, W, 3)``, turned by its EXIF orientation.

    Raises:
        ImageFileError: It cannot be read, or is too large.
    """
    if not path.is_file():
        raise ImageFileError('no file' if not path.is_dir() else 'a folder')
    if read_header(path, max_pixels) is None:
        raise ImageFileError('cannot be read as an image: unknown format')
    data = path.read_bytes()
    header = check_file(data, max_pixels, decode=True)
    image: np.ndarray | None = mmcv.imfrombytes(data)
    if image is None:
        raise ImageFileError('cannot be read as an image: opencv cannot decode it')
    if header is not None and header.orientation != 1:
        tqdm.write(f'{path}: EXIF orientation {header.orientation}: image and mask are turned', sys.stderr)
    return image


def _write(path: Path, image: np.ndarray) -> None:
    """Write an image under its final name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise OSError(f'{path} cannot be written: {first_line(error)}') from error
    if not done:
        raise OSError(f'{path} cannot be written: {image.shape[1]}x{image.shape[0]} are too large for the format')
    partial = path.with_name(f'.{path.name}.partial')
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageFileError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f'{os.strerror(error.errno)} ({error.filename})' if error.filename else os.strerror(error.errno)
    return first_line(error)
