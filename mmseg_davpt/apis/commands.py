"""The console command ``mmseg-davpt``: runs the command lines of ``tools/``."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..packaged import MIM
from ..version import __version__


def find_tools(folder: Path = MIM / 'tools') -> dict[str, Path]:
    """Command -> its file. A file ``WORD_REST.py`` is the command ``word`` if no other file begins with that word.

    Args:
        folder: Folder of the command lines.
    """
    paths = sorted(folder.glob('*.py'))
    words = [path.stem.partition('_')[0] for path in paths]
    tools = {word: path for word, path in zip(words, paths) if words.count(word) == 1}
    return tools | {path.stem.replace('_', '-'): path for path in paths}


def describe_tools(tools: Mapping[str, Path]) -> str:
    """The help text: each command with the first sentence of its file.

    Args:
        tools: Command -> its file.
    """
    lines = ['usage: mmseg-davpt COMMAND [options]; mmseg-davpt COMMAND --help lists the options', '']
    for path in sorted(set(tools.values())):
        command = min((command for command in tools if tools[command] == path), key=len)
        text = (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition(':')[0]
        lines.append(f'  {command:<12}{text}')
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line of ``tools/``.

    Args:
        arguments: The command and its options; those of the process if ``None``.

    Raises:
        SystemExit: There is no such command, or it ends so.
    """
    command, *options = list(sys.argv[1:] if arguments is None else arguments) or ['--help']
    tools = find_tools()
    if command in ('-h', '--help'):
        print(describe_tools(tools))
        return
    if command == '--version':
        print(__version__)
        return
    path = tools.get(command)
    if path is None:
        raise SystemExit(f'mmseg-davpt: unknown command {command!r}\n{describe_tools(tools)}')
    sys.argv = [str(path), *options]
    runpy.run_path(str(path), run_name='__main__')
