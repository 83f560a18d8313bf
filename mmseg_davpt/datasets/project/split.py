"""Training and validation images."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from .labels import IGNORED
from .scan import Pair, Value

VAL_SHARE = 0.2
MAX_VAL = 500  # more only cost time


def split_pairs(pairs: Sequence[Pair], table: Mapping[Value, int], seed: int = 0) -> tuple[list[Pair], list[Pair], str]:
    """Split by the names of folders, or so that each class has its share in both parts.

    Args:
        pairs: All pairs.
        table: Value in a mask -> id of its class.
        seed: Of the random order.

    Returns:
        Training pairs, validation pairs, and how they were split. Folders called ``test`` belong to neither.

    Raises:
        ValueError: There are validation images, but no training images.
    """
    named = {split: [pair for pair in pairs if pair.split == split] for split in ('train', 'val', None)}
    if named['val']:
        train = named['train'] or named[None]
        if not train:
            raise ValueError('there are images in a folder of validation images, but none for training')
        return train, named['val'], 'by the names of the folders'
    train, val = _stratify(named['train'] or named[None], table, seed)
    return train, val, f'{len(val)} of {len(train) + len(val)} images, every class with its share'


def _stratify(pairs: Sequence[Pair], table: Mapping[Value, int], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Rare classes first: their images are the fewest that can be shared out."""
    order = list(pairs)
    random.Random(seed).shuffle(order)
    classes = {pair.image: {table[value] for value in pair.pixels} - {IGNORED} for pair in order}
    images = Counter(label for labels in classes.values() for label in labels)
    share = min(VAL_SHARE, MAX_VAL / len(order))
    in_val: Counter[int] = Counter()
    place: dict[object, bool] = {}  # image -> whether it is for validation
    for label in sorted(images, key=lambda label: (images[label], label)):
        wanted = min(max(round(share * images[label]), images[label] >= 3), images[label] - 1)
        for pair in order:
            if label in classes[pair.image] and pair.image not in place:
                place[pair.image] = in_val[label] < wanted
                if place[pair.image]:
                    in_val.update(classes[pair.image])
    val = [pair for pair in pairs if place.get(pair.image)]
    if not val:
        val = [order[0]]
    chosen = {pair.image for pair in val}
    return [pair for pair in pairs if pair.image not in chosen], val
