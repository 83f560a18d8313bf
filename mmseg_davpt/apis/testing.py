"""What evaluation and inference ask of a checkpoint and a config; test protocols and their results."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import mmcv
import mmengine
import mmseg
import timm
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner, TestLoop
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS, MODELS
from torch import nn

from ..engine import PerClassIoUMetric
from ..version import __version__


def require_complete(model: nn.Module, checkpoint: str | Path) -> None:
    """Refuse a checkpoint that would leave parts of the model random; mmengine would only warn.

    Args:
        model: The segmentor.
        checkpoint: A checkpoint of the whole model. Guidance is not needed for inference, hence may be missing.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Tensors are missing or of another shape; the message names some.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {checkpoint}; training writes it to work_dirs/CONFIG/iter_N.pth')
    state = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
    state = state.get('state_dict', state)
    problems = []
    for name, tensor in model.state_dict().items():
        if name.startswith('guidance.'):
            continue
        if name not in state:
            problems.append(f'{name} is missing')
        elif state[name].shape != tensor.shape:
            problems.append(f'{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}')
    if problems:
        more = f' and {len(problems) - 4} more' if len(problems) > 4 else ''
        raise ValueError(
            f'{checkpoint} does not fit this config: {"; ".join(problems[:4])}{more}. Was it made with another config?'
        )


def prepare_test(cfg: Config, multi_scale: bool = False, masks: str | None = None) -> None:
    """Make the config's ``IoUMetric`` keep its classes, and write masks.

    Args:
        cfg: The config, changed in place.
        multi_scale: Whether :func:`run_multi_scale` follows.
        masks: Folder for predicted masks.

    Raises:
        ValueError: ``multi_scale`` without ``tta_pipeline`` and ``tta_model``, or ``masks`` without an ``IoUMetric``.
    """
    if multi_scale and not ('tta_pipeline' in cfg and 'tta_model' in cfg):
        raise ValueError('--tta: the config has no tta_pipeline or tta_model')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, Sequence) else [cfg.test_evaluator]
    metrics = [metric for metric in evaluators if _class_of(metric.type) is IoUMetric]
    for metric in metrics:
        metric.type = 'mmseg.PerClassIoUMetric'
        if masks:
            metric.output_dir = masks
    if masks and not metrics:
        raise ValueError('--out: IoUMetric writes the masks, but test_evaluator has none')


def _class_of(kind: str | type) -> type | None:
    return METRICS.get(kind) if isinstance(kind, str) else kind


def run_single_scale(runner: Runner, cfg: Config) -> dict:
    """Test as the config's ``test_pipeline`` and ``test_cfg`` say.

    Args:
        runner: Built from ``cfg``.
        cfg: The config, through :func:`prepare_test`.

    Returns:
        ``protocol``, ``metrics`` (percent) and ``classes`` (``None`` if the config has no ``IoUMetric``).
    """
    metrics = runner.test()
    return _results(cfg.model.test_cfg, cfg.test_dataloader.dataset.pipeline, metrics, runner.test_evaluator)


def run_multi_scale(runner: Runner, cfg: Config) -> dict:
    """Test the runner's model as the config's ``tta_pipeline`` says; arguments and result as for a single scale."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    runner.model = MODELS.build({**cfg.tta_model, 'module': model})
    loader = deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline = cfg.tta_pipeline
    loop = TestLoop(runner, loader, cfg.test_evaluator, fp16=cfg.test_cfg.get('fp16', False))
    return _results(cfg.model.test_cfg, cfg.tta_pipeline, loop.run(), loop.evaluator)


def _results(test_cfg: Mapping, pipeline: Sequence[Mapping], metrics: Mapping, evaluator: Evaluator) -> dict:
    kept = [metric for metric in evaluator.metrics if isinstance(metric, PerClassIoUMetric) and metric.areas]
    return dict(
        protocol=protocol(test_cfg, pipeline),
        metrics={name: round(float(value), 4) for name, value in metrics.items()},
        classes=kept[0].classes() if kept else None,
    )


def protocol(test_cfg: Mapping, pipeline: Sequence[Mapping]) -> dict:
    """How images are shown to the model.

    Args:
        test_cfg: The segmentor's.
        pipeline: Test or test-time augmentation pipeline.

    Returns:
        ``mode`` (``whole`` or ``slide``), ``crop_size`` and ``stride`` in pixels (``None`` for ``whole``), ``scales``
        (each a factor, or the size that the image is fitted into), ``flip``.
    """
    steps = list(_steps(pipeline))
    scales = [step.get('scale', step.get('scale_factor')) for step in steps if 'Resize' in str(step['type'])]
    slide = test_cfg.get('mode', 'whole') == 'slide'
    return dict(
        mode='slide' if slide else 'whole',
        crop_size=test_cfg['crop_size'] if slide else None,
        stride=test_cfg['stride'] if slide else None,
        scales=scales or [1.0],
        flip=any('RandomFlip' in str(step['type']) and bool(step.get('prob')) for step in steps),
    )


def _steps(node: object) -> Iterator[Mapping]:
    if isinstance(node, Mapping):
        yield node
        node = node.get('transforms', ())
    for child in node:
        yield from _steps(child)


def draw_predictions(runner: Runner, draw: bool) -> None:
    """Switch the painting of predictions on or off."""
    for hook in runner.hooks:
        if isinstance(hook, SegVisualizationHook):
            hook.draw = draw


def save_results(path: str | Path, config: str, checkpoint: str, images: int, results: Mapping[str, Mapping]) -> None:
    """Write results and what they were computed with, as JSON.

    Args:
        path: File to write.
        config: The config's path.
        checkpoint: The checkpoint's path.
        images: Number of images.
        results: Name of a test -> what :func:`run_single_scale` or :func:`run_multi_scale` returned.
    """
    versions = library_versions()
    report = dict(config=str(config), checkpoint=str(checkpoint), images=images, versions=versions, **results)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, indent=2) + '\n')


def library_versions() -> dict[str, str]:
    """Versions of this project, of what it stands on and of Python, to be kept with every number."""
    libraries = dict(mmseg=mmseg, mmengine=mmengine, mmcv=mmcv, timm=timm, torch=torch)
    versions = {name: str(library.__version__) for name, library in libraries.items()}
    return dict(mmseg_davpt=__version__, **versions, python=platform.python_version())
