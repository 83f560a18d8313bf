"""Docstrings name classes as Sphinx does; on the site these names, and names of pages, become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:class|func|meth|mod|attr):`(~?)([\w.]+)`')

PAGE = re.compile(r'``docs/(\w+)\.md``')  # every page of the API is one folder below these pages
LITERAL = re.compile(r'^\s*::$', re.M)  # in front of indented code


class Roles(griffe.Extension):
    """``:class:`~a.b.C` `` -> a link with the text ``C``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        scope = obj.path if obj.is_class else obj.parent.path if obj.parent else ''
        module = obj.module.path

        def link(match: re.Match[str]) -> str:
            short, name = match[1], match[2]
            target = name
            if '.' not in name:  # a name of the same class, or else of the same module
                parent = scope if obj.is_class or obj.is_function or obj.is_attribute else module
                inside = parent != module and name in (obj if obj.is_class else obj.parent).members
                target = f'{parent if inside else module}.{name}'
            text = name.rsplit('.', 1)[-1] if short else name
            return f'<autoref optional identifier="{target}"><code>{text}</code></autoref>'

        text = ROLE.sub(link, obj.docstring.value)
        text = PAGE.sub(r'<a href="../\1.html"><code>docs/\1.md</code></a>', text)
        obj.docstring.value = LITERAL.sub('', text)
