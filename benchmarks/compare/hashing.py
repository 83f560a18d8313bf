"""A hash that tells the configs of runs apart, wherever their data and weights are."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

PLACES = ('data_root', 'work_dir')  # keys whose values do not count
# What only writes about a run, and came after rows were stored: with and without it the run is the same.
OBSERVERS = ('RunRecordHook', 'PromptAttentionHook', 'PictureGridHook')
RECORD_KEYS = ('save_best',)


def config_hash(cfg: Config) -> str:
    """Eight hex digits that tell configs apart.

    The whole config counts, as nested data, with four exceptions. The values of ``data_root`` and ``work_dir`` do not
    count, nor does the ``data_root`` at the start of another path. A ``pretrained`` file counts by its content, not by
    its path; ``True``, ``False`` and the path of a missing file count as they are. Hooks that only record the run
    (``OBSERVERS``) and the choice of a best checkpoint (``RECORD_KEYS``) do not count.

    Args:
        cfg: The config of one run.
    """
    plain = cfg.to_dict()
    roots = {str(root) for root in _values_of('data_root', plain) if root}
    text = json.dumps(_comparable(plain, '', sorted(roots, key=len, reverse=True)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _values_of(key: str, value: Any) -> Iterator[Any]:
    """All values of ``key`` in nested data."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _values_of(key, item)


def _comparable(value: Any, key: str, roots: list[str]) -> Any:
    """The value as JSON can hold it, without places; ``key`` is the one that it is found under."""
    if isinstance(value, dict):
        left_out = PLACES + RECORD_KEYS
        return {str(name): _comparable(item, str(name), roots) for name, item in value.items() if name not in left_out}
    if isinstance(value, (list, tuple)):
        return [_comparable(item, key, roots) for item in value if not _observes(item)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    if key == 'pretrained' and Path(text).is_file():
        status = Path(text).stat()
        return f'sha256:{_content_hash(text, status.st_mtime_ns, status.st_size)}'
    for root in roots:
        if Path(root).is_absolute() and Path(text).is_relative_to(root):
            return f'data_root/{Path(text).relative_to(root)}'
    return text


def _observes(value: Any) -> bool:
    return isinstance(value, dict) and value.get('type') in OBSERVERS


@functools.lru_cache
def _content_hash(path: str, modified: int, size: int) -> str:
    """Sixteen hex digits of a file's SHA-256; ``modified`` and ``size`` make a changed file another entry."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
