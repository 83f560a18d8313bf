"""Comparisons of tuning methods, and speed and memory. Not part of the installed package."""

import mmseg_davpt  # noqa: F401  (first: its shims)
