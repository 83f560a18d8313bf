"""``PromptAssignmentHook``: when the class -> prompt assignment is made."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..datasets import ReplayableSampler, images_per_pass
from ..guidance import MetricGuidance
from ..models import PromptedEncoderDecoder
from ..models.prototype_init import PrototypeInit
from ..options import check_integer

# Entry of the message hub, kept in checkpoints: iteration, block, moved classes, unseen classes and the prompt of each
# class, for every time that an assignment was made.
ASSIGNMENTS = 'prompt_assignments'


@HOOKS.register_module()
class PromptAssignmentHook(Hook):
    """Make the assignment before training from a bounded number of batches, refresh it during training.

    The same warm-up initializes prompts of ``prompts.init='prototype'``, by one forward pass per batch. It fills only
    what is missing: an assignment or prompts that were resumed or loaded (``load_from``) stay as they are. Nothing
    happens for a model without guidance.

    Args:
        num_batches: Maximum number of training batches of the warm-up; at most one pass (the official segmentation
            code: 200).
        interval: Iterations between refreshes; one pass over the training images by default. 0: never.

    Raises:
        ValueError: ``num_batches`` or ``interval`` is out of range.
    """

    priority = 'NORMAL'  # before CheckpointHook, so that a checkpoint holds the refreshed assignment

    def __init__(self, num_batches: int = 200, interval: int | None = None) -> None:
        self.num_batches = check_integer('PromptAssignmentHook.num_batches', num_batches)
        self.interval = None if interval is None else check_integer('PromptAssignmentHook.interval', interval, low=0)
        self._interval = 0  # in iterations, known once there is a data loader

    def before_train(self, runner: Runner) -> None:
        """Run training images through the pretrained trunk, then assign the classes and initialize the prompts."""
        model, guidance = _guided_model(runner)
        if guidance is None:
            return
        loader = runner.train_dataloader
        batches_per_pass = _batches_per_pass(loader)
        self._interval = batches_per_pass if self.interval is None else self.interval
        blocks = guidance.unassigned_blocks()
        init = None if model.backbone.prompts_initialised else PrototypeInit(model)
        if not blocks and init is None:
            return
        model.backbone.require_weights()
        model.eval()
        for block in blocks:
            guidance.assignment_of[block].reset()
        collect = model.collect_prototypes if init is None else init.collect
        batches = min(self.num_batches, batches_per_pass)
        with _kept_random_state():
            data = islice(_same_data(loader, runner.seed), batches)
            for batch in tqdm(
                data, 'class prototypes', batches, mininterval=2, disable=None if is_main_process() else True
            ):
                collect(**model.data_preprocessor(batch, training=True), blocks=blocks)
        _refresh(runner, guidance, blocks)
        if init is not None:
            init.write(runner.seed)

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: object, **__: object) -> None:
        """Refresh once in ``interval`` iterations."""
        _, guidance = _guided_model(runner)
        if guidance is not None and self._interval and self.every_n_train_iters(runner, self._interval):
            _refresh(runner, guidance, guidance.blocks)


def _refresh(runner: Runner, guidance: MetricGuidance, blocks: Sequence[int]) -> None:
    hub = runner.message_hub
    changes = list(hub.get_info(ASSIGNMENTS, []))
    for block in blocks:
        assignment = guidance.assignment_of[block]
        if skipped := int(assignment.skipped):
            runner.logger.warning(
                f'Prompt assignment of block {block}: {skipped} batches with inf or nan in their activations were '
                'left out of the class means'
            )
        moved = assignment.refresh(runner.seed)
        prompts = assignment.assignment.tolist()
        unseen = sum(prompt < 0 for prompt in prompts)
        runner.logger.info(
            f'Prompt assignment of block {block}: {len(prompts) - unseen} classes on {len(assignment.centroids)} '
            f'prompts; {moved} moved' + f'; {unseen} not seen yet' * bool(unseen)
        )
        runner.logger.debug(f'Prompt assignment of block {block}: {_name_classes(runner, prompts)}')
        changes.append(dict(iteration=runner.iter, block=block, moved=moved, unseen=unseen, prompts=prompts))
    hub.update_info(ASSIGNMENTS, changes)


def _name_classes(runner: Runner, prompts: Sequence[int]) -> str:
    """``0: sky, tree; 3: road``: the classes of each prompt that has some."""
    classes = runner.train_dataloader.dataset.metainfo.get('classes') or range(len(prompts))
    names: dict[int, list[str]] = {}
    for name, prompt in zip(classes, prompts):
        if prompt >= 0:
            names.setdefault(prompt, []).append(str(name))
    return '; '.join(f'{prompt}: {", ".join(names[prompt])}' for prompt in sorted(names))


def _guided_model(runner: Runner) -> tuple[PromptedEncoderDecoder, MetricGuidance | None]:
    """The model without its wrapper, and its guidance if that takes part in this training or its start."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    guidance = getattr(model, 'guidance', None)
    if guidance is not None and not guidance.enabled and model.backbone.prompts_initialised:
        guidance = None
    return model, guidance


def _batches_per_pass(loader: DataLoader[Any]) -> int:
    return math.ceil(images_per_pass(loader.dataset) / ((loader.batch_size or 1) * get_world_size()))


def _same_data(loader: DataLoader[Any], seed: int) -> Iterator[dict[str, Any]]:
    """The training data from a separate sampler: the sampler of the training must not lose a draw."""
    return iter(
        DataLoader(
            loader.dataset,
            batch_size=loader.batch_size or 1,
            sampler=ReplayableSampler(cast(Sized, loader.dataset), seed=seed),
            num_workers=loader.num_workers,
            timeout=loader.timeout,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
    )


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Restore the random states: training starts from the same ones with and without guidance."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # an eval forward draws nothing on a GPU
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
