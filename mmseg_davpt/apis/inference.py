"""Images in, masks and overlays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from tqdm import tqdm

from .testing import require_complete

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Images named by files and folders (not searched below).

    Raises:
        FileNotFoundError: A place does not exist, or a folder holds no image.
        ValueError: Two images would be written under one name.
    """
    found: list[Path] = []
    for place in map(Path, places):
        images = (
            sorted(path for path in place.glob('*') if path.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
        )
        if not images or not images[0].exists():
            raise FileNotFoundError(f'{place}: no image there (known suffixes: {", ".join(SUFFIXES)})')
        found += images
    stems = [path.stem for path in found]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f'several images are called {twice[0]}: their masks would overwrite one another')
    return found


def segment_images(
    cfg: Config, checkpoint: str | Path, images: Sequence[Path], out: Path, opacity: float = 0.5, device: str = 'cpu'
) -> dict[Path, str]:
    """Segment images one by one.

    Args:
        cfg: Config with a ``test_pipeline``.
        checkpoint: Checkpoint of the whole model; it names the classes and their colours.
        images: Files to read.
        out: Folder; ``masks/NAME.png`` holds class ids (uint8, or uint16 for over 256 classes), ``overlays/NAME.jpg``
            the classes painted over the image.
        opacity: Of the classes in an overlay, in [0, 1].
        device: Device of the model.

    Returns:
        Images that could not be segmented, with the reason; the others are written.

    Raises:
        FileNotFoundError, ValueError: The checkpoint is not there, or is another model's.
    """
    model = init_model(cfg, str(checkpoint), device=device)
    require_complete(model, checkpoint)
    palette = np.array(model.dataset_meta['palette'])
    failed: dict[Path, str] = {}
    for path in tqdm(images, desc='segment'):
        image = mmcv.imread(str(path)) if path.is_file() else None  # BGR
        if image is None:
            failed[path] = 'cannot be read as an image'
            continue
        mask = inference_model(model, str(path)).pred_sem_seg.data[0].cpu().numpy()
        overlay = (1 - opacity) * image + opacity * palette[mask, ::-1]
        dtype = np.uint8 if len(palette) <= 256 else np.uint16
        mmcv.imwrite(mask.astype(dtype), str(out / 'masks' / f'{path.stem}.png'))
        mmcv.imwrite(overlay.round().astype(np.uint8), str(out / 'overlays' / f'{path.stem}.jpg'))
    return failed
