"""Checkpoints of a training: which one to resume, is it complete, are its values numbers."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from .formats import UnsafeFileError, WeightsError, read_checkpoint

_NAME = re.compile(r'(iter|epoch)_(\d+)\.pth')  # mmengine's; not best_*.pth, which may be old
_MAX_PROBLEMS = 4  # in one error message
_TRAINING = ('meta', 'message_hub', 'optimizer')  # what a training needs beside the weights
# Floating point types that a tensor of the model may have in a file.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint. Nothing in it is executed, now or by mmengine afterwards.

    mmengine executes the config that old versions wrote to a checkpoint, to count its ``gpu_ids``. Only this list is
    left of it.

    Args:
        path: The file.
        trust: Read it with pickle, which runs the code that the file holds, and leave its config as it is.

    Returns:
        The content: entries such as ``state_dict``, ``optimizer`` and ``meta``, or the weights alone.

    Raises:
        FileNotFoundError: The file does not exist.
        WeightsError: The file is damaged or no checkpoint, or cannot be read safely.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}; training writes it to work_dirs/CONFIG/iter_N.pth')
    try:
        content = _load_with_pickle(path) if trust else read_checkpoint(path)
    except UnsafeFileError as error:
        raise UnsafeFileError(f'{error}. The tools read it as it is with --trust-checkpoint') from error
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise WeightsError(f'{path} is no checkpoint: its weights are no mapping of names to tensors')
    meta = content.get('meta')
    if not trust and isinstance(meta, dict) and 'config' in meta:
        meta['config'] = f'gpu_ids = {_gpu_ids(str(meta["config"]))}'
    return content


def _load_with_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=False)
    except Exception as error:  # a damaged file fails in many ways
        raise WeightsError(f'Cannot read {path}: {type(error).__name__}: {error}') from error


def _gpu_ids(config: str) -> list[int]:
    """Return the list ``gpu_ids`` of a config without executing it; empty if there is none."""
    found = re.search(r'^gpu_ids\s*=\s*(\[[\d,\s]*\]|range\((?:\d{1,4},\s*)?\d{1,4}\))', config, re.MULTILINE)
    if found is None:
        return []
    if found[1].startswith('range'):
        return list(range(*map(int, re.findall(r'\d+', found[1]))))
    return list(ast.literal_eval(found[1]))


def newest_checkpoint(folder: str | Path, trust: bool = False) -> Path | None:
    """Find the checkpoint that a training continues from: the newest one that can be read to its end.

    ``last_checkpoint`` names it, unless a training was killed before it wrote that file. A checkpoint with a higher
    number than the named one is newer if it was also written later: the folder may hold those of an earlier training.

    Args:
        folder: The work folder.
        trust: Read with pickle, see :func:`load_checkpoint`.

    Returns:
        The file; ``None`` if the folder holds no checkpoint. The log gives the reason if that is not the one that
        ``last_checkpoint`` names.

    Raises:
        WeightsError: There are checkpoints, but none can be read.
        UnsafeFileError: The newest one cannot be read safely.
    """
    folder = Path(folder)
    named, pointer = _read_pointer(folder)
    files = {file for file in folder.glob('*.pth') if _NAME.fullmatch(file.name)} | ({named} if named else set())
    damaged = []
    for file in _newest_first(files, named):
        try:
            load_checkpoint(file, trust)
        except UnsafeFileError:
            raise
        except WeightsError as error:
            damaged.append(str(error))
            _log(f'{file} is not complete, the checkpoint before it is tried: {error}', logging.WARNING)
            continue
        note = '' if file == named else f' (the newest complete checkpoint; {pointer})'
        _log(f'Training continues from {file}{note}', logging.INFO if file == named else logging.WARNING)
        return file
    if damaged:
        raise WeightsError(
            f'no checkpoint in {folder} can be read: {"; ".join(damaged)}. Restore one, or start again without --resume'
        )
    if pointer.startswith('last_checkpoint names'):
        _log(f'{folder}: {pointer}', logging.WARNING)
    return None


def _read_pointer(folder: Path) -> tuple[Path | None, str]:
    """Return the existing file that ``last_checkpoint`` names, and a description for the log."""
    try:
        text = (folder / 'last_checkpoint').read_text().strip('\0 \n\r\t')  # zeros: a crash of the machine
    except (OSError, UnicodeDecodeError) as error:
        return None, f'last_checkpoint cannot be read ({type(error).__name__})'
    if not text:
        return None, 'last_checkpoint is empty'
    for file in (folder / Path(text).name, Path(text)):  # first: the folder may have been moved
        if file.is_file():
            return file, f'last_checkpoint names {file.name}'
    return None, f'last_checkpoint names {text[:200]}, which does not exist'


def _newest_first(files: Collection[Path], named: Path | None) -> list[Path]:
    def number(file: Path) -> int:
        match = _NAME.fullmatch(file.name)
        return int(match[2]) if match else 0

    def time(file: Path) -> tuple[int, int]:
        return file.stat().st_mtime_ns, number(file)

    ordered = sorted(files, key=time, reverse=True)
    if named is None:
        return ordered
    newer = [file for file in ordered if number(file) > number(named) and time(file) > time(named)]
    return [*newer, named, *(file for file in ordered if file not in (*newer, named))]


def _log(message: str, level: int) -> None:
    print_log(message, logger='current', level=level)


def tensors_of(checkpoint: Mapping[str, Any], entry: str = 'state_dict') -> dict[str, Any]:
    """Return the tensors of a model in a checkpoint, without the prefix ``module.`` of a wrapped model."""
    return {re.sub(r'^module\.', '', name): tensor for name, tensor in checkpoint.get(entry, checkpoint).items()}


def require_tensors(model_state: Mapping[str, Tensor], state: Mapping[str, Any], source: str) -> None:
    """Refuse weights that would leave parts of a model as they are, or fill them with something else than numbers.

    Args:
        model_state: What must be there: names, shapes and types.
        state: What is there. Other names in it do not matter.
        source: The file, for the message.

    Raises:
        ValueError: Tensors are missing, have another shape or type, or hold values that are not finite.
    """
    problems = []
    for name, tensor in model_state.items():
        if not isinstance(state.get(name), Tensor):
            problems.append(f'{name} is missing')
        elif state[name].shape != tensor.shape:
            problems.append(f'{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}')
        elif problem := value_problem(state[name], tensor.dtype):
            problems.append(f'{name} {problem}')
    if problems:
        more = f' and {len(problems) - _MAX_PROBLEMS} more' if len(problems) > _MAX_PROBLEMS else ''
        raise ValueError(
            f'{source} does not fit this config: {"; ".join(problems[:_MAX_PROBLEMS])}{more}. Was it made with another '
            'config, or by a training that failed?'
        )


def value_problem(tensor: Tensor, dtype: torch.dtype = torch.float32) -> str | None:
    """Describe what is wrong with the values of a tensor in a file; ``None`` if nothing is.

    Args:
        tensor: The tensor of the file.
        dtype: Type of the model's tensor. Floating point values may have another precision in the file.
    """
    if tensor.dtype != dtype and not (dtype in FLOATS and tensor.dtype in FLOATS):
        return f'is {_type(tensor.dtype)} instead of {_type(dtype)}'
    if tensor.is_floating_point() and not tensor.isfinite().all():
        return f'holds {int((~tensor.isfinite()).sum())} values that are not finite (NaN or infinite)'
    return None


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def require_training_state(checkpoint: Mapping[str, Any], source: str) -> None:
    """Refuse to resume from a checkpoint without the state of its training, or with one that is not finite.

    Args:
        checkpoint: The content of the file.
        source: The file, for the message.

    Raises:
        ValueError: The message names what is missing, or the first tensor of the optimizer that is not finite.
    """
    missing = [entry for entry in _TRAINING if not isinstance(checkpoint.get(entry), dict)]
    missing += [f'meta.{key}' for key in ('epoch', 'iter') if type(checkpoint.get('meta', {}).get(key)) is not int]
    if missing:
        raise ValueError(
            f'{source} cannot be resumed, it lacks {", ".join(missing)}: give it as load_from to start a new training '
            'from its weights'
        )
    for name, tensor in _walk(checkpoint['optimizer'], 'optimizer'):
        if problem := value_problem(tensor, tensor.dtype):
            raise ValueError(f'{source} cannot be resumed: {name} {problem}. Resume from an older checkpoint')


def _walk(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, (Mapping, list, tuple)):
        for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _walk(child, f'{name}.{key}')
