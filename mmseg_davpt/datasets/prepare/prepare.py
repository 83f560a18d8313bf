"""Prepare a published dataset for its config: download, check, unpack, convert, count."""

from __future__ import annotations

from pathlib import Path

from .archives import unpack
from .download import DataError, download
from .sources import Source


def prepare(source: Source, root: str | Path = 'data') -> Path:
    """Prepare a dataset. Results of an interrupted run are kept; a complete dataset is not changed.

    Args:
        source: One of :data:`~mmseg_davpt.datasets.prepare.SOURCES`.
        root: Folder of all datasets. The archives go to ``ROOT/downloads``.

    Returns:
        Folder of the dataset: the ``data_root`` of its config.

    Raises:
        DataError: A step failed or needs the user; the message names the remedy.
    """
    folder, downloads = Path(root) / source.folder, Path(root) / 'downloads'
    if not miscounts(source, folder):
        return folder
    by_hand = [item for item in source.archives if item.url is None and not (downloads / item.name).is_file()]
    if by_hand and not all((folder / place).is_dir() for item in by_hand for place in item.places.values()):
        names = '\n'.join(f'  {downloads / item.name}' for item in by_hand)
        raise DataError(
            f'{source.title} cannot be downloaded without an account.\n{source.manual}\nto:\n{names}\n'
            f'or unpack them in {folder}. Then run this again.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    for item in source.archives:
        path = downloads / item.name
        if item.url is not None:
            download(item.url, path, item.digest)
        if path.is_file():
            unpack(path, folder, item.places)
    if source.convert is not None:
        source.convert(folder)
    wrong = miscounts(source, folder)
    if wrong:
        raise DataError(
            f'{source.title} in {folder} is incomplete:\n'
            + '\n'.join(f'  {pattern}: expected {expected:,}, found {found:,}' for pattern, expected, found in wrong)
            + f'\nRemove files that do not belong there and damaged archives in {downloads}, then run this again.'
        )
    return folder


def miscounts(source: Source, folder: Path) -> list[tuple[str, int, int]]:
    """Where a prepared dataset has another number of files (or lines) than it should: pattern, expected, found."""
    found = {pattern: _count(folder, pattern) for pattern in source.counts}
    return [(pattern, number, found[pattern]) for pattern, number in source.counts.items() if found[pattern] != number]


def _count(folder: Path, pattern: str) -> int:
    if pattern.endswith('.txt'):
        return len((folder / pattern).read_text().split()) if (folder / pattern).is_file() else 0
    return sum(not path.name.startswith('.') for path in folder.glob(pattern))
