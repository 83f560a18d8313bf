"""Painter of the MiniScenes: small outdoor and indoor scenes with their class masks, from a seed alone."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import HEIGHT, WIDTH, Canvas


def paint_scene(seed: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene.

    Args:
        seed: The scene; the same seed gives the same pixels.

    Returns:
        Image ``(240, 320, 3)`` uint8 RGB and mask ``(240, 320)`` uint8: class id + 1, 0 for unlabeled pixels.
    """
    rng = np.random.default_rng(seed)
    canvas = Canvas(rng)
    (_outdoor if rng.random() < 0.6 else _indoor)(canvas)
    _light(canvas)
    _void(canvas)
    return np.round(np.clip(canvas.image, 0, 1) * 255).astype(np.uint8), canvas.mask


def _light(canvas: Canvas) -> None:
    """Exposure, color of the light, fall-off across the picture, and sensor noise."""
    rng = canvas.rng
    warmth = rng.normal(0, 0.06)
    fall = 1 + 0.25 * rng.normal() * np.linspace(-1, 1, WIDTH)[None, :, None]
    canvas.image *= rng.uniform(0.6, 1.15) * fall * np.array([1 + warmth, 1, 1 - warmth])
    canvas.image = np.clip(canvas.image, 0, 1) ** rng.uniform(0.85, 1.25)
    canvas.image += rng.normal(0, rng.uniform(0.01, 0.035), canvas.image.shape)


def _void(canvas: Canvas) -> None:
    """Leave the outlines of some things and a few blots unlabeled, as annotators do."""
    rng = canvas.rng
    edges = cv2.morphologyEx(canvas.mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    canvas.mask[edges & (canvas.noise(20) > 0.6)] = 0
    for _ in range(rng.integers(0, 3)):
        canvas.mask[canvas.ellipse(rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), *rng.uniform(4, 14, 2))] = 0


def _outdoor(canvas: Canvas) -> None:
    rng = canvas.rng
    horizon = rng.uniform(0.35, 0.55) * HEIGHT
    rows = np.arange(HEIGHT)[:, None] + np.zeros((1, WIDTH))
    sky = canvas.color(0.5, 0.68, 0.9, jitter=0.1) + 0.25 * (rows / horizon - 0.5)[..., None].astype(np.float32)
    canvas.paint('sky', rows >= 0, sky, grain=0.08, cell=40, stretch=2)
    if rng.random() < 0.5:
        ridge = horizon - rng.uniform(15, 50) * (0.6 + 0.4 * np.cumsum(rng.normal(0, 0.12, WIDTH)) / 3)
        canvas.paint('mountain', rows > ridge[None], canvas.color(0.42, 0.42, 0.45), grain=0.15, cell=12, stretch=2)
    canvas.paint('grass', rows > horizon, canvas.color(0.3, 0.5, 0.2, jitter=0.09), grain=0.2, cell=3, stretch=2)
    if rng.random() < 0.3:
        shore = horizon + rng.uniform(10, 45) + 6 * np.sin(np.arange(WIDTH) / rng.uniform(20, 60))
        canvas.paint('water', (rows > horizon) & (rows < shore), canvas.color(0.25, 0.4, 0.55), 0.12, 5, stretch=6)
    vanishing = rng.uniform(0.25, 0.75) * WIDTH
    has_road = rng.random() < 0.8
    if has_road:
        _road(canvas, vanishing, horizon)
    _buildings(canvas, horizon)
    # Things that stand on the ground, from far to near.
    things = [(_tree, 0.85, 4), (_car, 0.75 if has_road else 0.15, 3), (_person, 0.5, 3), (_pole, 0.45, 2)]
    standing = [(rng.uniform(0.04, 1) ** 1.5, thing) for thing, chance, most in things
                for _ in range(rng.integers(1, most + 1)) if rng.random() < chance]  # fmt: skip
    for near, thing in sorted(standing, key=lambda item: item[0]):
        foot = horizon + 6 + near * (HEIGHT - horizon) * 0.95
        thing(canvas, rng.uniform(-0.05, 1.05) * WIDTH, foot, 14 + 120 * near)


def _road(canvas: Canvas, vanishing: float, horizon: float) -> None:
    rng = canvas.rng
    left, right = sorted(rng.uniform(-0.4, 1.4, 2) * WIDTH)
    right = max(right, left + 0.5 * WIDTH)
    region = canvas.polygon((vanishing - 2, horizon), (vanishing + 2, horizon), (right, HEIGHT), (left, HEIGHT))
    canvas.paint('road', region, canvas.color(0.36, 0.36, 0.38, jitter=0.04), grain=0.1, cell=2)
    middle = (left + right) / 2
    for start in np.arange(0.05, 1, 0.18):
        a, b = start**1.7, min(1, (start + 0.09)) ** 1.7
        xs = [vanishing + (middle - vanishing) * t for t in (a, b)]
        ys = [horizon + (HEIGHT - horizon) * t for t in (a, b)]
        stripe = canvas.polygon((xs[0], ys[0]), (xs[0] + 1 + 3 * a, ys[0]), (xs[1] + 1 + 3 * b, ys[1]), (xs[1], ys[1]))
        canvas.shade(stripe & region, 2.0, blur=0.6)


def _buildings(canvas: Canvas, horizon: float) -> None:
    rng = canvas.rng
    x = rng.uniform(-60, 60)
    while x < WIDTH and rng.random() < 0.85:
        width, height = rng.uniform(35, 90), rng.uniform(25, horizon * 0.95)
        top, foot = horizon - height, horizon + rng.uniform(2, 14)
        color = canvas.color(0.55, 0.48, 0.42, jitter=0.14)
        canvas.paint('building', canvas.box(x, top, x + width, foot), color, grain=0.08, cell=3)
        side = rng.uniform(6, 22)
        flank = canvas.polygon(
            (x + width, top), (x + width + side, top + side * 0.5), (x + width + side, foot), (x + width, foot)
        )
        canvas.paint('building', flank, color * 0.65, grain=0.08, cell=3)
        step = rng.uniform(9, 15)
        for wy in np.arange(top + 5, foot - 10, step):
            for wx in np.arange(x + 4, x + width - 6, step):
                canvas.shade(
                    canvas.box(wx, wy, wx + step * 0.45, wy + step * 0.5), rng.choice([0.45, 0.5, 1.5]), blur=0.7
                )
        x += width + side + rng.uniform(0, 70)


def _tree(canvas: Canvas, x: float, foot: float, size: float) -> None:
    rng, height = canvas.rng, size * canvas.rng.uniform(1.0, 1.5)
    canvas.shade(canvas.ellipse(x + size * 0.2, foot, size * 0.45, size * 0.08), 0.6)
    trunk = canvas.box(x - size * 0.05, foot - height * 0.5, x + size * 0.05, foot)
    canvas.paint('tree', trunk, canvas.color(0.3, 0.2, 0.12), grain=0.2, cell=3)
    crown = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(6):
        dx, dy = rng.normal(0, size * 0.17), rng.normal(0, size * 0.15)
        crown |= canvas.ellipse(x + dx, foot - height * 0.68 + dy, size * 0.24, size * 0.22)
    crown &= canvas.noise(max(2.5, size / 14)) > -1.1
    canvas.paint('tree', crown, canvas.color(0.16, 0.34, 0.12, jitter=0.07), grain=0.3, cell=max(2, size / 20))


def _car(canvas: Canvas, x: float, foot: float, size: float) -> None:
    rng = canvas.rng
    length, height = size * 0.8, size * 0.3
    color = canvas.color(*rng.uniform(0.1, 0.9, 3))
    canvas.shade(canvas.ellipse(x, foot, length * 0.55, height * 0.18), 0.45)
    canvas.paint(
        'car', canvas.box(x - length / 2, foot - height * 0.62, x + length / 2, foot - height * 0.12), color, 0.04
    )
    cabin = canvas.polygon(
        (x - length * 0.32, foot - height * 0.6), (x - length * 0.18, foot - height),
        (x + length * 0.2, foot - height), (x + length * 0.34, foot - height * 0.6),
    )  # fmt: skip
    canvas.paint('car', cabin, color * 0.9, 0.04)
    glass = cabin & (np.arange(HEIGHT)[:, None] > foot - height * 0.93)
    canvas.shade(glass, 0.4, blur=0.8)
    for wheel in (-0.28, 0.28):
        canvas.paint(
            'car',
            canvas.ellipse(x + wheel * length, foot - height * 0.1, height * 0.2, height * 0.2),
            canvas.color(0.08, 0.08, 0.08),
            0.1,
        )


def _person(canvas: Canvas, x: float, foot: float, size: float) -> None:
    rng, height = canvas.rng, size * 0.55
    canvas.shade(canvas.ellipse(x, foot, height * 0.2, height * 0.05), 0.55)
    for side in (-1, 1):
        leg = canvas.polygon(
            (x - 0.01, foot - height * 0.5),
            (x + side * height * 0.1, foot - height * 0.5),
            (x + side * height * 0.11, foot),
            (x + side * height * 0.03, foot),
        )
        canvas.paint('person', leg, canvas.color(*rng.uniform(0.1, 0.5, 3)), 0.08)
    canvas.paint(
        'person',
        canvas.ellipse(x, foot - height * 0.64, height * 0.13, height * 0.21),
        canvas.color(*rng.uniform(0.1, 0.9, 3)),
        0.1,
    )
    canvas.paint(
        'person',
        canvas.ellipse(x, foot - height * 0.91, height * 0.075, height * 0.09),
        canvas.color(0.75, 0.55, 0.42),
        0.04,
    )


def _pole(canvas: Canvas, x: float, foot: float, size: float) -> None:
    top, width = foot - size * 1.5, max(1.0, size * 0.022)
    color = canvas.color(0.4, 0.4, 0.42)
    canvas.paint('pole', canvas.box(x - width, top, x + width, foot), color, 0.05)
    canvas.paint('pole', canvas.box(x - width, top, x + size * 0.22, top + max(2, size * 0.04)), color, 0.05)


def _indoor(canvas: Canvas) -> None:
    rng = canvas.rng
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    paint = canvas.color(0.72, 0.68, 0.6, jitter=0.12)
    canvas.paint('wall', everywhere, paint, grain=0.03, cell=20)
    corner, base = rng.uniform(0.15, 0.85) * WIDTH, rng.uniform(0.58, 0.7) * HEIGHT
    drop = rng.uniform(20, 60)
    left_side = corner < WIDTH / 2
    edge = 0 if left_side else WIDTH
    canvas.shade(canvas.box(edge, 0, corner, HEIGHT), rng.uniform(0.7, 0.9), blur=1.5)  # the side wall, in less light
    floor = canvas.polygon(
        (edge, base + drop), (corner, base), (WIDTH - edge, base + drop * 0.25), (WIDTH - edge, HEIGHT), (edge, HEIGHT)
    )
    canvas.paint('floor', floor, canvas.color(0.5, 0.36, 0.22, jitter=0.1), grain=0.14, cell=3, stretch=8)
    _windows(canvas, corner, base, left_side)
    things = [(_table, 0.75, 1), (_chair, 0.75, 3), (_person, 0.25, 1), (_lamp, 0.3, 1)]
    standing = [(rng.uniform(0.15, 1), thing) for thing, chance, most in things
                for _ in range(rng.integers(1, most + 1)) if rng.random() < chance]  # fmt: skip
    for near, thing in sorted(standing, key=lambda item: item[0]):
        thing(
            canvas,
            rng.uniform(0.05, 0.95) * WIDTH,
            base + drop * 0.5 + near * (HEIGHT - base - drop * 0.5),
            70 + 90 * near,
        )


def _windows(canvas: Canvas, corner: float, base: float, left_side: bool) -> None:
    rng = canvas.rng
    lo, hi = (corner, WIDTH) if left_side else (0, corner)
    for _ in range(rng.integers(0, 3)):
        width, height = rng.uniform(30, 80), rng.uniform(35, 75)
        x, y = rng.uniform(lo + 5, max(lo + 6, hi - width)), rng.uniform(10, base - height - 15)
        canvas.paint('window', canvas.box(x, y, x + width, y + height), canvas.color(0.9, 0.9, 0.86), 0.03)
        view = canvas.box(x + 3, y + 3, x + width - 3, y + height - 3)
        canvas.paint('window', view, canvas.color(0.6, 0.75, 0.92, jitter=0.1), grain=0.12, cell=25)
        bar = canvas.box(x + width / 2 - 1, y, x + width / 2 + 1, y + height)
        canvas.paint('window', bar, canvas.color(0.9, 0.9, 0.86), 0.03)
        canvas.shade(
            canvas.polygon((x, base + 8), (x + width, base + 8), (x + width + 40, HEIGHT), (x + 20, HEIGHT)), 1.25, 6
        )


def _table(canvas: Canvas, x: float, foot: float, size: float) -> None:
    width, height, depth = size * 0.9, size * 0.5, size * 0.16
    color = canvas.color(0.42, 0.27, 0.14, jitter=0.09)
    canvas.shade(canvas.ellipse(x, foot, width * 0.55, depth * 0.8), 0.6, 5)
    for leg in (-0.46, -0.4, 0.4, 0.46):
        inset = depth if abs(leg) < 0.45 else 0
        canvas.paint(
            'table',
            canvas.box(x + leg * width - 2, foot - height, x + leg * width + 2, foot - inset),
            color * 0.7,
            0.1,
        )
    top = canvas.polygon(
        (x - width * 0.42, foot - height - depth), (x + width * 0.42, foot - height - depth),
        (x + width * 0.52, foot - height), (x - width * 0.52, foot - height),
    )  # fmt: skip
    canvas.paint('table', top, color, grain=0.1, cell=2.5, stretch=8)
    canvas.paint(
        'table',
        canvas.box(x - width * 0.52, foot - height, x + width * 0.52, foot - height + size * 0.04),
        color * 0.75,
        0.08,
    )


def _chair(canvas: Canvas, x: float, foot: float, size: float) -> None:
    width, seat = size * 0.3, size * 0.28
    color = canvas.color(*canvas.rng.uniform(0.15, 0.7, 3))
    canvas.shade(canvas.ellipse(x, foot, width * 0.6, size * 0.05), 0.65)
    for leg in (-0.5, 0.5):
        canvas.paint(
            'chair', canvas.box(x + leg * width - 1.5, foot - seat, x + leg * width + 1.5, foot), color * 0.6, 0.05
        )
    canvas.paint(
        'chair', canvas.box(x - width / 2, foot - size * 0.62, x + width / 2, foot - seat), color, 0.12, cell=3
    )
    canvas.shade(canvas.box(x - width * 0.35, foot - size * 0.56, x + width * 0.35, foot - size * 0.38), 0.8)
    canvas.paint(
        'chair',
        canvas.box(x - width * 0.58, foot - seat - size * 0.06, x + width * 0.58, foot - seat),
        color * 0.85,
        0.1,
    )


def _lamp(canvas: Canvas, x: float, foot: float, size: float) -> None:
    height = size * 0.95
    stem = canvas.color(0.25, 0.22, 0.2)
    canvas.paint('lamp', canvas.box(x - 1.2, foot - height, x + 1.2, foot), stem, 0.05)
    canvas.paint('lamp', canvas.ellipse(x, foot, size * 0.1, size * 0.025), stem, 0.05)
    canvas.shade(canvas.ellipse(x, foot - height, size * 0.45, size * 0.4), 1.35, 14)
    shade = canvas.polygon(
        (x - size * 0.08, foot - height - size * 0.14),
        (x + size * 0.08, foot - height - size * 0.14),
        (x + size * 0.15, foot - height),
        (x - size * 0.15, foot - height),
    )
    canvas.paint('lamp', shade, canvas.color(0.95, 0.85, 0.6), 0.04)
