"""Small hooks: repeatable steps, and the parameter report."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..reports import format_report


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed torch before each step from (seed, rank, iteration).

    The random numbers of a step (dropout, drop path) then do not depend on earlier steps: a resumed run takes the same
    steps as one that was not interrupted. Ranks draw differently.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Seed torch on all devices."""
        torch.manual_seed(int(np.random.SeedSequence([runner.seed, runner.rank, runner.iter]).generate_state(1)[0]))


@HOOKS.register_module()
class ParamReportHook(Hook):
    """Log the number of trainable parameters of each part before training."""

    def before_train(self, runner: Runner) -> None:
        """Log the table of :func:`~mmseg_davpt.format_report`."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        runner.logger.info(f'Parameters:\n{format_report(model)}')
