"""Checks of option values: each error names the option as a config writes it, what it expects and what it got.

A config is text, so a value of a wrong type is a wrong value: every check raises ``ValueError``. Numbers and booleans
of NumPy are accepted.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np


def wrong(name: str, value: object, expected: str) -> ValueError:
    """The error for an option.

    Args:
        name: Name of the option, for instance ``guidance.margin``.
        value: What it got.
        expected: What it expects.
    """
    return ValueError(f'{name}={value!r}: expected {expected}')


def check_bool(name: str, value: object) -> bool:
    """``True`` or ``False``; a string such as ``'False'`` would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise wrong(name, value, 'True or False')
    return bool(value)


def check_integer(name: str, value: Any, low: int = 1) -> int:
    """A whole number of at least ``low``; no boolean and no float."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise wrong(name, value, f'a whole number >= {low}')
    return int(value)


def check_number(
    name: str, value: Any, *, low: float = 0.0, high: float = math.inf, above: bool = False, below: bool = False
) -> float:
    """A finite number in a range.

    Args:
        name: Name of the option.
        value: Its value.
        low: Lower bound.
        high: Upper bound.
        above: The number must be greater than the lower bound.
        below: The number must be less than the upper bound.

    Returns:
        The number as a float.

    Raises:
        ValueError: No number, not finite, or out of range.
    """
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or value < low or value > high or (above and value == low) or (below and value == high):
        bounds = f'{"(" if above else "["}{low:g}, {high:g}{")" if below else "]"}'
        relation = '>' if above else '>='
        raise wrong(name, value, f'a number in {bounds}' if math.isfinite(high) else f'a number {relation} {low:g}')
    return float(value)


def check_choice(name: str, value: object, known: Collection[str]) -> str:
    """One of the known names."""
    if not isinstance(value, str) or value not in known:
        raise wrong(name, value, f'one of {", ".join(map(repr, known))}')
    return value


def check_sequence(name: str, value: object, expected: str = 'a list or tuple') -> tuple[Any, ...]:
    """A list or tuple; a string is none, although Python iterates over its letters."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise wrong(name, value, expected)
    return tuple(value)


def check_integers(name: str, value: object, length: int | None = None) -> tuple[int, ...]:
    """A list or tuple of whole numbers, of the given length if there is one; the numbers may be negative."""
    expected = f'a list or tuple of {"" if length is None else f"{length} "}whole numbers'
    items = check_sequence(name, value, expected)
    if length not in (None, len(items)):
        raise wrong(name, value, expected)
    if not all(isinstance(item, numbers.Integral) and not isinstance(item, bool) for item in items):
        raise wrong(name, value, expected)
    return tuple(int(item) for item in items)


def check_size(name: str, value: object) -> tuple[int, int]:
    """``(height, width)``, whole numbers of at least 1."""
    expected = '(height, width), two whole numbers >= 1'
    try:
        height, width = check_integers(name, value, 2)
    except ValueError as error:
        raise wrong(name, value, expected) from error
    if min(height, width) < 1:
        raise wrong(name, value, expected)
    return height, width


def check_mapping(name: str, value: object) -> Mapping[str, Any]:
    """A dict."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, 'a dict')
    return value
