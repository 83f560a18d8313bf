"""Build hooks of the site: pages of the repository's files that the docs link to, and of the notebooks.

On GitHub, links such as ``../configs/davpt_upernet_ade20k.py`` lead to the file. On the site they lead to a copy below
``files/``: Markdown as a page, pictures and data as they are, other text as a page with the code.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))')
FENCE = re.compile(r'^(```.*?^```)', re.M | re.S)
AS_THEY_ARE = {'.json', '.jsonl', '.png', '.svg'}
LANGUAGES = {'.py': 'python', '.sh': 'bash'}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and for each linked file of the repository."""
    for path in sorted((ROOT / 'docs').rglob('*.ipynb')):
        name = path.relative_to(ROOT / 'docs').with_suffix('.md').as_posix()
        files.append(File.generated(config, name, content=notebook_page(path)))
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        source, text = waiting.pop()
        for target in linked_files(source, text):
            name = site_name(target)
            if files.get_file_from_path(name):
                continue
            if target.suffix in AS_THEY_ARE:
                files.append(File.generated(config, name, abs_src_path=str(target)))
                continue
            page = file_page(target)
            file = File.generated(config, name, content=page)
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
            if target.suffix == '.md':
                waiting.append((name, page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the pages that ``on_files`` made."""
    source = page.file.src_uri

    def point(match: re.Match[str]) -> str:
        target = repository_path(source, match[1])
        if target is None:
            return match[0]
        name = docs_name(target) or site_name(target)
        return posixpath.relpath(name, posixpath.dirname(source) or '.') + (match[2] or '')

    return outside_fences(markdown, lambda text: LINK.sub(point, text))


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to the parts of a Markdown text that are not in a code fence."""
    parts = FENCE.split(text)
    return ''.join(part if part.startswith('```') else change(part) for part in parts)


def repository_path(source: str, link: str) -> Path | None:
    """The existing file that a relative link of a page means; ``None`` for other links.

    ``source`` is the page's name on the site. Copies below ``files/`` have the links of the original.
    """
    if '://' in link or link.startswith(('mailto:', '/')):
        return None
    origin = ROOT / source.removeprefix('files/') if source.startswith('files/') else ROOT / 'docs' / source
    path = Path(posixpath.normpath((origin.parent / link).as_posix()))
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def linked_files(source: str, text: str) -> list[Path]:
    """Files outside of ``docs/`` that a page links to."""
    found: list[Path] = []

    def keep(part: str) -> str:
        for match in LINK.finditer(part):
            path = repository_path(source, match[1])
            if path is not None and docs_name(path) is None:
                found.append(path)
        return part

    outside_fences(text, keep)
    return found


def docs_name(path: Path) -> str | None:
    """Name on the site of a file of ``docs/``."""
    if not path.is_relative_to(ROOT / 'docs'):
        return None
    name = path.relative_to(ROOT / 'docs')
    return (name.with_suffix('.md') if name.suffix == '.ipynb' else name).as_posix()


def site_name(path: Path) -> str:
    """Name on the site of a file outside of ``docs/``."""
    name = 'files/' + path.relative_to(ROOT).as_posix()
    return name if path.suffix in {'.md', *AS_THEY_ARE} else name + '.md'


def file_page(path: Path) -> str:
    """A file of the repository as a page."""
    text = path.read_text()
    if path.suffix == '.md':
        return text
    name = path.relative_to(ROOT).as_posix()
    return f'# {name}\n\n```{LANGUAGES.get(path.suffix, "text")}\n{text.rstrip()}\n```\n'


def notebook_page(path: Path) -> str:
    """The cells of a notebook as a page. Outputs are not stored."""
    parts = []
    for cell in json.loads(path.read_text())['cells']:
        text = ''.join(cell['source']).rstrip()
        parts.append(text if cell['cell_type'] == 'markdown' else f'```python\n{text}\n```')
    return '\n\n'.join(parts) + '\n'
