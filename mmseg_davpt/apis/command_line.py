"""``--cfg-options`` of the command lines."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from mmengine import config

_SPACE = '\0'  # stands for a space of a value; no argument of a process can hold it


class DictAction(config.DictAction):
    """mmengine's ``DictAction``, which removes every space of a value, with the spaces kept.

    ``KEY=VALUE ...``: numbers, ``True``, ``False``, ``None``, ``a,b``, ``[a,b]``, ``(a,b)``, nested; everything else is
    a string. Spaces around the brackets and commas of a list have no meaning.
    """

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the options to the namespace; an argument that is none ends the program with a message."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for argument in [values] if isinstance(values, str) else values or ():
            key, equals, value = argument.partition('=')
            if not equals or not re.fullmatch(r'[^\s.=]+(\.[^\s.=]+)*', key):
                parser.error(f'{option_string}: {argument!r} is not KEY=VALUE (quote a value with spaces)')
            try:
                options[key] = _restored(self._parse_iterable(_protected(value)))
            except AssertionError:  # of mmengine
                parser.error(f'{option_string}: {argument!r} has a bracket without its counterpart')
        setattr(namespace, self.dest, options)


def _protected(value: str) -> str:
    """``value`` with a sign in place of each space that belongs to it."""
    value = value.strip()
    if ',' in value or value.startswith(('[', '(')):
        value = re.sub(r'\s*,\s*|(?<=[\[(])\s+|\s+(?=[\])])', lambda match: match[0].strip(), value)
    return value.replace(' ', _SPACE)


def _restored(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_restored(item) for item in value)
    return value.replace(_SPACE, ' ') if isinstance(value, str) else value
