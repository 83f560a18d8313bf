"""Imports of the package run downward: no upward imports between folders, no circles between files."""

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

PACKAGE = ROOT / 'mmseg_davpt'
FLOORS = [
    {'options', 'files', 'packaged'},
    {'compat', 'version', 'trunks', 'guidance', 'datasets'},
    {'weights', 'tuning'},
    {'models'},
    {'reports', 'tasks'},
    {'engine'},
    {'apis', 'export'},
    {'__main__'},
]


def imported_files(path):
    """Files of the package that a file imports, at any place in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = path.parents[node.level - 1]
        elif node.module and node.module.split('.')[0] == 'mmseg_davpt':
            base = PACKAGE.parent
        else:
            continue
        target = base.joinpath(*(node.module or '').split('.')) if node.module else base
        for alias in node.names:
            for candidate in (target / f'{alias.name}.py', target.with_suffix('.py'), target / '__init__.py'):
                if candidate.is_file():
                    yield candidate
                    break


def folder(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_imports_run_downward():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    files = [path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py']
    assert {folder(path) for path in files} == set(floor)
    edges = 0
    for path in files:
        for target in imported_files(path):
            if folder(target) != folder(path):
                edges += 1
                assert floor[folder(target)] < floor[folder(path)], f'{path} imports {target}'
    assert edges > 40


def test_files_import_each_other_in_no_circle():
    files = [path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py']
    graph = {path: {t for t in imported_files(path) if t.name != '__init__.py' and t != path} for path in files}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_guidance_knows_nothing_of_the_rest():
    """But for the checks of option values, which know nothing at all."""
    for path in (PACKAGE / 'guidance').glob('*.py'):
        assert {folder(target) for target in imported_files(path)} <= {'guidance', 'options'}, path
