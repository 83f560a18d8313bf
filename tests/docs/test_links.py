"""Links between pages: every file and every heading that a page names exists. The site checks its pages again."""

import re
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT

DOCS = ROOT / 'docs'
PAGES = sorted([*DOCS.rglob('*.md'), *ROOT.glob('*.md'), *(ROOT / 'benchmarks').rglob('*.md')])
LINK = re.compile(r'\]\(([^)\s]+)\)')


def without_code(text):
    return re.sub(r'`[^`\n]*`', '', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S))


def anchors(path):
    """Anchors of the headings of a page, as GitHub and the site make them, and those that are written out."""
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
    headings = [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', line) for line in re.findall(r'^#+ (.*)$', text, re.M)]
    slugs = [re.sub(r'[\s-]+', '-', re.sub(r'[^\w\s-]', '', heading).strip().lower()) for heading in headings]
    return {*slugs, *re.findall(r'id="([^"]+)"', text)}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(without_code(page.read_text())):
        if re.match(r'[a-z]+:', link):
            continue
        target, _, anchor = unquote(link).partition('#')
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f'{page.name}: {link}'
        if anchor and path.suffix == '.md':
            assert anchor in anchors(path), f'{page.name}: {link}'


def test_code_names_existing_pages():
    """Messages, docstrings and comments name pages by their path."""
    folders = ('mmseg_davpt', 'configs', 'tools', 'tests', 'benchmarks')
    found = 0
    for path in (path for folder in folders for path in (ROOT / folder).rglob('*.py')):
        for name in re.findall(r'\bdocs/\w+\.md', path.read_text()):
            found += 1
            assert (ROOT / name).is_file(), f'{path}: {name}'
    assert found > 20


def test_the_navigation_has_every_page():
    nav = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']

    def pages(node):
        if isinstance(node, str):
            return [node]
        return [page for child in (node.values() if isinstance(node, dict) else node) for page in pages(child)]

    copies = [page for page in pages(nav) if page.startswith('files/')]  # docs/hooks.py makes them of linked files
    assert all((ROOT / page.removeprefix('files/')).is_file() for page in copies)
    named = [page for page in pages(nav) if page not in copies]
    stored = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md')}
    notebooks = {path.relative_to(DOCS).with_suffix('.md').as_posix() for path in DOCS.rglob('*.ipynb')}
    assert sorted(named) == sorted(stored | notebooks)


def test_the_api_pages_name_every_package():
    text = ''.join(path.read_text() for path in (DOCS / 'api').glob('*.md'))
    packages = {path.parent.name for path in (ROOT / 'mmseg_davpt').glob('*/__init__.py')}
    assert set(re.findall(r'^::: mmseg_davpt\.(\w+)', text, re.M)) == packages


@pytest.mark.parametrize('page', sorted(DOCS.glob('*.md')), ids=lambda page: page.name)
def test_lines_are_short(page):
    """At most 120 characters, but for tables, links and code."""
    prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    for line in prose.splitlines():
        assert len(line) <= 120 or line.startswith(('|', '![', '    ')), line
