"""Comparisons of tuning methods, and speed and memory. Not part of the installed package."""
