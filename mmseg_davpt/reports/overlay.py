"""An image under the colors of its classes, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_STRIP = 256  # rows that are mixed at once: large images need little memory beside the result


def draw_overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float = 0.5,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Mix an image with the colors of its classes.

    Args:
        image: ``(H, W, 3)``, RGB.
        mask: Class ids ``(H, W)``; pixels with other ids stay as they are.
        names: Name of each class.
        palette: RGB color of each class, 0 to 255.
        opacity: Opacity of the classes, in [0, 1].
        legend: Whether to write the classes that occur below the image, the largest first.

    Returns:
        ``(H, W, 3)``, RGB. With a legend it is higher, and wider if a name is longer than the image is wide: the image
        is in the upper left corner, the rest is white.
    """
    colors = np.asarray(palette, np.uint8)
    overlay, counts = _mix(image, mask, colors, opacity)
    return _with_legend(overlay, counts, names, colors) if legend else overlay


def draw_comparison(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer] | None,
    prediction: NDArray[np.integer],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float = 0.6,
) -> NDArray[np.uint8]:
    """Draw an image, its truth and its prediction side by side, with a legend below.

    Args:
        image: ``(H, W, 3)``, RGB.
        truth: Class ids ``(H, W)``, other ids for ignored pixels; ``None`` if there is none.
        prediction: Class ids ``(H, W)``.
        names: Name of each class.
        palette: RGB color of each class, 0 to 255.
        opacity: Opacity of the classes, in [0, 1].

    Returns:
        RGB, three times as wide as the image (twice without truth), higher by the legend.
    """
    colors = np.asarray(palette, np.uint8)
    panels, total = [image], np.zeros(len(colors), np.int64)
    for mask in (truth, prediction):
        if mask is not None:
            overlay, counts = _mix(image, mask, colors, opacity)
            panels.append(overlay)
            total += counts
    return _with_legend(np.concatenate(panels, axis=1), total, names, colors)


def _mix(
    image: NDArray[np.uint8], mask: NDArray[np.integer], colors: NDArray[np.uint8], opacity: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The overlay, and the number of pixels of each class."""
    counts = np.zeros(len(colors), np.int64)
    overlay = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        rows, ids = image[start : start + _STRIP], mask[start : start + _STRIP]
        known = (ids >= 0) & (ids < len(colors))
        mixed = (1 - opacity) * rows + opacity * colors[np.where(known, ids, 0)]
        overlay[start : start + _STRIP] = np.where(known[..., None], mixed.round().astype(np.uint8), rows)
        counts += np.bincount(ids[known].astype(np.int64), minlength=len(colors))
    return overlay, counts


def _with_legend(
    picture: NDArray[np.uint8], counts: NDArray[np.int64], names: Sequence[str], colors: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    shown = [index for index in np.argsort(-counts, kind='stable').tolist() if counts[index]]
    strip = draw_legend([names[index] for index in shown], colors[shown], picture.shape[1])
    canvas = np.full((len(picture) + len(strip), strip.shape[1], 3), 255, np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    canvas[len(picture) :] = strip
    return canvas


def draw_legend(names: Sequence[str], colors: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Names beside fields of their colors, in rows.

    Args:
        names: Names, in their order.
        colors: RGB colors, ``(N, 3)``.
        width: Width in pixels, which also sets the size of the letters.

    Returns:
        ``(height, width, 3)``, RGB; wider than ``width`` if a name needs it.
    """
    size = min(max(width // 45, 11), 64)
    # Of matplotlib, which brings a font along; it has Latin, Greek and Cyrillic letters.
    font = ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf', size)
    gap, line = size // 2, size + size // 2
    lengths = [size + gap + int(np.ceil(font.getlength(name))) for name in names]
    width = max([width, *(length + 2 * gap for length in lengths)])
    places, x, y = [], gap, gap
    for length in lengths:
        if x > gap and x + length + gap > width:
            x, y = gap, y + line
        places.append((x, y))
        x += length + 2 * gap
    picture = Image.new('RGB', (width, y + line if names else 0), 'white')
    draw = ImageDraw.Draw(picture)
    for name, color, (x, y) in zip(names, colors.tolist(), places):
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(color), outline='gray')
        draw.text((x + size + gap, y + size // 2), name, fill='black', font=font, anchor='lm')
    return np.asarray(picture)


def draw_heat(image: NDArray[np.uint8], weights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Draw weights over a gray image, on a scale from zero to the largest weight.

    Args:
        image: ``(H, W, 3)``, RGB.
        weights: At least zero, ``(H, W)``.

    Returns:
        ``(H, W, 3)``, RGB.
    """
    gray = image.mean(axis=2, keepdims=True)
    colors = 255 * matplotlib.colormaps['inferno'](weights / max(float(weights.max()), 1e-9))[..., :3]
    mixed: NDArray[np.uint8] = (0.35 * gray + 0.65 * colors).round().astype(np.uint8)
    return mixed
