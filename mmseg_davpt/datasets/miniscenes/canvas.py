"""Canvas of the MiniScenes: an image and its class mask."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

CLASSES = (
    'sky', 'mountain', 'building', 'road', 'grass', 'tree', 'water', 'car', 'person', 'pole',
    'wall', 'floor', 'window', 'table', 'chair', 'lamp',
)  # fmt: skip
PALETTE = [
    [110, 180, 230], [130, 110, 100], [170, 60, 60], [90, 90, 100], [90, 190, 70], [30, 110, 40], [40, 90, 190],
    [230, 160, 30], [220, 60, 150], [250, 240, 120], [190, 170, 150], [140, 90, 50], [150, 230, 240], [120, 60, 20],
    [100, 60, 160], [255, 210, 60],
]  # fmt: skip
HEIGHT, WIDTH = 240, 320
_ID = {name: index + 1 for index, name in enumerate(CLASSES)}  # ADE20K's convention: 0 is unlabeled


class Canvas:
    """An image and its mask, painted from far to near.

    Args:
        rng: Source of all randomness.

    Attributes:
        image: ``(H, W, 3)`` float32 RGB in [0, 1].
        mask: ``(H, W)`` uint8, class id + 1; 0 is unlabeled.
    """

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        self.mask = np.zeros((HEIGHT, WIDTH), np.uint8)

    def noise(self, cell: float, stretch: float = 1.0) -> np.ndarray:
        """Smooth noise ``(H, W)`` around 0 with cells of that many pixels; ``stretch`` widens them."""
        shape = max(2, int(HEIGHT / cell)), max(2, int(WIDTH / (cell * stretch)))
        coarse = self.rng.standard_normal(shape).astype(np.float32)
        return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)

    def color(self, *rgb: float, jitter: float = 0.06) -> np.ndarray:
        """A color near ``rgb`` in [0, 1]."""
        return np.clip(np.array(rgb, np.float32) + self.rng.normal(0, jitter, 3).astype(np.float32), 0.02, 0.98)

    def paint(
        self,
        name: str,
        region: np.ndarray,
        color: np.ndarray,
        grain: float = 0.05,
        cell: float = 4,
        stretch: float = 1.0,
    ) -> None:
        """Fill a region ``(H, W)`` bool with a textured color and its class."""
        texture = grain * (self.noise(cell, stretch) + 0.5 * self.noise(max(1.5, cell / 3), stretch))
        self.image = np.where(region[..., None], color * (1 + texture[..., None]), self.image)
        self.mask[region] = _ID[name]

    def polygon(self, *points: tuple[float, float]) -> np.ndarray:
        """Region of a polygon of (x, y) points."""
        region = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(region, [np.round(points).astype(np.int32)], 1)
        return region.astype(bool)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """Region of an upright rectangle."""
        return self.polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """Region of an upright ellipse."""
        region = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.ellipse(region, (round(x), round(y)), (max(1, round(rx)), max(1, round(ry))), 0, 0, 360, 1, -1)
        return region.astype(bool)

    def shade(self, region: np.ndarray, gain: float, blur: float = 3.0) -> None:
        """Darken (gain < 1) or lighten a soft-edged region; the mask stays."""
        soft = cv2.GaussianBlur(region.astype(np.float32), (0, 0), blur)
        self.image *= (1 + (gain - 1) * soft)[..., None]
