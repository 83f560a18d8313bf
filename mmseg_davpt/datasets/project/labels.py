"""Values in the masks -> classes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .scan import DataSummary, Pair, Value

IGNORED = 255
LEVEL_GAP = 8  # ids that are all so far apart are gray levels, as in 0, 127, 255
MAX_WEIGHT = 10.0  # of a class in the loss
MAX_COLORS = 64  # without a list of classes; more are soft edges or photographs
_SEPARATOR = r'[\s,;:]+'
_NUMBERS = rf'(\d{{1,3}}){_SEPARATOR}(\d{{1,3}}){_SEPARATOR}(\d{{1,3}})'
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """What the values in the masks mean.

    Attributes:
        classes: Names; the place of a name is its id.
        table: Value in a mask -> id of its class; 255 = ignored.
        colors: Color of each class; empty if none are known.
        reduce_zero_label: The masks hold ids from 1, and mmseg is to subtract 1.
        rewrite: Why masks with other ids must be written; empty if they are used as they are.
    """

    classes: tuple[str, ...]
    table: dict[Value, int]
    colors: tuple[Color, ...] = ()
    reduce_zero_label: bool = False
    rewrite: str = ''


def class_weights(pairs: Iterable[Pair], labels: Labels) -> list[float]:
    """Weight of each class in the loss, so that small and rare classes are learned in a short training.

    Weights are proportional to ``1 / sqrt(share of the pixels)``, with mean 1 over the pixels, and at most 10.

    Args:
        pairs: The training pairs.
        labels: The classes.

    Returns:
        A weight for each class; 1 for a class without pixels.
    """
    counts: Counter[int] = Counter()
    for pair in pairs:
        for value, number in pair.pixels.items():
            counts[labels.table[value]] += number
    counts.pop(IGNORED, None)
    total = sum(counts.values())
    mean = sum(math.sqrt(number / total) for number in counts.values())
    weights = {index: 1 / (math.sqrt(number / total) * mean) for index, number in counts.items() if number}
    return [min(round(weights.get(index, 1.0), 2), MAX_WEIGHT) for index in range(len(labels.classes))]


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Read a file with one class a line, with or without its color in the masks.

    Lines are ``name``, ``name R G B``, ``R G B name`` or ``name #RRGGBB``; commas may stand for spaces. Empty lines and
    lines that begin with ``#`` do not count. The first class has id 0.

    Args:
        path: The file, in UTF-8.

    Returns:
        Names, and colors (empty if the lines have none).

    Raises:
        ValueError: A class occurs twice, or only some lines have a color, or there is no class.
    """
    names: list[str] = []
    colors: list[Color] = []
    for line in path.read_text(encoding='utf-8-sig').splitlines():
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        name, color = _read_class(line)
        names.append(name)
        colors += [] if color is None else [color]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f'{path}: expected different names, one a line; found {names or "none"}')
    if colors and len(colors) < len(names):
        raise ValueError(f'{path}: {len(colors)} of {len(names)} lines have a color; give all or none one')
    if len(set(colors)) < len(colors):
        raise ValueError(f'{path}: two classes have the same color')
    return tuple(names), tuple(colors)


def _read_class(line: str) -> tuple[str, Color | None]:
    if match := re.fullmatch(rf'(.*?){_SEPARATOR}#([0-9a-fA-F]{{6}})', line):
        return match[1], _rgb(int(match[2], 16))
    if match := re.fullmatch(rf'(.*?){_SEPARATOR}{_NUMBERS}', line):
        return match[1], (int(match[2]), int(match[3]), int(match[4]))
    if match := re.fullmatch(rf'{_NUMBERS}{_SEPARATOR}(.*)', line):
        return match[4], (int(match[1]), int(match[2]), int(match[3]))
    return line, None


def _rgb(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def read_labels(
    summary: DataSummary,
    names: Sequence[str] = (),
    colors: Sequence[Color] = (),
    ignored: Collection[int] = (),
) -> Labels:
    """Find out which class each value in the masks is.

    Args:
        summary: The data.
        names: Names of the classes, in the order of their ids; made up if empty.
        colors: Their colors in the masks, if the masks hold colors.
        ignored: Ids of no class, beside 255.

    Returns:
        Classes and the table of values.

    Raises:
        ValueError: The values do not fit the names, or there are fewer than two or more than 255 classes.
    """
    values = set(summary.values)
    is_gray = all(len(set(value)) == 1 for value in values if isinstance(value, tuple))
    as_ids = is_gray and not colors
    labels = _read_ids(summary, names, ignored) if as_ids else _read_colors(summary, names, colors)
    if not 2 <= len(labels.classes) <= 255:
        raise ValueError(f'the masks hold {len(labels.classes)} classes; expected 2 to 255: {labels.classes[:5]}')
    return labels


def _read_ids(summary: DataSummary, names: Sequence[str], ignored: Collection[int]) -> Labels:
    by_value: dict[Value, int] = {v: v[0] if isinstance(v, tuple) else v for v in summary.values}
    ids = sorted(set(by_value.values()) - set(ignored))
    classes, table = _order_ids(ids, names)
    table |= dict.fromkeys(set(by_value.values()) - set(table), IGNORED)
    rewrite = summary.rewrite
    reduce = not rewrite and _subtracts_one(table)
    if not rewrite and not reduce and any(new != old for old, new in table.items()):
        rewrite = 'ids of the classes are not 0, 1, 2, ...'
    found = {new: summary.palette.get(old) for old, new in table.items()}
    colors = tuple(color for index in range(len(classes)) if (color := found.get(index)) is not None)
    if len(colors) < len(classes) or all(len(set(color)) == 1 for color in colors):  # gray: no palette to show
        colors = ()
    return Labels(tuple(classes), {value: table[old] for value, old in by_value.items()}, colors, reduce, rewrite)


def _order_ids(ids: Sequence[int], names: Sequence[str]) -> tuple[Sequence[str], dict[int, int]]:
    """Names, and id in the masks -> id of the class."""
    gaps = [high - low for low, high in pairwise(ids)]
    levels = bool(gaps) and min(gaps) >= LEVEL_GAP and len(names) in (0, len(ids))  # 0 and 255, or 0, 127, 255
    kept = [value for value in ids if levels or value != IGNORED]
    if not names:
        if not levels and kept and kept[0] == 1 and kept[-1] == len(kept):  # 1, 2, 3, ...: mmseg subtracts 1
            return [f'class_{value}' for value in kept], {value: value - 1 for value in kept}
        made = ['background', 'object'] if levels and len(kept) == 2 else [f'class_{value}' for value in kept]
        return made, {old: new for new, old in enumerate(kept)}
    if levels and len(names) == len(kept):
        return names, {old: new for new, old in enumerate(kept)}
    if kept and kept[-1] < len(names):  # classes may be absent
        return names, {value: value for value in kept}
    without_zero = [value for value in kept if value]
    if without_zero and without_zero[-1] == len(names):  # ids from 1, 0 is unlabeled
        return names, {value: value - 1 for value in without_zero}
    for found in (kept, without_zero):
        if len(found) == len(names):
            return names, {old: new for new, old in enumerate(found)}
    shown = ', '.join(map(str, kept[:20])) + (', ...' if len(kept) > 20 else '')
    raise ValueError(
        f'{len(names)} classes are named, but the masks hold {len(kept)} ids: {shown}. Name all of them in the order '
        'of their ids, or give the ids of no class with --ignore'
    )


def _subtracts_one(table: Mapping[int, int]) -> bool:
    """Whether mmseg's ``reduce_zero_label`` does the same as the table."""
    return all(new == (IGNORED if old in (0, IGNORED) else old - 1) for old, new in table.items())


def _read_colors(summary: DataSummary, names: Sequence[str], colors: Sequence[Color]) -> Labels:
    values = summary.values
    if any(isinstance(value, int) for value in values):
        raise ValueError('some masks hold ids and others colors: give each kind its own folder')
    found = sorted(value for value in values if isinstance(value, tuple))
    if names and not colors:
        raise ValueError(
            f'the masks hold {len(found)} colors; write the color of each class behind its name (name R G B). Found: '
            + ', '.join('{} {} {}'.format(*color) for color in found[:MAX_COLORS])
        )
    if not names:
        if len(found) > MAX_COLORS:
            raise ValueError(
                f'the masks hold {len(found)} colors, too many for classes: give the classes and their colors '
                'with --classes (one line each: name R G B); other colors are then ignored'
            )
        names, colors = ['color_{:02x}{:02x}{:02x}'.format(*color) for color in found], found
    ids = {color: index for index, color in enumerate(colors)}
    table: dict[Value, int] = {color: ids.get(color, IGNORED) for color in found}
    if all(new == IGNORED for new in table.values()):
        shown = ', '.join('{} {} {}'.format(*color) for color in found[:10])
        raise ValueError(f'none of the colors of the classes is in the masks, which hold {shown}')
    return Labels(tuple(names), table, tuple(colors), rewrite='the masks hold colors')
