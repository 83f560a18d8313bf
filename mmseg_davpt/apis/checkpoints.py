"""How the command lines read checkpoints: safely, completely, and the newest complete one on ``--resume``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from torch import Tensor, nn

from ..models.trunk_state import FINGERPRINT
from ..packaged import tool_command
from ..tasks import is_task_file, task_checkpoint
from ..tasks.file import SCHEME, TRUNK
from ..weights.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    require_tensors,
    require_training_state,
    tensors_of,
)
from ..weights.formats import WeightsError


def read_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint or a task file.

    Args:
        path: The file; its content decides which of them it is.
        trust: See :func:`safe_checkpoints`. It changes nothing for task files.

    Raises:
        FileNotFoundError: The file does not exist.
        WeightsError: It is damaged, or cannot be read safely.
    """
    return task_checkpoint(path) if is_task_file(path) else load_checkpoint(path, trust)


@contextmanager
def safe_checkpoints(trust: bool = False) -> Iterator[None]:
    """Let mmengine read checkpoints with the safe reader of this project.

    Only inside of the context: a project that imports this package keeps the readers it has.

    Args:
        trust: Leave mmengine's other sources (URLs, model zoos) as they are, and read files with pickle, which runs
            the code that they hold.
    """
    loaders = dict(CheckpointLoader._schemes)

    def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(filename, trust)  # on the CPU: whatever takes the values copies them to its device

    def load_from_elsewhere(filename: str, map_location: Any = None) -> dict[str, Any]:
        raise WeightsError(
            f'{filename} is not a file: mmengine would run the code that a download holds. Download it, give its path, '
            'or add --trust-checkpoint'
        )

    if not trust:
        for prefix in loaders:
            CheckpointLoader.register_scheme(prefix, load_from_elsewhere, force=True)
    for prefix in ('', SCHEME):
        CheckpointLoader.register_scheme(prefix, load_from_file, force=True)
    try:
        yield
    finally:
        for prefix, loader in loaders.items():
            CheckpointLoader.register_scheme(prefix, loader, force=True)


@contextmanager
def checked_checkpoints(runner: Runner, trust: bool = False) -> Iterator[None]:
    """Let a runner train or test with checkpoints that were read safely and that fit its model.

    With ``resume`` and without ``load_from``, training continues from the newest complete checkpoint of the work
    folder. With ``load_from`` alone, all tensors of the model must be in the file, except those of the modules in the
    config's ``load_from_skip``.

    Args:
        runner: Before ``train()`` or ``test()``.
        trust: See :func:`safe_checkpoints`.

    Raises:
        ValueError: A checkpoint does not fit the model, or cannot be resumed.
        WeightsError: A checkpoint is damaged or cannot be read safely.
    """
    if runner._resume:
        _choose_checkpoint(runner, trust)
    runner.register_hook(CheckpointCheckHook())
    with safe_checkpoints(trust):
        yield


def _choose_checkpoint(runner: Runner, trust: bool) -> None:
    """Set the file to resume; on the runner, as its config is written to the work folder."""
    newest = newest_checkpoint(runner.work_dir, trust) if runner._load_from is None else None
    if newest is not None:
        runner._load_from = str(newest)
    elif runner._load_from is None:
        runner._resume = False
        print_log(
            f'No checkpoint in {runner.work_dir}: training starts at iteration 0. To continue a training, give its '
            'folder as --work-dir.',
            'current',
            level=logging.WARNING,
        )
    elif next(Path(runner.work_dir).glob('*_*.pth'), None) is not None:
        print_log(
            f'Training continues from load_from={runner._load_from}, not from a checkpoint in {runner.work_dir}. To '
            'continue that training, remove load_from from the config (--cfg-options load_from=None).',
            'current',
            level=logging.WARNING,
        )


def require_complete(model: nn.Module, checkpoint: str | Path, trust: bool = False) -> None:
    """Refuse a checkpoint that would leave parts of the model random; mmengine only warns.

    Args:
        model: The segmentor.
        checkpoint: A checkpoint of the whole model, or a task file. The guidance may be missing: inference does not
            need it. A prefix ``module.`` of a wrapped model is ignored, as mmengine does.
        trust: See :func:`safe_checkpoints`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Tensors are missing, have another shape or type, or hold values that are not finite; the message
            names some.
        WeightsError: The file is damaged or cannot be read safely.
    """
    tensors = tensors_of(read_checkpoint(checkpoint, trust))
    require_tensors(_expected(model, inference_state(model), tensors), tensors, str(checkpoint))


class CheckpointCheckHook(Hook):
    """Refuses a checkpoint that does not fill the model of the runner, before anything takes it over."""

    priority = 'VERY_HIGH'  # before EMAHook, which loads averaged weights

    def before_train(self, runner: Runner) -> None:
        """Say so if there is nothing left to train."""
        if runner._resume and runner.iter >= runner.max_iters:
            print_log(
                f'Nothing to train: {runner._load_from} is the end of a training of {runner.max_iters} iterations. To '
                f'test it: {tool_command("test", "CONFIG", runner._load_from)}. To train longer, start another '
                f'training from its weights, load_from={str(runner._load_from)!r}, with a larger train_cfg.max_iters '
                'and another --work-dir: a resumed learning rate stays at its end',
                'current',
                level=logging.WARNING,
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the weights and, on resume, the state of the training; drop the modules of ``load_from_skip``."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        source = str(runner._load_from)
        training = isinstance(runner._train_loop, BaseLoop)  # not yet built in a test
        if runner._resume:
            require_training_state(checkpoint, source)
            if 'ema_state_dict' in checkpoint:
                averaged = tensors_of(checkpoint, 'ema_state_dict')
                require_tensors(_expected(model, model.state_dict(), averaged), averaged, f'{source} (EMA)')
        state = model.state_dict() if training else inference_state(model)
        if training and not runner._resume:
            for name in _drop_modules(checkpoint, list(state), runner.cfg.get('load_from_skip') or ()):
                del state[name]
        tensors = tensors_of(checkpoint)
        for name in [name for name in state if _FILLED.fullmatch(name) and name not in tensors]:
            del state[name]
        require_tensors(_expected(model, state, tensors), tensors, source)


def _expected(model: nn.Module, state: dict[str, Tensor], tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint must hold of a model's state: all, or all but the frozen trunk if it has its fingerprint."""
    if f'backbone.{FINGERPRINT}' not in tensors:
        return state
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if not name.startswith(TRUNK) or name in trained}


# What the guidance fills in for checkpoints from before it existed.
_FILLED = re.compile(r'guidance\.assignments\.\d+\.new_mass')


def inference_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a segmentor that inference needs: all but those of the guidance."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith('guidance.')}


def _drop_modules(checkpoint: dict[str, Any], names: list[str], modules: Any) -> list[str]:
    """Remove modules from a checkpoint, so that they stay as initialised; return the names of their tensors."""
    if isinstance(modules, str) or not all(isinstance(module, str) for module in modules):
        raise ValueError(f"load_from_skip={modules!r}: give a list of modules, e.g. ['decode_head.conv_seg']")
    dropped = {module: [name for name in names if f'{name}.'.startswith(f'{module}.')] for module in modules}
    if unknown := [module for module, tensors in dropped.items() if not tensors]:
        raise ValueError(f'load_from_skip: the model has no module {unknown[0]!r}')
    state = checkpoint.get('state_dict', checkpoint)
    skipped = sorted(set().union(*dropped.values()))
    for name in skipped:
        state.pop(name, None)
        state.pop(f'module.{name}', None)
    if skipped:
        print_log(f'load_from_skip: {len(skipped)} tensors of {", ".join(modules)} stay as initialised.', 'current')
    return skipped
