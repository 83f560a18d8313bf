"""Boxes, arrows and text as SVG, with nothing but the standard library: the same input gives the same file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

# Okabe and Ito's colors, which readers with color blindness tell apart. Borders and line styles differ, too.
ORANGE, BLUE, GREEN, PURPLE, GRAY = '#E69F00', '#0072B2', '#009E73', '#CC79A7', '#555555'
STYLES = {
    'trained': ('#FDF0D5', ORANGE, 3.0),  # fill, border, width of the border
    'frozen': ('#E8EEF4', BLUE, 1.2),
    'computed': ('#FFFFFF', GRAY, 1.2),
    'loss': ('#E3F3EE', GREEN, 2.0),
}


class Drawing:
    """A drawing of fixed size on a white ground.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        title: Description for readers who do not see the picture.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 15,
        anchor: str = 'middle',
        color: str = '#1a1a1a',
        bold: bool = False,
        rim: bool = False,
    ) -> None:
        """One line of text, with a white rim on request; ``_p`` and ``_{ab}`` are subscripts, ``_{}`` is ``_``."""
        weight = ' font-weight="bold"' if bold else ''
        weight += ' stroke="#ffffff" stroke-width="4" paint-order="stroke"' if rim else ''
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{color}"{weight}>'
            f'{_subscripts(text, size)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, text: str | Sequence[str], style: str, size: float = 15
    ) -> None:
        """A box with lines of text in its middle."""
        fill, border, stroke = STYLES[style]
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" '
            f'stroke="{border}" stroke-width="{stroke:g}"/>'
        )
        lines = [text] if isinstance(text, str) else text
        step = 1.3 * size
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 0.35 * size + (number - (len(lines) - 1) / 2) * step, line, size)

    def arrow(
        self, *points: tuple[float, float], color: str = '#333333', dashed: bool = False, width: float = 1.8
    ) -> None:
        """A line through the points, with a head at its end."""
        self.line(*points, color=color, dashed=dashed, width=width)
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        corners = [(x1, y1)] + [(x1 - 9 * dx - side * 4.5 * dy, y1 - 9 * dy + side * 4.5 * dx) for side in (1, -1)]
        self.polygon(corners, color)

    def line(
        self, *points: tuple[float, float], color: str = '#333333', dashed: bool = False, width: float = 1.8
    ) -> None:
        """A line through the points."""
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ''
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dash}/>')

    def polygon(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """A filled polygon."""
        self._parts.append(f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{color}"/>')

    def circle(self, x: float, y: float, radius: float, fill: str, border: str = '#333333', width: float = 1.2) -> None:
        """A circle."""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" '
            f'fill="{fill}" stroke="{border}" stroke-width="{width:g}"/>'
        )

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str, border: str = 'none') -> None:
        """A rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" stroke="{border}"/>'
        )

    def legend(self, x: float, y: float, entries: dict[str, str], step: float = 150) -> None:
        """A row of styles and their meaning."""
        for number, (style, meaning) in enumerate(entries.items()):
            fill, border, stroke = STYLES[style]
            left = x + number * step
            self._parts.append(
                f'<rect x="{left:g}" y="{y - 12:g}" width="22" height="15" rx="3" fill="{fill}" stroke="{border}" '
                f'stroke-width="{stroke:g}"/>'
            )
            self.text(left + 30, y, meaning, 14, 'start')

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return '\n'.join([head, f'<title>{escape(self.title)}</title>', ground, *self._parts, '</svg>']) + '\n'


def _subscripts(text: str, size: float) -> str:
    """``K_p`` and ``x_{n}`` with small, lowered letters."""
    parts = re.split(r'_(\w|\{[^}]*\})', text)
    done = escape(parts[0])
    drop = round(0.25 * size, 1)
    for small, rest in zip(parts[1::2], parts[2::2]):
        if small == '{}':
            done += '_' + escape(rest)
            continue
        done += f'<tspan dy="{drop:g}" font-size="{0.72 * size:.1f}">{escape(small.strip("{}"))}</tspan>'
        done += f'<tspan dy="{-drop:g}">{escape(rest) or "&#8203;"}</tspan>'
    return done
