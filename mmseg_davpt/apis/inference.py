"""Segment images: index masks and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from tqdm import tqdm

from .checkpoints import require_complete, safe_checkpoints

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


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


def segment_images(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[Path],
    out: Path,
    opacity: float = 0.5,
    device: str = 'cpu',
    trust_checkpoint: bool = False,
) -> dict[Path, str]:
    """Segment images one by one.

    Args:
        cfg: Config with a ``test_pipeline``.
        checkpoint: Checkpoint of the whole model, with the names and colors of the classes.
        images: Files to read.
        out: Folder to write to: ``masks/NAME.png`` holds class ids (uint8; uint16 for more than 256 classes),
            ``overlays/NAME.jpg`` the image under the colors of the classes.
        opacity: Opacity of the classes in an overlay, in [0, 1].
        device: Device of the model.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.

    Returns:
        Images that could not be segmented, each with the reason. The others are written.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint does not fit the config.
    """
    with safe_checkpoints(trust_checkpoint):
        model = init_model(cfg, str(checkpoint), device=device)
    require_complete(model, checkpoint, trust_checkpoint)
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
