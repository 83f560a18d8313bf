"""Variants of the method that were tried in a search. Suites import them with ``custom_imports``; the package does not.

What a search rejects stays here, so that its rows can be made again.
"""
