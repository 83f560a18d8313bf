"""Write masks with other ids."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.registry import init_default_scope
from PIL import Image
from tqdm import tqdm

from ..image_files import ImageFileError, check_mask_file, first_line
from .splits import Split, build_dataset, named_leaves, sample_infos


def parse_map(text: str) -> dict[int, int]:
    """Read a mapping such as ``255=1,7=0``: id in a file = id to write.

    Args:
        text: The mapping.

    Raises:
        ValueError: It is no such mapping, or an id is not in 0 to 255.
    """
    mapping: dict[int, int] = {}
    for part in text.split(','):
        old, sign, new = part.partition('=')
        if not (sign and old.strip().isdecimal() and new.strip().isdecimal()):
            raise ValueError(f'--map {text}: write OLD=NEW[,OLD=NEW...], for instance 255=1')
        if max(int(old), int(new)) > 255 or int(old) in mapping:
            raise ValueError(f'--map {text}: ids are 0 to 255, each once on the left')
        mapping[int(old)] = int(new)
    return mapping


def map_masks(cfg: Mapping[str, Any], mapping: Mapping[int, int], out: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Write the masks of a config with other ids, as 8-bit PNG, under their names.

    Args:
        cfg: A full config.
        mapping: Id in a file -> id to write; other ids stay.
        out: Folder to create, or an empty one. A mask keeps its path below the data root.

    Returns:
        Folder of masks -> number of masks written to it; mask that could not be read -> reason.

    Raises:
        ValueError: A dataset cannot be built; ``out`` is not empty; two masks would have the same file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'--out {out}: not an empty folder')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    table = np.arange(256, dtype=np.uint8)
    table[list(mapping)] = list(mapping.values())
    targets: dict[Path, str] = {}
    folders: dict[Path, Path] = {}
    backends: dict[str, Any] = {}
    for name, leaf in named_leaves(cfg):
        split = Split(name, build_dataset(name, leaf), False)
        folder = Path(split.dataset.data_prefix.get('seg_map_path') or '')
        root = Path(split.dataset.data_root or folder)
        below = folder.relative_to(root) if folder.is_relative_to(root) else Path(folder.name)
        for info in sample_infos(split):
            if (path := info.get('seg_map_path')) is None:
                continue
            target = out / below / Path(os.path.relpath(path, folder)).with_suffix('.png')
            if targets.setdefault(target, path) != path:
                raise ValueError(f'{path} and {targets[target]} would both be written to {target}')
            folders[target], backends[path] = out / below, split.dataset.backend_args
    written: dict[str, int] = {}
    failed: dict[str, str] = {}
    for target, path in tqdm(targets.items(), 'map masks', mininterval=1):
        try:
            data = fileio.get(path, backend_args=backends[path])
            if check_mask_file(data) is None:
                raise ImageFileError('not an image that Pillow reads')
            with Image.open(io.BytesIO(data)) as image:
                mask = table[np.asarray(image).astype(np.uint8)]
        except (OSError, ImageFileError) as error:
            failed[path] = str(error) if isinstance(error, ImageFileError) else first_line(error)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
        folder_name = str(folders[target])
        written[folder_name] = written.get(folder_name, 0) + 1
    return written, failed
