"""One cell of a comparison: train, evaluate, and record results and cost."""

from __future__ import annotations

import copy
import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import MODELS
from torch import nn

from mmseg_davpt.apis import checked_checkpoints, library_versions, prepare_test, run_single_scale
from mmseg_davpt.reports import count_trainable

from .hashing import config_hash

_ATTENTION = ('attention_before', 'attention_after')
FREQUENT = 0.01  # fraction of the labeled pixels from which a class is a frequent one


@HOOKS.register_module()
class PairedHeadsHook(Hook):
    """Give neck and heads the same initial weights for every method that shares a seed.

    Methods draw different amounts of random numbers while the backbone is built; without this hook their heads would
    start differently.
    """

    def before_train(self, runner: Runner) -> None:
        """Initialize neck and heads again, unless the run is resumed."""
        if runner.iter > 0:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with torch.random.fork_rng():
            for name in ('neck', 'decode_head', 'auxiliary_head'):
                if runner.cfg.model.get(name) is None:
                    continue
                torch.manual_seed(runner.seed)
                fresh = MODELS.build(runner.cfg.model[name])
                if hasattr(fresh, 'init_weights'):  # necks need not be BaseModules
                    fresh.init_weights()
                getattr(model, name).load_state_dict(fresh.state_dict())


def run_cell(cfg: Config, method: str, folder: str | Path, keep: bool = False) -> dict[str, Any]:
    """Train and evaluate one cell; an interrupted one is resumed from its last checkpoint.

    Args:
        cfg: The cell's config, changed in place.
        method: Name of its method.
        folder: Folder of the cell; ``row.json`` is written there last.
        keep: Whether to keep the last checkpoint.

    Returns:
        The row: method, seed and config hash; mIoU, aAcc and IoU per class in percent; tuned parameters; seconds per
        iteration (median) and peak memory in MB; versions and device.
    """
    folder = Path(folder)
    digest = config_hash(cfg)  # before the folder is filled in
    cfg.work_dir, cfg.resume = str(folder), True
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='PairedHeadsHook')]
    if not any(hook['type'] == 'TrainingGuardHook' for hook in cfg.custom_hooks):  # a suite has replaced the hooks
        cfg.custom_hooks.append(dict(type='TrainingGuardHook'))
    cfg.train_cfg.val_begin = cfg.train_cfg.max_iters + 1  # evaluated once, by _evaluate
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_last=True)
    trained = Runner.from_cfg(cfg)
    with checked_checkpoints(trained):
        trained.train()
    memory = _peak_memory()  # of training
    runner, results = _evaluate(cfg, folder)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    metric = next(metric for metric in runner.test_evaluator.metrics if getattr(metric, 'areas', None) is not None)
    hub = trained.message_hub
    row = dict(
        method=method,
        seed=cfg.randomness.seed,
        config_hash=digest,
        mIoU=results['metrics']['mIoU'],
        frequent_mIoU=_frequent(results['classes'], metric.areas[3]),
        aAcc=results['metrics']['aAcc'],
        IoU={row['name']: row['IoU'] for row in results['classes']},
        **_tuned(model),
        **{name: hub.get_info(name) for name in _ATTENTION if name in hub.runtime_info},
        iterations=cfg.train_cfg.max_iters,
        train_images=len(trained.train_dataloader.dataset),
        eval_images=len(runner.test_dataloader.dataset),
        seconds_per_iteration=round(float(np.median(hub.get_scalar('train/time').data[0])), 4),
        peak_memory_mb=memory,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads',
        versions=library_versions(),
    )
    if not keep:
        for checkpoint in folder.glob('*.pth'):
            checkpoint.unlink()
        (folder / 'last_checkpoint').unlink(missing_ok=True)
        for run in folder.glob('*/vis_data'):
            shutil.rmtree(run.parent)
    partial = folder / 'row.json.part'
    partial.write_text(json.dumps(row, indent=2) + '\n')
    partial.rename(folder / 'row.json')
    return row


def _evaluate(cfg: Config, folder: Path) -> tuple[Runner, dict[str, Any]]:
    """Test the last checkpoint, as tools/test.py would.

    The runner that trained is not used: after a resume it tests without the averaged weights of EMAHook. In the
    checkpoint the averaged weights have taken the place of the model's.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.resume, cfg.custom_hooks = find_latest_checkpoint(str(folder)), False, []
    prepare_test(cfg)
    runner = Runner.from_cfg(cfg)
    with checked_checkpoints(runner):
        return runner, run_single_scale(runner, cfg)


def _tuned(model: nn.Module) -> dict[str, float]:
    trunk = sum(parameter.numel() for parameter in model.backbone.trunk.parameters())
    inside, outside = count_trainable(model)
    return dict(tuned_trunk=inside, tuned_heads=outside, trunk_share=round(100 * inside / trunk, 4))


def _frequent(classes: list[dict[str, Any]], labeled: torch.Tensor) -> float:
    """Mean IoU of the frequent classes; ``labeled`` are the pixels of each class, ``(C,)``."""
    fractions = (labeled / labeled.sum()).tolist()
    ious = [row['IoU'] for row, fraction in zip(classes, fractions) if fraction >= FREQUENT]
    return round(float(np.mean(ious)), 2)


def _peak_memory() -> int:
    """In MB: the allocator's on a GPU, the resident set of this process on a CPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == 'darwin' else 2**10))
