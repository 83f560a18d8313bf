"""``PromptAssignmentHook``: when the class -> prompt assignment is made."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..datasets import ReplayableSampler
from ..models import PromptedEncoderDecoder
from ..models.prototype_init import PrototypeInit


@HOOKS.register_module()
class PromptAssignmentHook(Hook):
    """Fill the assignment before training from a bounded number of batches, refresh it while training.

    Nothing happens for a model without guidance. A resumed run keeps the assignment of its checkpoint.

    Args:
        num_batches: At most so many training batches are looked at first, and at most one pass (the official
            segmentation code: 200).
        interval: Iterations between refreshes; one pass over the training images by default. 0: never.
    """

    priority = 'NORMAL'  # before CheckpointHook, so that a checkpoint holds the refreshed assignment

    def __init__(self, num_batches: int = 200, interval: int | None = None) -> None:
        if num_batches < 1 or (interval is not None and interval < 0):
            raise ValueError(f'num_batches={num_batches}, interval={interval}: expected >= 1 and >= 0')
        self.num_batches, self.interval = num_batches, interval

    def before_train(self, runner: Runner) -> None:
        """Look at the training images through the pretrained trunk, then assign."""
        model = _guided(runner)
        if model is None:
            return
        self._every = _batches_a_pass(runner.train_dataloader) if self.interval is None else self.interval
        if runner.iter > 0:
            return
        model.backbone.require_weights()
        loader = runner.train_dataloader
        batches = min(self.num_batches, _batches_a_pass(loader))
        init = PrototypeInit(model) if model.backbone.prompts.init == 'prototype' else None
        model.eval()
        for part in model.guidance.assignments:
            part.reset()
        with _kept_random_state():
            data = islice(_same_data(loader, runner.seed), batches)
            hidden = not is_main_process()
            for batch in tqdm(data, 'class prototypes', batches, mininterval=2, disable=hidden):
                batch = model.data_preprocessor(batch, training=True)
                model.collect_prototypes(**batch)
                if init is not None:
                    init.collect(**batch)
        self._refresh(runner, model)
        if init is not None:
            init.write(runner.seed)

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: object, **__: object) -> None:
        """Refresh once in ``interval`` iterations."""
        model = _guided(runner)
        if model is not None and self._every and self.every_n_train_iters(runner, self._every):
            self._refresh(runner, model)

    def _refresh(self, runner: Runner, model: PromptedEncoderDecoder) -> None:
        for block, part in zip(model.guidance.blocks, model.guidance.assignments):
            changed = part.refresh(runner.seed)
            unseen = int((part.assignment < 0).sum())
            runner.logger.info(
                f'Prompt assignment of block {block}: {part.cluster_sizes()} classes a prompt, {unseen} unseen, '
                f'{changed} changed prompt'
            )


def _guided(runner: Runner) -> PromptedEncoderDecoder | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    guidance = getattr(model, 'guidance', None)
    if guidance is None or not (guidance.enabled or model.backbone.prompts.init == 'prototype'):
        return None
    return model


def _batches_a_pass(loader: DataLoader) -> int:
    return math.ceil(len(loader.dataset) / ((loader.batch_size or 1) * get_world_size()))


def _same_data(loader: DataLoader, seed: int) -> Iterator[dict]:
    """The training data in an order of its own: the training's sampler must not lose a draw."""
    return iter(
        DataLoader(
            loader.dataset,
            batch_size=loader.batch_size or 1,
            sampler=ReplayableSampler(loader.dataset, seed=seed),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
    )


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Leave no trace in the random states: with and without guidance, training starts alike."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # an eval forward draws nothing on a GPU
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
