"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MASK_WORDS = ('mask', 'label', 'annot', 'gt', 'seg')  # in the names of masks that lie beside their images
# Names of folders that name a split, or only the kind of their files.
SPLITS = dict(train='train', training='train', trn='train', val='val', valid='val', validation='val', eval='val')
SPLITS |= dict(test='test', testing='test')
KINDS: tuple[str, ...] = ('image', 'images', 'img', 'imgs', 'img_dir', 'photos', 'jpegimages', 'leftimg8bit')
KINDS += ('mask', 'masks', 'label', 'labels', 'annotation', 'annotations', 'annots', 'ann_dir', 'gt', 'gtfine')


class PairingError(ValueError):
    """Images and masks whose names do not fit; the message lists what was found."""


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, sorted; hidden files are left out.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: It does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder')
    paths: list[Path] = []
    for root, _, names in os.walk(folder, followlinks=True):
        paths += [Path(root, name) for name in names if not name.startswith('.')]
    paths = sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f'{folder}: no image there (known suffixes: {", ".join(IMAGE_SUFFIXES)})')
    return paths


def named_split(path: Path, folder: Path) -> str | None:
    """``train``, ``val`` or ``test`` if a folder between ``folder`` and the file has such a name.

    Args:
        path: A file below ``folder``.
        folder: The folder.
    """
    return next((SPLITS[part] for part in _parents(path, folder) if part in SPLITS), None)


def pair_files(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """Pair images with masks whose names are equal but for a prefix or suffix that all names of a kind share.

    Folders count where the same name occurs in several. Case, Unicode form, folders that name a split or a kind of
    file (``train``, ``images``, ``labels``) do not count.

    Args:
        images: Folder of images, with or without subfolders.
        masks: Folder of masks; may be the same.

    Returns:
        Pairs (image, mask), sorted by image; images without a mask; masks without an image.

    Raises:
        FileNotFoundError: A folder does not exist or holds no image.
        PairingError: Fewer than half of the images have a mask, or several masks fit an image equally well.
    """
    image_paths, mask_paths = list_images(images), list_images(masks)
    if shared := set(image_paths) & set(mask_paths):
        image_paths, mask_paths = _separate(image_paths, mask_paths, shared)
    best: dict[Path, Path] = {}
    for keys in (_full_key, _name_key):
        image_keys, mask_keys = ([keys(path, root) for path in paths] for paths, root in (
            (image_paths, images), (mask_paths, masks)))  # fmt: skip
        for rule in _rules([key[-1] for key in image_keys], [key[-1] for key in mask_keys]):
            found = _match(image_paths, image_keys, mask_paths, mask_keys, rule)
            if len(found) > len(best):
                best = found
    if 2 * len(best) < len(image_paths):
        raise PairingError(
            f'{len(best)} of {len(image_paths)} images in {images} have a mask in {masks} by name. Names are compared '
            'without their suffix, and without what all masks share, as in a_mask.png for a.jpg. First image: '
            f'{image_paths[0]}, first mask: {mask_paths[0]}'
        )
    used = set(best.values())
    pairs = [(path, best[path]) for path in image_paths if path in best]
    return pairs, [path for path in image_paths if path not in best], [path for path in mask_paths if path not in used]


def _separate(images: Sequence[Path], masks: Sequence[Path], shared: Collection[Path]) -> tuple[list[Path], list[Path]]:
    """Images and masks of one folder: JPEG and others, or by a word in the names of the masks."""

    def is_photo(path: Path) -> bool:
        return path.suffix.lower() in ('.jpg', '.jpeg')

    def is_mask(path: Path) -> bool:
        return any(word in part.lower() for part in (*path.parts[-3:-1], path.stem) for word in MASK_WORDS)

    if 0 < sum(is_photo(path) for path in shared) < len(shared):
        return [path for path in images if is_photo(path)], [path for path in masks if not is_photo(path)]
    stems = [path for path in shared if any(word in path.stem.lower() for word in MASK_WORDS)]
    test = is_mask if not stems else (lambda path: any(word in path.stem.lower() for word in MASK_WORDS))
    found = [path for path in images if not test(path)], [path for path in masks if test(path)]
    if not all(found):
        raise PairingError(
            f'images and masks are in one folder and have the same suffix: give two folders, or name each mask with '
            f'one of {", ".join(MASK_WORDS)}'
        )
    return found


def _parents(path: Path, folder: Path) -> list[str]:
    return [_folded(part) for part in path.relative_to(folder).parts[:-1]]


def _folded(name: str) -> str:
    """The name in one Unicode form (macOS decomposes letters) and without case."""
    return unicodedata.normalize('NFC', name).casefold()


def _full_key(path: Path, folder: Path) -> tuple[str, ...]:
    kept = [part for part in _parents(path, folder) if part not in KINDS]
    return (*[SPLITS.get(part, part) for part in kept], _folded(path.stem))


def _name_key(path: Path, folder: Path) -> tuple[str, ...]:
    return (_folded(path.stem),)


Rule = tuple[str, str, str, str]  # head and tail of the images' names, head and tail of the masks'


def _rules(images: Sequence[str], masks: Sequence[str]) -> Iterator[Rule]:
    """What to cut off the names: nothing, or what the nearest names of masks differ in most often."""
    yield ('', '', '', '')
    for image_tail, mask_tail in _frequent_ends(images, masks):
        yield ('', image_tail, '', mask_tail)
    turned = [name[::-1] for name in images], [name[::-1] for name in masks]
    for image_head, mask_head in _frequent_ends(*turned):
        yield (image_head[::-1], '', mask_head[::-1], '')


def _frequent_ends(images: Sequence[str], masks: Sequence[str]) -> list[tuple[str, str]]:
    known = sorted(set(images))
    votes: Counter[tuple[str, str]] = Counter()
    for mask in masks:
        place = bisect_left(known, mask)
        near = [known[index] for index in (place - 1, place) if 0 <= index < len(known)]
        for image in near:
            if length := shared_length(image, mask):
                votes[image[length:], mask[length:]] += 1
    return [ends for ends, _ in votes.most_common(5)]


def shared_length(a: str, b: str) -> int:
    """Number of characters that two strings share at their start."""
    return sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(a, b)))


def _match(
    images: Sequence[Path], image_keys: Sequence[tuple[str, ...]], masks: Sequence[Path],
    mask_keys: Sequence[tuple[str, ...]], rule: Rule,
) -> dict[Path, Path]:  # fmt: skip
    """Image -> mask under a rule; nothing where a key is not unique."""
    cut_image, cut_mask = _cutter(rule[0], rule[1]), _cutter(rule[2], rule[3])
    by_key: dict[tuple[str, ...], list[Path]] = {}
    for path, key in zip(masks, mask_keys):
        if (name := cut_mask(key[-1])) is not None:
            by_key.setdefault((*key[:-1], name), []).append(path)
    claims: Counter[tuple[str, ...]] = Counter()
    found: list[tuple[Path, tuple[str, ...]]] = []
    for path, key in zip(images, image_keys):
        if (name := cut_image(key[-1])) is not None:
            claims[(*key[:-1], name)] += 1
            found.append((path, (*key[:-1], name)))
    return {path: by_key[key][0] for path, key in found if claims[key] == 1 and len(by_key.get(key, ())) == 1}


def _cutter(head: str, tail: str) -> Callable[[str], str | None]:
    def cut(name: str) -> str | None:
        fits = name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail)
        return name[len(head) : len(name) - len(tail)] if fits else None

    return cut
