"""Images per second of validation and of ``tools/infer.py`` against mmseg's own loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmseg.apis import inference_model, init_model, show_result_pyplot

from mmseg_davpt.apis.inference import segment_images

from .components import MMSEG, segmentor, segmentor_cfg
from .goals import table
from .measure import Timed, ratio
from .workload import Workload, samples

MODES = ('whole', 'slide')
FILES = 4  # images of a call
OVERLAYS = f'{MMSEG}, with overlays'
PREPROCESSOR = dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True)


def prediction_cost(workload: Workload, image: tuple[int, int], timed: Timed) -> list[dict[str, Any]]:
    """Images per second, whole and in windows of the workload's size with a stride of two thirds.

    ``validation`` is ``test_step`` and the metric. ``files`` loads a checkpoint, reads JPEG files, predicts and writes
    masks; ``segment_images`` writes overlays, too.

    Args:
        workload: Model size, precision and device.
        image: Height and width of the images in pixels.
        timed: Measures runs in turn.

    Returns:
        Rows with ``work``, ``mode``, ``case``, ``images_per_second``, ``faster`` (times mmseg's rate: ``median``,
        ``iqr``).
    """
    rows = []
    with TemporaryDirectory() as folder:
        for mode in MODES:
            cases = dict(
                validation=validation_cases(workload, image, mode),
                files=file_cases(workload, image, mode, Path(folder)),
            )
            times = timed({(work, name): run for work, runs in cases.items() for name, run in runs.items()})
            for (work, name), measured in times.items():
                number = FILES if work == 'files' else 1
                faster = ratio(times[work, MMSEG].times, measured.times)
                rate = dict(images_per_second=number / measured.median, faster=faster)
                rows.append(dict(work=work, mode=mode, case=name, **rate))
    return sorted(rows, key=lambda row: row['work'], reverse=True)


def _test_cfg(workload: Workload, mode: str) -> ConfigDict:
    windows = dict(crop_size=(workload.size,) * 2, stride=(workload.size * 2 // 3,) * 2)
    return ConfigDict(mode=mode, **windows if mode == 'slide' else {})


def validation_cases(workload: Workload, image: tuple[int, int], mode: str) -> dict[str, Callable[[], object]]:
    """Name -> the prediction of one image and its part in the metric; returns the predicted classes ``(1, H, W)``."""
    pixels = torch.randint(256, (3, *image), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(1, *image, dtype=torch.long)
    kinds = {MMSEG: ('EncoderDecoder', 'IoUMetric'), 'PromptedEncoderDecoder': (None, 'PerClassIoUMetric')}

    def work(model: Any, evaluator: Evaluator) -> torch.Tensor:
        with torch.no_grad(), workload.autocast():
            results = model.test_step(dict(inputs=[pixels], data_samples=samples(labels)))
        evaluator.process(results)
        evaluator.metrics[0].results.clear()
        return results[0].pred_sem_seg.data

    runs = {}
    for name, (kind, metric) in kinds.items():
        options = dict(test_cfg=_test_cfg(workload, mode), data_preprocessor=PREPROCESSOR)
        model = segmentor(workload, kind or name, **options).eval()
        evaluator = Evaluator(dict(type=metric))
        evaluator.dataset_meta = _dataset_meta(workload)
        runs[name] = functools.partial(work, model, evaluator)
    return runs


def file_cases(workload: Workload, image: tuple[int, int], mode: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> the work from a checkpoint and :data:`FILES` images to masks in a subfolder of ``folder``."""
    options = dict(test_cfg=_test_cfg(workload, mode), data_preprocessor=PREPROCESSOR)
    model = segmentor(workload, **options)
    checkpoint = folder / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=_dataset_meta(workload))), checkpoint)
    random = np.random.default_rng(0)
    images = [folder / f'{index}.jpg' for index in range(FILES)]
    for path in images:
        small = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(small, image[::-1], interpolation=cv2.INTER_CUBIC))
    resize = dict(type='Resize', scale=(4 * min(image), min(image)), keep_ratio=True)
    cfg = Config(
        dict(
            model=segmentor_cfg(workload, **options),
            test_pipeline=[dict(type='LoadImageFromFile'), resize, dict(type='PackSegInputs')],
        )
    )
    stock = cfg.copy()
    stock.model.type = 'EncoderDecoder'

    def mmseg(name: str, overlays: bool) -> None:
        loaded = init_model(stock, str(checkpoint), device=workload.device)
        out = folder / name
        out.mkdir(exist_ok=True)
        for path in images:
            with workload.autocast():
                result = inference_model(loaded, str(path))
            cv2.imwrite(str(out / f'{path.stem}.png'), result.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8))
            if overlays:
                show_result_pyplot(loaded, str(path), result, show=False, out_file=str(out / path.name))

    def ours() -> None:
        with workload.autocast():
            failed = segment_images(cfg, checkpoint, images, folder / 'ours', device=workload.device)
        if failed:
            raise RuntimeError(f'segment_images failed: {failed}')

    return {
        MMSEG: functools.partial(mmseg, 'mmseg', False),
        OVERLAYS: functools.partial(mmseg, 'overlays', True),
        'tools/infer.py': ours,
    }


def _dataset_meta(workload: Workload) -> dict[str, Any]:
    colors = np.random.default_rng(1).integers(0, 256, (workload.classes, 3)).tolist()
    return dict(classes=[f'class {index}' for index in range(workload.classes)], palette=colors)


def format_prediction(rows: list[Mapping[str, Any]]) -> str:
    """Results of :func:`prediction_cost` as Markdown."""
    lines = []
    for row in rows:
        faster = f'{row["faster"]["median"]:.2f}x (IQR {row["faster"]["iqr"]:.3f})'
        lines.append((row['work'], row['mode'], row['case'], row['images_per_second'], faster))
    text = table(('work', 'image', 'code', 'images / s', "against mmseg's loop"), lines)
    return text + (
        f'\n\n`files`: {FILES} JPEG files and the checkpoint, which each call loads. mmseg: `init_model`, '
        '`inference_model`, a mask per image, and overlays by `show_result_pyplot`. `tools/infer.py` writes masks, and '
        'overlays with legends.'
    )
