"""Classes drawn over an image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

STRIP = 256  # rows that are mixed at once: floats take eight times the memory of the image
_MIN_SHARE = 1e-3  # of the pixels, for a class in the legend


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    palette: ArrayLike,
    opacity: float = 0.5,
    legend: bool = True,
) -> np.ndarray:
    """Draw the classes of a mask over an image.

    Args:
        image: RGB, uint8, ``(H, W, 3)``.
        mask: Class ids, ``(H, W)``. Ids without a name, such as 255, are left as the image.
        names: Name of each class.
        palette: Color of each class: red, green, blue.
        opacity: Of the classes, in [0, 1].
        legend: Whether to add a strip below the image with color and name of the classes that cover at least one pixel
            in a thousand, the largest first.

    Returns:
        RGB, uint8, ``(H, W, 3)``, taller with a legend.
    """
    colors = np.asarray(palette, np.uint8)
    overlay = np.empty_like(image)
    for start in range(0, len(image), STRIP):
        rows = slice(start, start + STRIP)
        known = mask[rows] < len(colors)
        mixed = (1 - opacity) * image[rows] + opacity * colors[np.where(known, mask[rows], 0)]
        overlay[rows] = np.where(known[..., None], mixed.round().astype(np.uint8), image[rows])
    if not legend:
        return overlay
    ids, counts = np.unique(mask[mask < len(colors)], return_counts=True)
    shown = [int(ids[index]) for index in np.argsort(-counts) if counts[index] >= _MIN_SHARE * mask.size]
    strip = draw_legend([names[index] for index in shown], colors[shown], image.shape[1])
    return np.concatenate([overlay, strip])


def draw_legend(names: Sequence[str], colors: np.ndarray, width: int) -> np.ndarray:
    """Draw colors and names in rows.

    Args:
        names: Names; long ones are cut at the width.
        colors: One per name, RGB, ``(n, 3)``.
        width: Width in pixels.

    Returns:
        RGB, uint8, ``(height, width, 3)``; no rows without names.
    """
    size = int(min(max(width / 40, 12), 40))
    font = ImageFont.load_default(size)
    places, x, y = [], 0, 0
    for name in names:
        needed = round(2.2 * size + font.getlength(name))
        if x and x + needed > width:
            x, y = 0, y + round(1.7 * size)
        places.append((x, y))
        x += needed
    height = y + round(1.9 * size) if names else 0
    strip = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(strip)
    for (left, top), name, color in zip(places, names, colors.tolist()):
        box = (left + size // 2, top + size // 2, left + round(1.4 * size), top + round(1.4 * size))
        draw.rectangle(box, fill=tuple(color), outline='black')
        draw.text((left + round(1.7 * size), top + 0.3 * size), name, fill='black', font=font)
    return np.asarray(strip)


def draw_heat(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draw weights over a grey image, on a scale from zero to the largest weight.

    Args:
        image: RGB, uint8, ``(H, W, 3)``.
        weights: At least zero, ``(H, W)``.

    Returns:
        RGB, uint8, ``(H, W, 3)``.
    """
    grey = image.mean(axis=2, keepdims=True)
    colors = 255 * matplotlib.colormaps['inferno'](weights / max(float(weights.max()), 1e-9))[..., :3]
    mixed: np.ndarray = (0.35 * grey + 0.65 * colors).round().astype(np.uint8)
    return mixed
