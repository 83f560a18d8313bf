"""``SafeCheckpointHook``: checkpoints that are complete and finite, written before older ones are removed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ..files import write_atomically
from .interrupts import stop_requested


@register_backend('atomic')
class AtomicLocalBackend(LocalBackend):
    """``LocalBackend`` that writes by :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        write_atomically(filepath, obj)


def non_finite_tensors(content: object, name: str = '') -> Iterator[str]:
    """Names of the tensors that hold inf or nan.

    Args:
        content: Tensors, in mappings and sequences.
        name: Name of ``content`` itself; what it holds is called ``NAME.KEY``.

    Yields:
        Names, in the order of ``content``.
    """
    if isinstance(content, Tensor):
        if (content.is_floating_point() or content.is_complex()) and not bool(content.isfinite().all()):
            yield name
        return
    items: Any = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    for key, value in items:
        yield from non_finite_tensors(value, f'{name}.{key}' if name else str(key))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """``CheckpointHook`` that never loses the last good checkpoint. Options: as for ``CheckpointHook``.

    - Checkpoints and ``last_checkpoint`` are written under a temporary name, flushed to the disk and renamed: a file
      under its final name is complete. (Remote folders, ``PREFIX://...``, are written as mmengine does.)
    - Outdated checkpoints are removed after the new one is complete; so is the previous best one.
    - A checkpoint whose weights, buffers, averaged weights or optimizer state hold inf or nan is refused, which ends
      the training. Buffers that are infinite from the start, such as masks, may stay so.
    - After ctrl-C in ``tools/train.py`` the iteration (or the validation) is finished, a checkpoint is written, and
      ``KeyboardInterrupt`` ends the training. Checkpoints by epoch are not written in the middle of one.
    """

    file_backend: Any
    backend_args: dict[str, Any] | None
    keep_ckpt_ids: deque[int]
    _infinite_buffers: frozenset[str] = frozenset()

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder, and check that the training starts from finite numbers.

        Raises:
            FloatingPointError: Parameters or buffers of the model hold nan, or parameters inf.
        """
        place = str(self.out_dir or runner.work_dir)
        local = '://' not in place and self.file_client_args is None
        if local and self.backend_args is None:
            self.backend_args = dict(backend='atomic')
        super().before_train(runner)
        if local and is_main_process():
            for pattern in (
                '.*.pth.tmp',
                '.*.safetensors.tmp',
                '.last_checkpoint.tmp',
            ):  # of a run that was killed while it wrote
                for leftover in Path(self.out_dir).glob(pattern):
                    leftover.unlink(missing_ok=True)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._infinite_buffers = _infinite_buffers(model)
        if names := [name for name in non_finite_tensors(model.state_dict()) if name not in self._infinite_buffers]:
            raise FloatingPointError(
                f'The model holds inf or nan before the training: {_few(names)}. Check the file that it was loaded '
                'from (pretrained, load_from or the resumed checkpoint)'
            )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write a checkpoint if it is due, or if the training is to stop.

        Raises:
            KeyboardInterrupt: After ctrl-C; the message names the checkpoint.
        """
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if stop_requested():
            self._stop(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the best checkpoint, and stop if a stop was requested.

        Raises:
            KeyboardInterrupt: After ctrl-C; the message names the checkpoint.
            ValueError: The validation does not give the figure that ``save_best`` names.
        """
        metrics = metrics or {}
        if missing := [key for key in self._scores if key not in metrics]:
            raise ValueError(
                f'default_hooks.checkpoint.save_best={missing[0]!r}: the validation gives '
                f'{", ".join(metrics) or "no figures"}. Name one of these, or set save_best=None'
            )
        super().after_val_epoch(runner, metrics)
        if isinstance(runner._train_loop, BaseLoop) and stop_requested():
            self._stop(runner, runner.iter)

    @property
    def _scores(self) -> list[str]:
        """Figures whose best checkpoints are kept; ``'auto'``, the first one, is always there."""
        names = [self.save_best] if isinstance(self.save_best, str) else list(self.save_best or ())
        return [name for name in names if name != 'auto']

    def _stop(self, runner: Runner, done: int) -> NoReturn:
        if not self.by_epoch and Path(str(self.last_ckpt)).name != self.filename_tmpl.format(done):
            self._save_checkpoint_with_step(runner, done, dict(epoch=runner.epoch, iter=done))
        raise KeyboardInterrupt(
            f'Stopped after iteration {done} of {runner.max_iters}; '
            f'{self._last_complete(runner) or "there is no checkpoint yet"}'
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse inf and nan, and complete averaged weights; other hooks have changed the checkpoint before.

        Raises:
            FloatingPointError: Names the tensors, and the last good checkpoint.
        """
        if (averaged := checkpoint.get('ema_state_dict')) is not None:
            # EMAHook copies the model before the trunk is loaded. Its copy lacks the fingerprint of a bfloat16 trunk.
            for name, value in checkpoint['state_dict'].items():
                averaged.setdefault(f'module.{name}', value)
        parts = {key: checkpoint[key] for key in ('state_dict', 'ema_state_dict', 'optimizer') if key in checkpoint}
        names = [
            name
            for name in non_finite_tensors(parts)
            if name.partition('.')[2].removeprefix('module.') not in self._infinite_buffers
        ]
        if names:
            raise FloatingPointError(
                f'The checkpoint of iteration {runner.iter + 1} is not written: {len(names)} of its tensors hold inf '
                f'or nan: {_few(names)}. Checkpoints in {self.out_dir} from before are kept; '
                f'{self._last_complete(runner) or "there is none yet"}. Lower the learning rate, train without --amp '
                'or in bfloat16, or look for bad images with tools/check_dataset.py; TrainingGuardHook names the images'
            )

    def _last_complete(self, runner: Runner) -> str:
        pointer = Path(runner.work_dir, 'last_checkpoint')
        return f'the last one is {pointer.read_text().strip()}' if pointer.is_file() else ''

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """As in ``CheckpointHook``, in another order: the new file, the pointer to it, then removals."""
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            steps = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            outdated, kept = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            # With those that are still there: if the process dies before it removes them, a resumed run does.
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        self._written(runner, str(self.last_ckpt))
        write_atomically(Path(runner.work_dir, 'last_checkpoint'), str(self.last_ckpt).encode())
        for old in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """As in ``CheckpointHook``, but the previous best checkpoint is removed last."""
        backend, before = self.file_backend, self._best_checkpoints()
        self.file_backend = late = _LateRemovals(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        current = self._best_checkpoints()
        if is_main_process():
            for path in current - before:
                self._written(runner, path)
        for path in late.paths:
            if path not in current:
                self._remove(path)

    def _best_checkpoints(self) -> set[str]:
        paths = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        return {str(path) for path in paths if path}

    def _written(self, runner: Runner, path: str) -> None:
        """Called by the main process after it has written a checkpoint, and before outdated ones are removed."""

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


class _LateRemovals:
    """A file backend whose removals are noted, not done."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note a file."""
        self.paths.append(path)


def _infinite_buffers(model: nn.Module) -> frozenset[str]:
    """Buffers with inf but no nan: masks that are meant so."""
    buffers = dict(model.named_buffers())
    return frozenset(name for name in non_finite_tensors(buffers) if not bool(buffers[name].isnan().any()))


def _few(names: list[str], number: int = 3) -> str:
    return ', '.join(names[:number]) + (f' and {len(names) - number} more' if len(names) > number else '')
