"""Tests of a checkpoint: single and multi scale, results as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, TestLoop
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS, MODELS

from ..engine import PerClassIoUMetric
from ..version import library_versions


def prepare_test(cfg: Config, multi_scale: bool = False, masks: str | None = None, pictures: str | None = None) -> None:
    """Make the config's ``IoUMetric`` keep the figures of each class, and the test write masks and pictures.

    Args:
        cfg: The config, changed in place.
        multi_scale: Whether :func:`run_multi_scale` will be called.
        masks: Folder for predicted masks (:class:`~mmseg_davpt.engine.MaskWriterHook`); none are written by default.
        pictures: Folder for a picture of each image (:class:`~mmseg_davpt.engine.ComparisonWriterHook`).

    Raises:
        ValueError: ``multi_scale`` without ``tta_pipeline`` and ``tta_model``.
    """
    if multi_scale and not ('tta_pipeline' in cfg and 'tta_model' in cfg):
        raise ValueError('--tta: the config has no tta_pipeline or tta_model')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, Sequence) else [cfg.test_evaluator]
    for metric in (metric for metric in evaluators if _class_of(metric.type) is IoUMetric):
        metric.type = 'mmseg.PerClassIoUMetric'
    for hook, folder in (('MaskWriterHook', masks), ('ComparisonWriterHook', pictures)):
        if folder:
            cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type=hook, out_dir=str(folder))]


def _class_of(kind: str | type) -> type | None:
    metric: type | None = METRICS.get(kind) if isinstance(kind, str) else kind
    return metric


def run_single_scale(runner: Runner, cfg: Config) -> dict[str, Any]:
    """Test with the pipeline of ``test_dataloader`` and with ``model.test_cfg``.

    Args:
        runner: Built from ``cfg``.
        cfg: The config, after :func:`prepare_test`.

    Returns:
        ``protocol``, ``metrics`` (percent) and ``classes`` (``None`` if the config has no ``IoUMetric``).
    """
    metrics = runner.test()
    return _results(cfg.model.test_cfg, cfg.test_dataloader.dataset.pipeline, metrics, runner.test_evaluator)


def run_multi_scale(runner: Runner, cfg: Config) -> dict[str, Any]:
    """Test the model of the runner with ``tta_pipeline``; arguments and result as for :func:`run_single_scale`."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    runner.model = MODELS.build({**cfg.tta_model, 'module': model})
    loader = deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline = cfg.tta_pipeline
    loop = TestLoop(runner, loader, cfg.test_evaluator, fp16=runner.test_loop.fp16)
    return _results(cfg.model.test_cfg, cfg.tta_pipeline, loop.run(), loop.evaluator)


def _results(
    test_cfg: Mapping[str, Any], pipeline: Sequence[Any], metrics: Mapping[str, float], evaluator: Evaluator
) -> dict[str, Any]:
    kept = [metric for metric in evaluator.metrics if isinstance(metric, PerClassIoUMetric) and metric.areas]
    return dict(
        protocol=protocol(test_cfg, pipeline),
        metrics={name: round(float(value), 4) for name, value in metrics.items()},
        classes=kept[0].classes() if kept else None,
    )


def protocol(test_cfg: Mapping[str, Any], pipeline: Sequence[Any]) -> dict[str, Any]:
    """Describe how a test presents images to the model.

    Args:
        test_cfg: ``test_cfg`` of the segmentor.
        pipeline: Test pipeline, or pipeline of the test-time augmentation.

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


def _steps(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
        node = node.get('transforms', ())
    for child in node:
        yield from _steps(child)


def save_results(
    path: str | Path, config: str, checkpoint: str, images: int, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write results as JSON, with config, checkpoint and library versions.

    Args:
        path: File to write; its folder is made.
        config: Path of the config.
        checkpoint: Path of the checkpoint.
        images: Number of images of the test.
        results: Name of a test -> result of :func:`run_single_scale` or :func:`run_multi_scale`.
    """
    versions = library_versions()
    report = dict(config=str(config), checkpoint=str(checkpoint), images=images, versions=versions, **results)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, indent=2) + '\n')
