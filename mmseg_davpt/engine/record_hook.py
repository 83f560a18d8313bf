"""``RunRecordHook``: what a report of a run needs and mmengine does not keep."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from mmengine.utils.dl_utils import collect_env
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor

from ..files import write_atomically
from ..options import check_integer
from ..reports.parameters import count_parameters
from ..version import library_versions
from .assignment_hook import ASSIGNMENTS
from .attention_hook import ATTENTION

RECORD = 'run_record.json'
IMAGES = 'run_record'
_LONGEST = 640  # pixels of the longer side of a stored image


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Write ``WORK_DIR/run_record.json``, and a few images to ``WORK_DIR/run_record``, for ``tools/report.py``.

    The record holds the command, environment, parameters, classes, the figures of each validation, and of the last one
    the confusion matrix, the score of each image, and the images that came out worst and best. It is written at the
    start, after each validation and at the end. A resumed run continues it. A record that cannot be written is a
    warning.

    Args:
        num_images: How many of the worst and of the best images are stored.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 4) -> None:
        self.num_images = check_integer('RunRecordHook.num_images', num_images, low=0)
        self._record: dict[str, Any] = {}
        self._confusion: Tensor | None = None  # (C, C), rows are the truth; of this rank
        self._scores: list[tuple[str, float, float]] = []  # path, mIoU and accuracy of each image of this rank
        self._shown: list[dict[str, Any]] = []  # the worst and best images of this rank
        self._seen = 0  # images that this rank has seen in a validation
        self._started = self._before = 0.0  # seconds

    def before_train(self, runner: Runner) -> None:
        """Write what is known before the first iteration."""
        self._started = time.monotonic()
        if not is_main_process():
            return
        earlier = _read(Path(runner.work_dir, RECORD)) if runner.iter else {}
        self._before = float(earlier.get('seconds', 0.0))
        validations = [one for one in earlier.get('validations', []) if one['iteration'] <= runner.iter]
        kept: dict[str, Any] = {
            key: earlier[key] for key in ('confusion', 'images', 'shown') if key in earlier and validations
        }
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        meta = runner.train_dataloader.dataset.metainfo
        self._record = dict(
            version=1,
            config=str(runner.cfg.filename or ''),
            command=sys.argv,
            seed=runner.seed,
            iterations=runner.max_iters,
            training_images=len(runner.train_dataloader.dataset),
            batch_size=runner.train_dataloader.batch_size,
            ranks=get_world_size(),
            classes=list(meta.get('classes') or ()),
            palette=[list(color) for color in meta.get('palette') or ()],
            parameters={part: list(counts) for part, counts in count_parameters(model).items()},
            trunk=_describe_trunk(model),
            versions=library_versions(),
            environment={key: str(value) for key, value in collect_env().items()},
            validations=validations,
            **kept,
        )
        self._write(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the last validation."""
        self._confusion, self._scores, self._shown, self._seen = None, [], [], 0

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        """Count the pixels of each class that were taken for each class."""
        dataset = runner.val_dataloader.dataset
        number = len(dataset.metainfo.get('classes') or ())
        for sample in outputs or ():
            position = self._seen * get_world_size() + get_rank()
            self._seen += 1
            if position >= len(dataset) or not number or 'gt_sem_seg' not in sample:
                continue  # the sampler fills up the last batch of the ranks
            truth, prediction = sample.gt_sem_seg.data.squeeze(0), sample.pred_sem_seg.data.squeeze(0)
            truth = truth.to(prediction.device)
            counted = (truth != getattr(dataset, 'ignore_index', 255)) & (truth >= 0) & (truth < number)
            pairs = truth[counted].long() * number + prediction[counted].long().clamp(0, number - 1)
            table = torch.bincount(pairs, minlength=number * number).reshape(number, number)
            self._confusion = table if self._confusion is None else self._confusion + table
            ious = class_ious(table)
            present = ious[~ious.isnan()]
            if len(present):
                path = str(sample.metainfo.get('img_path', f'image {position}'))
                score, accuracy = present.mean().item(), (100 * table.diagonal().sum() / table.sum()).item()
                self._scores.append((path, round(score, 2), round(accuracy, 2)))
                self._keep(dict(path=path, score=score, truth=truth, prediction=prediction))

    def _keep(self, image: dict[str, Any]) -> None:
        """Keep an image for as long as it is among the worst or the best."""
        kept = sorted([*self._shown, image], key=lambda one: one['score'])
        if len(kept) > 2 * self.num_images:
            del kept[self.num_images]
        for one in kept:
            if one is image:
                image.update(truth=_as_array(image['truth']), prediction=_as_array(image['prediction']))
        self._shown = kept

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Add the validation to the record, and write it."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        if self._confusion is not None:
            all_reduce(self._confusion)
        scores = [score for part in all_gather_object(self._scores) for score in part]
        shown = sorted((one for part in all_gather_object(self._shown) for one in part), key=lambda one: one['score'])
        if not is_main_process():
            return
        figures = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, Real)}
        self._record.setdefault('validations', []).append(
            dict(iteration=runner.iter, metrics=figures, classes=self.class_ious())
        )
        images = [dict(path=path, mIoU=score, aAcc=accuracy) for path, score, accuracy in scores]
        self._record['images'] = images
        if self._confusion is not None:
            self._record['confusion'] = self._confusion.tolist()
        half = min(self.num_images, len(shown) // 2)
        groups = dict(worst=shown[:half], best=shown[::-1][:half])
        self._record['shown'] = {
            name: [self._store(runner, f'{name}_{rank}', one) for rank, one in enumerate(group)]
            for name, group in groups.items()
        }
        self._write(runner)

    def after_train(self, runner: Runner) -> None:
        """Write the record with time and memory."""
        if is_main_process():
            self._write(runner)

    def class_ious(self) -> dict[str, float | None]:
        """IoU of each class in the last validation, in percent; ``None`` for a class that does not occur."""
        if self._confusion is None or not self._record.get('classes'):
            return {}
        values = class_ious(self._confusion).tolist()
        return {name: None if iou != iou else round(iou, 2) for name, iou in zip(self._record['classes'], values)}

    def _store(self, runner: Runner, name: str, one: Mapping[str, Any]) -> dict[str, Any]:
        """Write an image and its masks; return their names and the score."""
        entry = dict(path=one['path'], mIoU=round(one['score'], 2))
        height, width = one['truth'].shape
        factor = min(1.0, _LONGEST / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        try:
            image = cv2.resize(mmcv.imread(one['path']), size, interpolation=cv2.INTER_AREA)
            pictures = dict(image=('.jpg', image))
            for kind in ('truth', 'prediction'):
                pictures[kind] = '.png', cv2.resize(one[kind], size, interpolation=cv2.INTER_NEAREST)
            for kind, (suffix, picture) in pictures.items():
                file = f'{IMAGES}/{name}_{kind}{suffix}'
                write_atomically(Path(runner.work_dir, file), cv2.imencode(suffix, picture)[1].tobytes())
                entry[kind] = file
        except (OSError, cv2.error) as error:  # an image that is gone must not end a training
            runner.logger.warning(f'{RECORD}: {one["path"]} is left out: {error}')
        return entry

    def _write(self, runner: Runner) -> None:
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        self._record.update(
            done=runner.iter,
            seconds=round(self._before + time.monotonic() - self._started, 1),
            peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # bytes; Linux counts kilobytes
            peak_gpu_memory=gpu,
            assignments=runner.message_hub.get_info(ASSIGNMENTS, []),
            attention=runner.message_hub.get_info(ATTENTION, {}),
        )
        try:
            write_atomically(Path(runner.work_dir, RECORD), json.dumps(self._record).encode())
        except OSError as error:  # must not end a training
            runner.logger.warning(error)


def class_ious(confusion: Tensor) -> Tensor:
    """IoU of each class in percent, ``(C,)`` float64, nan where a class occurs nowhere.

    Args:
        confusion: Pixels by truth (rows) and prediction, ``(C, C)``.
    """
    hits = confusion.diagonal().double()
    return 100 * hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def _as_array(labels: Tensor) -> NDArray[np.uint16]:
    return labels.clamp(0, 65535).cpu().numpy().astype(np.uint16)


def _describe_trunk(model: Any) -> dict[str, Any]:
    backbone = model.backbone
    return dict(
        name=getattr(backbone, 'arch', type(backbone).__name__),
        pretrained=getattr(backbone, 'pretrained', None),
        methods=list(getattr(backbone, 'tuned', {})),
        prompts=list(getattr(backbone, 'prompt_counts', ())),
        guided=list(model.guidance.blocks) if getattr(model, 'guidance', None) is not None else [],
    )


def _read(path: Path) -> dict[str, Any]:
    """The record of an earlier part of the training; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
