"""``AttentionMassHook``: attention to prompts before and after training."""

from __future__ import annotations

from itertools import islice

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..options import check_integer
from ..reports import attention_mass


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
