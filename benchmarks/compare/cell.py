"""One cell of a comparison: train, evaluate, and say what it took."""

from __future__ import annotations

import copy
import json
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import MODELS
from torch import nn

from mmseg_davpt.apis import library_versions, prepare_test, run_single_scale
from mmseg_davpt.reports import count_parameters
from mmseg_davpt.reports.parameters import IN_BACKBONE

from .suite import config_hash

_ATTENTION = ('attention_before', 'attention_after')
FREQUENT = 0.01  # of the labelled pixels that are evaluated on


@HOOKS.register_module()
class PairedHeadsHook(Hook):
    """Give neck and heads the same initial weights for every method that shares a seed.

    Methods draw differently many random numbers while the backbone is built; without this, their heads would differ.
    """

    def before_train(self, runner: Runner) -> None:
        """Initialise them anew, unless the run is resumed."""
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


def run_cell(cfg: Config, method: str, folder: str | Path, keep: bool = False) -> dict:
    """Train and evaluate one cell; goes on from its last checkpoint if it was cut off.

    Args:
        cfg: The cell's config, changed in place.
        method: Its name.
        folder: Its folder; ``row.json`` is written there last.
        keep: Whether to keep the last checkpoint.

    Returns:
        The row.
    """
    folder = Path(folder)
    digest = config_hash(cfg)
    cfg.work_dir, cfg.resume = str(folder), True
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='PairedHeadsHook')]
    cfg.train_cfg.val_begin = cfg.train_cfg.max_iters + 1  # evaluated once, by _evaluate
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_last=True)
    trained = Runner.from_cfg(cfg)
    trained.train()
    memory = _peak_memory()  # of training
    runner, results = _evaluate(cfg, folder)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    metric = next(part for part in runner.test_evaluator.metrics if getattr(part, 'areas', None) is not None)
    hub = trained.message_hub
    row = dict(
        method=method,
        seed=cfg.randomness.seed,
        config_hash=digest,
        mIoU=results['metrics']['mIoU'],
        frequent_mIoU=_frequent(results['classes'], metric.areas[3]),
        aAcc=results['metrics']['aAcc'],
        IoU={part['name']: part['IoU'] for part in results['classes']},
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
    aside = folder / 'row.json.part'
    aside.write_text(json.dumps(row, indent=2) + '\n')
    aside.rename(folder / 'row.json')
    return row


def _evaluate(cfg: Config, folder: Path) -> tuple[Runner, dict]:
    """Test the last checkpoint, as tools/test.py would.

    Not with the runner that trained: one that was resumed and then tests forgets the averaged weights of EMAHook. In
    the checkpoint they stand in the place of the model's own.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.resume, cfg.custom_hooks = find_latest_checkpoint(str(folder)), False, []
    prepare_test(cfg)
    runner = Runner.from_cfg(cfg)
    return runner, run_single_scale(runner, cfg)


def _tuned(model: nn.Module) -> dict[str, float]:
    counts = {part: tuned for part, (tuned, _) in count_parameters(model).items()}
    trunk = sum(parameter.numel() for parameter in model.backbone.trunk.parameters())
    inside = sum(counts[part] for part in IN_BACKBONE)
    return dict(
        tuned_trunk=inside, tuned_heads=sum(counts.values()) - inside, trunk_share=round(100 * inside / trunk, 4)
    )


def _frequent(classes: list[dict], labelled: torch.Tensor) -> float:
    """Mean IoU of the classes that have at least one percent of the labelled pixels."""
    share = labelled / labelled.sum()
    return round(float(np.mean([part['IoU'] for part, own in zip(classes, share) if own >= FREQUENT])), 2)


def _peak_memory() -> int:
    """MB: of the allocator on a GPU, resident in this process on a CPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == 'darwin' else 2**10))
