"""``TaskFileHook``: checkpoints without the frozen trunk, and a task file beside each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..models import PromptedViT
from ..tasks import TaskInfo, describe_task, task_backbone, task_state, write_task
from ..tasks.file import SUFFIX
from ..weights.checkpoints import load_checkpoint
from ..weights.fingerprint import TrunkFingerprint
from .checkpoint_hook import SafeCheckpointHook


@HOOKS.register_module()
class TaskFileHook(SafeCheckpointHook):
    """``SafeCheckpointHook`` that keeps what is trained, in place of the whole model.

    Use it in place of the checkpoint hook: ``default_hooks = dict(checkpoint=dict(type='TaskFileHook', ...))``. It
    writes ``NAME.task.safetensors`` beside each checkpoint ``NAME.pth``. The task file is what to keep and share. The
    checkpoint adds what ``--resume`` needs: optimizer, schedules, log. Both hold averaged weights where ``EMAHook`` is
    on, as mmengine's checkpoints do.

    Args:
        keep_trunk: Write the frozen trunk to the checkpoints as well, as ``CheckpointHook`` does. Otherwise they hold
            its fingerprint, and reading them needs ``backbone.pretrained``.
        **kwargs: As for ``CheckpointHook``; ``out_dir`` must be local.
    """

    def __init__(self, keep_trunk: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_trunk = keep_trunk

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder, and check that the task can be kept in a file.

        Raises:
            TaskFileError: Most of the trunk is trained in place, or the config holds what a task file cannot.
            ValueError: ``out_dir`` is no local folder.
        """
        super().before_train(runner)
        if '://' in str(self.out_dir):
            raise ValueError(f'TaskFileHook: out_dir={self.out_dir!r}: expected a local folder')
        self._model = _unwrapped(runner)
        self._backbone = task_backbone(self._model)
        self._describe(runner, {})

    @cached_property
    def _fingerprint(self) -> TrunkFingerprint:
        """Of the trunk, which is frozen: computed once per run."""
        return self._backbone.fingerprint()

    _model: nn.Module
    _backbone: PromptedViT

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse inf and nan, and replace the trunk by its fingerprint.

        Raises:
            FloatingPointError: See :class:`SafeCheckpointHook`.
        """
        super().before_save_checkpoint(runner, checkpoint)
        if self.keep_trunk:
            return
        for entry, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
            if entry in checkpoint:
                checkpoint[entry] = task_state(self._backbone, checkpoint[entry], self._fingerprint, prefix)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the best checkpoint, and write the figures to the task files of the present weights."""
        super().after_val_epoch(runner, metrics)
        name = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        if is_main_process():
            for path in {str(self.last_ckpt), *self._best_checkpoints()}:
                if path.endswith(name) and Path(path).is_file():
                    self._write_task(runner, path, metrics or {})

    def _written(self, runner: Runner, path: str) -> None:
        self._write_task(runner, path, {})

    def _write_task(self, runner: Runner, path: str, metrics: Mapping[str, float]) -> None:
        """Write the task file beside a checkpoint."""
        info = self._describe(runner, metrics)
        state = task_state(self._backbone, load_checkpoint(path)['state_dict'], self._fingerprint)
        write_task(_task_path(path), info, state)

    def _describe(self, runner: Runner, metrics: Mapping[str, float]) -> TaskInfo:
        meta = runner.train_dataloader.dataset.metainfo
        return describe_task(runner.cfg, meta, self._model, self._fingerprint, metrics)

    def _remove(self, path: str) -> None:
        super()._remove(path)
        Path(_task_path(path)).unlink(missing_ok=True)


def _task_path(checkpoint: str) -> str:
    return checkpoint.removesuffix('.pth') + SUFFIX


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
