"""Cost of guidance, evaluation and data, apart from the trunk."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from torch import Tensor, nn

from mmseg_davpt.guidance import MetricGuidance, patch_class_fractions
from mmseg_davpt.models import PromptedEncoderDecoder
from mmseg_davpt.tuning import BlockActivations

from .goals import table
from .measure import Case, Timed, peak_memory, ratio
from .trunk import build_case
from .workload import TINY, Workload, light_head, samples

PROMPTS = 20
ADE20K_VALIDATION = 2000  # images
MMSEG = "mmseg's loop"


def guidance_cost(workload: Workload, classes: Sequence[int], patches: Sequence[int], timed: Timed) -> dict[str, Any]:
    """Time of the guidance alone over classes x patches, and its share of a step at the workload's size.

    Returns:
        ``cells``: ``classes``, ``patches``, ``seconds``, ``iqr``, ``share`` of a VPT-Deep step where the patches are
        the workload's. ``exponents`` of ``C`` and of ``N`` in ``seconds ~ C^a N^b``, fitted; 1 is proportional.
    """
    step = 'VPT-Deep k/v, M=20'
    patches = sorted({*patches, workload.side**2})
    cells = [(c, n) for c in classes for n in patches]
    runs = {step: build_case(step, workload), **{cell: guidance_case(workload, *cell) for cell in cells}}
    times = timed(runs)
    medians = np.array([times[cell].median for cell in cells])
    powers = np.c_[np.log(cells), np.ones(len(cells))]
    a, b, _ = np.linalg.lstsq(powers, np.log(medians), rcond=None)[0]
    return dict(
        cells=[
            dict(
                classes=c,
                patches=n,
                seconds=times[c, n].median,
                iqr=times[c, n].iqr,
                share=times[c, n].median / times[step].median if n == workload.side**2 else None,
            )
            for c, n in cells
        ],
        step_seconds=times[step].median,
        exponents=dict(classes=a, patches=b),
    )


def guidance_case(workload: Workload, classes: int, patches: int) -> Case:
    """Class fractions, both losses and their backward pass, from random tokens ``(B, N, D)`` of one guided block."""
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f'patches={patches}: expected a square number')
    guidance = MetricGuidance(classes, [PROMPTS], workload.dims)
    guidance.assignments[0].assignment.copy_(torch.arange(classes) % PROMPTS)
    guidance.to(workload.device)
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1))
    weight = (normal(workload.dims, workload.dims) / workload.dims**0.5).to(workload.device)
    shapes = [(workload.batch, patches, workload.dims)] * 2 + [(PROMPTS, workload.dims)]
    leaves = [nn.Parameter(normal(*shape).to(workload.device)) for shape in shapes]
    activations = {0: BlockActivations(*leaves, lambda x, _: F.linear(x, weight))}
    labels = dataclasses.replace(workload, size=side * workload.patch, classes=classes).labels()

    def work() -> None:
        with workload.autocast():
            losses = guidance(activations, patch_class_fractions(labels, workload.patch, classes))
        sum(losses.values()).backward()

    return Case(work, leaves, guidance)


def format_guidance(results: Mapping[str, Any]) -> str:
    """Results of :func:`guidance_cost` as Markdown."""
    rows = []
    for cell in results['cells']:
        share = cell['share'] and f'{100 * cell["share"]:.2f} %'
        product = cell['classes'] * cell['patches']
        rows.append((cell['classes'], cell['patches'], *(1e3 * cell[k] for k in ('seconds', 'iqr')), share))
        rows[-1] += (1e9 * cell['seconds'] / product,)
    a, b = results['exponents'].values()
    return (
        table(('C', 'N', 'ms', 'IQR', 'share of a VPT-Deep step', 'ns per class and patch'), rows)
        + f'\n\nFitted: time ~ C^{a:.2f} N^{b:.2f}; no faster than C*N: {"yes" if max(a, b) <= 1 else "no"}.'
    )


def segmentor_cfg(workload: Workload, kind: str = 'PromptedEncoderDecoder', **options: object) -> ConfigDict:
    """Config of a whole segmentor with a light head."""
    backbone = dict(
        type='PromptedViT',
        arch=workload.arch,
        pretrained=False,
        allow_random=True,
        img_size=workload.side * workload.patch,
        out_indices=workload.activations,
        prompts=dict(num=PROMPTS),
        tuning='vpt_deep',
    )
    options = dict(test_cfg=dict(mode='whole')) | options
    return ConfigDict(
        type=kind, backbone=backbone, decode_head=light_head(workload), **options
    )  # mmseg reads test_cfg.mode


def segmentor(workload: Workload, kind: str = 'PromptedEncoderDecoder', **options: object) -> PromptedEncoderDecoder:
    """The model of :func:`segmentor_cfg`; the same weights for every kind and option."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(segmentor_cfg(workload, kind, **options)).to(workload.device)


def evaluation_case(workload: Workload, image: tuple[int, int], slide_batch: int) -> Case:
    """Prediction of one image with windows of the workload's size, a stride of two thirds; 0 windows: mmseg's loop."""
    test_cfg = dict(mode='slide', crop_size=(workload.size,) * 2, stride=(workload.size * 2 // 3,) * 2)
    if slide_batch:
        test_cfg['slide_batch'] = slide_batch
    model = segmentor(workload, 'PromptedEncoderDecoder' if slide_batch else 'EncoderDecoder', test_cfg=test_cfg).eval()
    x = torch.randn(1, 3, *image, generator=torch.Generator().manual_seed(1)).to(workload.device)
    data = samples(torch.zeros(1, *image, dtype=torch.long, device=workload.device))

    @torch.no_grad()
    def work() -> Tensor:
        with workload.autocast():
            return model.predict(x, data)[0].pred_sem_seg.data

    return Case(work, model=model)


def evaluation_cost(
    workload: Workload, image: tuple[int, int], slide_batches: Sequence[int], timed: Timed, memory: bool = True
) -> dict[str, dict[str, Any]]:
    """Images per second of mmseg's sequential windows and of ``slide_batch``, resizing and argmax included.

    Returns:
        Case -> ``images_per_second``, ``faster`` (times mmseg's rate: ``median``, ``iqr``), ``times``, ``memory``, and
        ``ade20k_minutes`` estimated for its 2000 images.
    """
    builds = {
        f'slide_batch={number}' if number else MMSEG: functools.partial(evaluation_case, workload, image, number)
        for number in (0, *slide_batches)
    }
    times = timed({name: build() for name, build in builds.items()})
    small = dataclasses.replace(workload, arch=TINY, size=64)
    warm = functools.partial(evaluation_case, small, (small.size, small.size), 1)
    return {
        name: dict(
            images_per_second=1 / times[name].median,
            faster=ratio(times[MMSEG].times, times[name].times),
            times=times[name].times,
            memory=peak_memory(build, warm, workload.device) if memory else None,
            ade20k_minutes=ADE20K_VALIDATION * times[name].median / 60,
        )
        for name, build in builds.items()
    }


def format_evaluation(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results of :func:`evaluation_cost` as Markdown."""
    rows = []
    for name, case in results.items():
        rate, memory = case['images_per_second'], f'{case["memory"]["growth"]:.0f}'
        faster = f'{case["faster"]["median"]:.2f}x (IQR {case["faster"]["iqr"]:.3f})'
        rows.append((name, rate, faster, memory, case['ade20k_minutes']))
    head = ('windows', 'images / s', "against mmseg's loop", 'memory, MB', f'{ADE20K_VALIDATION} images, minutes')
    return table(head, rows) + '\n\nMinutes are estimated from the rate; loading images comes on top.'


def data_rate(cfg: Config, number: int, timed: Timed) -> dict[str, Any]:
    """Images per second that one worker loads and augments.

    Args:
        cfg: A config with ``train_dataloader``.
        number: Images per call.
        timed: Measures the calls.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # as in a worker
    cv2.setNumThreads(0)
    try:
        run = {'images': lambda: [dataset[index % len(dataset)] for index in range(number)]}
        measured = timed(run)['images']
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
    batch = cfg.train_dataloader.batch_size
    return dict(images_per_second=number / measured.median, iqr=measured.iqr / measured.median, batch=batch)


def workers(rate: float, batch: int, step_seconds: float) -> int:
    """Number of workers, each of ``rate`` images per second, that feed a step of ``batch`` images."""
    return math.ceil(batch / (rate * step_seconds))


def format_data(results: Mapping[str, Any]) -> str:
    """Results of :func:`data_rate` as Markdown."""
    rate, batch = results['images_per_second'], results['batch']
    rows = list(results['workers'].items())
    text = f'{rate:.1f} images / s per worker (IQR {100 * results["iqr"]:.1f} %), {batch} images per step.\n\n'
    return text + table(('seconds per step', 'workers needed'), rows)
