"""``AttentionMassHook``: attention to prompts before and after training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import PixelData

from ..options import check_integer
from ..reports import attention_mass, draw_class_table, measure_attention, with_labels_of_image_size
from ..tuning import DeepPrompts
from .pictures import add_figure, shows_figures

# Entry of the message hub, not kept in checkpoints: block -> table (C, M), patches (C,), assignment (C,), figures.
ATTENTION = 'prompt_attention'


@HOOKS.register_module()
class AttentionMassHook(Hook):
    """Measure :func:`~mmseg_davpt.reports.attention_mass` on images of the validation loader before and after training.

    The figures stand in the runner's message hub, as ``attention_before`` and ``attention_after``.

    Args:
        num_batches: Number of batches that are measured.
    """

    priority = 'LOW'  # behind PromptAssignmentHook

    def __init__(self, num_batches: int = 20) -> None:
        self.num_batches = check_integer('AttentionMassHook.num_batches', num_batches)

    def before_train(self, runner: Runner) -> None:
        """Measure, unless the run is resumed."""
        if runner.iter == 0:
            self._measure(runner, 'attention_before')

    def after_train(self, runner: Runner) -> None:
        """Measure."""
        self._measure(runner, 'attention_after')

    def _measure(self, runner: Runner, name: str) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        batches = islice(runner.val_loop.dataloader, self.num_batches)
        runner.message_hub.update_info(name, attention_mass(model, batches))


@HOOKS.register_module()
class PromptAttentionHook(Hook):
    """Measure the attention to prompts in each validation, and log the own-prompt attention share of guided blocks.

    ``own_prompt_share/block_N`` is :meth:`PromptAttention.describe`'s ``to_own``, ``prompt_share/block_N`` its
    ``to_prompts``, both in percent. Images and labels are cropped to the size of the training, from their middle.
    Backends that show figures get the table of classes and prompts as ``class_prompt_matrix``. Nothing happens for
    models without deep prompts; without guidance the last prompted block is measured.

    Args:
        num_batches: Number of validation batches that are measured.
    """

    priority = 'ABOVE_NORMAL'  # before LoggerHook, and before EMAHook takes the averaged weights back

    def __init__(self, num_batches: int = 4) -> None:
        self.num_batches = check_integer('PromptAttentionHook.num_batches', num_batches)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Measure and log, on the main process."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        prompts = getattr(model.backbone, 'prompts', None)
        if not is_main_process() or not isinstance(prompts, DeepPrompts):
            return
        prompted = sorted(prompts.blocks)
        blocks = [prompted[-1]] if model.guidance is None else list(model.guidance.blocks)
        size = getattr(model.data_preprocessor, 'size', None)
        batches = (_middle(batch, size) for batch in islice(runner.val_dataloader, self.num_batches))
        measured = measure_attention(model, batches, [prompted.index(block) for block in blocks])
        kept = {}
        for block, attention in measured.items():
            figures = attention.describe()
            for name, key in (('own_prompt_share', 'to_own'), ('prompt_share', 'to_prompts')):
                if key in figures:
                    runner.message_hub.update_scalar(f'val/{name}/block_{block}', figures[key])
            assigned = attention.assignment
            kept[block] = dict(
                table=attention.table.tolist(),
                patches=attention.patches.tolist(),
                assignment=None if assigned is None else assigned.tolist(),
                figures=figures,
            )
        runner.message_hub.update_info(ATTENTION, kept, resumed=False)
        if shows_figures(runner.visualizer):
            path = Path(runner.work_dir, 'class_prompt_matrix.png')
            names = {f'block {block}': attention for block, attention in measured.items()}
            draw_class_table(names, runner.val_dataloader.dataset.metainfo['classes'], path)
            add_figure(runner, 'class_prompt_matrix', path)


def _middle(batch: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """A batch of a data loader, its images and labels cropped to at most ``size``."""
    if size is None:
        return batch
    batch = with_labels_of_image_size(batch)
    inputs, samples = [], []
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        labels = sample.gt_sem_seg.data
        top, left = (max(0, (length - limit) // 2) for length, limit in zip(labels.shape[-2:], size))
        window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        sample = sample.clone()
        sample.gt_sem_seg = PixelData(data=labels[window])
        inputs.append(image[window])
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
