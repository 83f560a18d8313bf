"""Configs and command lines that the package contains."""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path

# Where OpenMMLab's packages keep configs and command lines; links in a checkout, copies in a wheel.
MIM = Path(__file__).parent / '.mim'


def packaged_config(name: str) -> Path:
    """Path of a config of this package.

    Args:
        name: Path below ``configs/``, such as ``davpt_upernet_ade20k.py``.

    Raises:
        FileNotFoundError: There is no such config; the message lists those with similar names.
    """
    folder = MIM / 'configs'
    if (path := folder / name).is_file():
        return path
    known = [path.relative_to(folder).as_posix() for path in sorted(folder.glob('**/*.py'))]
    known = [path for path in known if not path.startswith('_base_')]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise FileNotFoundError(f'no config mmseg_davpt::{name}; known are {", ".join(close or known)}')


def tool_command(name: str, *arguments: str | Path) -> str:
    """A command to type, as this process was started: ``python tools/NAME.py ...`` or ``mmseg-davpt NAME ...``.

    Args:
        name: Name of a file of ``tools/`` without its suffix.
        *arguments: Of the command.
    """
    console = MIM.name in Path(sys.argv[0]).parts
    start = ['mmseg-davpt', name.replace('_', '-')] if console else ['python', f'tools/{name}.py']
    return shlex.join([*start, *map(str, arguments)])
