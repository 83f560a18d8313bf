"""A picture of predictions: image, truth and prediction side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3), RGB
Labels = NDArray[np.integer]  # (H, W), class ids
_COLUMNS = 6  # of the legend


def draw_grid(
    rows: Sequence[tuple[Image, Labels | None, Labels]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: str | Path,
    ignore_index: int = 255,
) -> None:
    """Draw image, truth and prediction in rows, with a legend of the classes that occur.

    Args:
        rows: Image ``(H, W, 3)`` RGB uint8, truth ``(H, W)`` or ``None``, prediction ``(H, W)`` of class ids.
        classes: Name of each class.
        palette: RGB color of each class, 0 to 255.
        path: File to write; its folder is made.
        ignore_index: Label of ignored pixels in the truth. They are black, as are ids without a class.
    """
    colors = np.asarray(palette, np.uint8)
    height, width = rows[0][0].shape[:2]
    figure = Figure(layout='constrained')
    axes = figure.subplots(len(rows), 3, squeeze=False)
    ids = set()
    for (image, truth, prediction), line in zip(rows, axes):
        if truth is not None:
            truth = np.where(truth == ignore_index, -1, truth)
        for axis, labels in zip(line[1:], (truth, prediction)):
            if labels is not None:
                ids |= set(np.unique(labels).tolist())
                axis.imshow(_paint(labels, colors))
        line[0].imshow(image)
        for axis in line:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ('image', 'truth', 'prediction')):
        axis.set_title(title)
    patches = [Patch(color=colors[index] / 255, label=classes[index]) for index in sorted(ids & {*range(len(classes))})]
    lines = math.ceil(len(patches) / _COLUMNS)
    figure.set_size_inches(10.5, 3.5 * len(rows) * height / width + 0.4 + 0.25 * lines)
    figure.legend(handles=patches, loc='outside lower center', ncols=_COLUMNS, fontsize=10, frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _paint(labels: Labels, colors: NDArray[np.uint8]) -> Image:
    """Class ids ``(H, W)`` -> RGB ``(H, W, 3)``; ids without a color are black."""
    known = (labels >= 0) & (labels < len(colors))
    return np.where(known[..., None], colors[np.where(known, labels, 0)], np.uint8(0))
