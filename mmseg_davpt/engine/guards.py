"""``TrainingGuardHook``: stops a training that cannot succeed, and says why."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..files import write_atomically
from .checkpoint_hook import non_finite_tensors

_SKIPPED_STEPS = 25  # from 2**16, the scale of a gradient scaler has then fallen below 1
_WARNINGS = 3
_ZERO_STEPS = 5


@HOOKS.register_module()
class TrainingGuardHook(Hook):
    """Stop a training whose loss or gradient is not finite; log losses as means over the ranks.

    - Losses of all ranks are averaged in place, by one collective call per iteration, before they are logged. All
      ranks see the same values and stop in the same iteration.
    - A loss or gradient that is inf or nan raises ``FloatingPointError``: the message names the iteration, the loss
      term and the image files, and ``WORK_DIR/non_finite_iter_N_rankR.pth`` holds the batch
      (``torch.load(PATH, weights_only=True)``).
    - With a gradient scaler (float16), inf and nan in gradients are the scaler's business. A loss that is not finite is
      a warning, until it is so in 25 iterations in a row.
    - A loss that is exactly 0 in 5 iterations because every label is ignored causes one warning.
    - Before training: worker processes whose batches cannot fit into ``/dev/shm`` are an error.

    It reads values that mmengine reads in each iteration anyway.
    """

    priority = 'HIGHEST'  # before losses are logged, weights averaged and checkpoints written

    def __init__(self) -> None:
        self._largest_gradient: Tensor | None = None  # of this iteration, on its device
        self._skipped = self._zero = 0  # iterations in a row

    def before_train(self, runner: Runner) -> None:
        """Check the shared memory, and watch the optimizer's gradients.

        Raises:
            RuntimeError: ``/dev/shm`` cannot hold the batches of the workers.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        size = getattr(getattr(model, 'data_preprocessor', None), 'size', None)
        if size is not None:
            check_shared_memory(runner.train_dataloader, size)
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper) and _scaler(wrapper) is None:
            wrapper.optimizer.register_step_pre_hook(self._watch)

    def _watch(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Keep the largest gradient: nan if one is nan. Nothing waits for the device."""
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if gradients:
            self._largest_gradient = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Average the losses over the ranks and look at them.

        Raises:
            FloatingPointError: On all ranks, if a loss or gradient is not finite on any.
        """
        terms = {
            name: value for name, value in (outputs or {}).items() if isinstance(value, Tensor) and value.numel() == 1
        }
        if outputs is None or not terms:
            return
        own = torch.stack([value.detach().float().reshape(()) for value in terms.values()])
        gradient, self._largest_gradient = self._largest_gradient, None
        own = torch.cat([own, own.new_zeros(1) if gradient is None else gradient.detach().reshape(1).to(own)])
        mean = own.clone()
        all_reduce(mean, 'mean')
        mean = mean.cpu()
        if get_world_size() > 1:
            outputs.update(zip(terms, mean))
        values = dict(zip(terms, mean.tolist()))
        losses = {name: value for name, value in values.items() if 'loss' in name}  # mmengine's rule
        if all(map(math.isfinite, losses.values())) and math.isfinite(mean[-1]):
            self._skipped = 0
        else:
            self._act(runner, data_batch, losses, dict(zip(terms, own.tolist())))
        self._look_at_labels(runner, data_batch, values.get('loss'))

    def _act(self, runner: Runner, batch: Any, losses: Mapping[str, float], own: Mapping[str, float]) -> None:
        """Warn or stop: a loss or a gradient is not finite. ``losses``: means over the ranks; ``own``: this rank's."""
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        self._skipped += bool(broken)
        if _scaler(runner.optim_wrapper) is not None and self._skipped < _SKIPPED_STEPS:
            if self._skipped <= _WARNINGS:
                runner.logger.warning(
                    f'Iteration {runner.iter + 1}: {_values(losses, broken)}; the gradient scaler skips this step. '
                    f'Images: {", ".join(_paths(batch))}'
                )
            return
        broken_here = not all(math.isfinite(own[name]) for name in broken)
        path = None
        if broken_here or not broken:
            path = save_batch(runner, batch, own)
        where = all_gather_object((get_rank(), broken_here, str(path), _paths(batch), _broken_images(batch)))
        what = _values(losses, broken) if broken else 'the losses are finite, but a gradient is inf or nan'
        repeated = f' for the {self._skipped}th time in a row, too often for a gradient scaler' * (self._skipped > 1)
        raise FloatingPointError(f'Iteration {runner.iter + 1}: {what}{repeated}. {_places(where)} {_REMEDY}')

    def _look_at_labels(self, runner: Runner, batch: Any, loss: float | None) -> None:
        self._zero = self._zero + 1 if loss == 0 else 0
        if self._zero != _ZERO_STEPS:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = getattr(model, 'decode_head', None)
        ignore_index = getattr(head, 'ignore_index', 255)
        samples = _samples(batch)
        ids = sorted({int(i) for sample in samples if 'gt_sem_seg' in sample for i in sample.gt_sem_seg.data.unique()})
        if ids != [ignore_index]:
            return
        self._zero = _ZERO_STEPS + 1  # once is enough; a loss above 0 sets it back
        reduced = {sample.metainfo.get('reduce_zero_label') for sample in samples} - {None}
        runner.logger.warning(
            f'The loss was exactly 0 in {_ZERO_STEPS} iterations: every pixel is ignored, so nothing is learned. The '
            f'masks of this batch hold only the id {ignore_index}, which is decode_head.ignore_index, after '
            f'reduce_zero_label={"/".join(map(str, sorted(reduced))) or "?"} (True turns 0 into 255 and subtracts 1 '
            'from other ids). Compare reduce_zero_label of LoadAnnotations, ignore_index and the ids in the files: '
            f'tools/check_dataset.py CONFIG. First mask: {samples[0].metainfo.get("seg_map_path", "unknown")}'
        )


_REMEDY = (
    'No checkpoint was written with these values. Look at these images and masks (tools/check_dataset.py CONFIG) and '
    'repair or remove bad ones; if all are valid, lower the learning rate, or train without --amp or in bfloat16. Then '
    'continue with --resume'
)


def save_batch(runner: Runner, batch: Any, losses: Mapping[str, float]) -> Path | None:
    """Write a batch and what is known of its iteration to ``WORK_DIR/non_finite_iter_N_rankR.pth``.

    Args:
        runner: The runner of the training.
        batch: What the data loader gave.
        losses: Values of this rank.

    Returns:
        The file, which ``torch.load(PATH, weights_only=True)`` reads: ``iteration``, ``rank``, ``seed`` (the step was
        seeded with the three by ``StepSeedHook``), ``losses``, ``img_paths``, ``seg_map_paths``, ``inputs`` and
        ``labels``, tensors of each image. ``None`` if it could not be written, which is logged.
    """
    path = Path(runner.work_dir, f'non_finite_iter_{runner.iter + 1}_rank{get_rank()}.pth')
    samples = _samples(batch)
    content = dict(
        iteration=runner.iter,
        rank=get_rank(),
        seed=runner.seed,
        losses=dict(losses),
        img_paths=_paths(batch),
        seg_map_paths=[str(sample.metainfo.get('seg_map_path')) for sample in samples],
        inputs=[image.cpu() for image in _inputs(batch)],
        labels=[sample.gt_sem_seg.data.cpu() for sample in samples if 'gt_sem_seg' in sample],
    )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:  # must not hide what went wrong before
        runner.logger.error(error)
        return None
    return path


def check_shared_memory(loader: DataLoader[Any], size: Sequence[int], folder: str | Path = '/dev/shm') -> None:
    """Check that the batches that workers hold ready fit into the shared memory.

    Docker gives 64 MB. Where it is full, a worker dies of a bus error, or the training waits for a batch without end.

    Args:
        loader: The data loader of the training.
        size: Height and width of its images, in pixels. Images count as bytes, labels as int64.
        folder: Where shared memory is mounted; systems without it are not checked.

    Raises:
        RuntimeError: They do not fit; the message names both sizes and what to change.
    """
    if not loader.num_workers or not Path(folder).is_dir():
        return
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    batches = loader.num_workers * (loader.prefetch_factor or 2) * processes
    needed = batches * (loader.batch_size or 1) * math.prod(size) * (3 + 8)
    available = shutil.disk_usage(folder).total
    if needed > available:
        raise RuntimeError(
            f'{folder} is too small: {available / 1e6:.0f} MB of shared memory, but the {loader.num_workers} workers '
            f'of train_dataloader (times {processes} processes) keep up to {batches} batches of {needed / 1e6:.0f} MB '
            'together in it. In Docker, start the container with --shm-size=8g or --ipc=host; or use --cfg-options '
            'train_dataloader.num_workers=0, or a smaller train_dataloader.prefetch_factor'
        )


def _scaler(wrapper: Any) -> Any | None:
    """The gradient scaler of ``AmpOptimWrapper``."""
    return getattr(wrapper, 'loss_scaler', None)


def _samples(batch: Any) -> list[Any]:
    return list(batch.get('data_samples') or []) if isinstance(batch, Mapping) else []


def _inputs(batch: Any) -> list[Tensor]:
    return list(batch['inputs']) if isinstance(batch, Mapping) and 'inputs' in batch else []


def _paths(batch: Any) -> list[str]:
    return [str(sample.metainfo.get('img_path', 'image without a path')) for sample in _samples(batch)]


def _broken_images(batch: Any) -> list[str]:
    paths = _paths(batch)
    return [paths[int(name)] for name in non_finite_tensors(_inputs(batch)) if int(name) < len(paths)]


def _values(losses: Mapping[str, float], names: Sequence[str]) -> str:
    """Terms before their sum, ``loss``."""
    names = sorted(names, key=lambda name: name == 'loss')
    return ', '.join(f'{name} is {losses[name]}' for name in names)


def _places(reports: Sequence[tuple[int, bool, str, list[str], list[str]]]) -> str:
    """What each rank reports: its images, those with inf or nan in their pixels, and its file."""
    chosen = [report for report in reports if report[1]] or reports
    lines = []
    for rank, _, path, images, broken in chosen:
        line = f'Images of the batch{f" of rank {rank}" if len(reports) > 1 else ""}: {", ".join(images)}'
        if broken:
            line += f' (inf or nan in the pixels of {", ".join(broken)})'
        lines.append(f'{line}; batch saved to {path}.' if path != 'None' else f'{line}.')
    return ' '.join(lines)
