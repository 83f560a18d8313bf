"""Guidance, evaluation and data: what they cost apart from the trunk."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

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


def guidance_cost(load: Workload, classes: Sequence[int], patches: Sequence[int], timed: Timed) -> dict:
    """Time of the guidance alone over classes x patches, and its share of a step at the workload's own size.

    Returns:
        ``cells``: ``classes``, ``patches``, ``seconds``, ``iqr``, ``share`` of a VPT-Deep step where the patches are
        the workload's. ``exponents`` of ``C`` and of ``N`` in ``seconds ~ C^a N^b``, fitted; 1 is proportional.
    """
    step = 'VPT-Deep k/v, M=20'
    patches = sorted({*patches, load.side**2})
    cells = [(c, n) for c in classes for n in patches]
    runs = {step: build_case(step, load), **{cell: guidance_case(load, *cell) for cell in cells}}
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
                share=times[c, n].median / times[step].median if n == load.side**2 else None,
            )
            for c, n in cells
        ],
        step_seconds=times[step].median,
        exponents=dict(classes=a, patches=b),
    )


def guidance_case(load: Workload, classes: int, patches: int) -> Case:
    """Label shares, both losses and their backward, from made-up tokens ``(B, N, D)`` of one guided block."""
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f'patches={patches}: expected a square number')
    guidance = MetricGuidance(classes, [PROMPTS], load.dims)
    guidance.assignments[0].assignment.copy_(torch.arange(classes) % PROMPTS)
    guidance.to(load.device)
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1))
    weight = (draw(load.dims, load.dims) / load.dims**0.5).to(load.device)
    shapes = [(load.batch, patches, load.dims)] * 2 + [(PROMPTS, load.dims)]
    leaves = [nn.Parameter(draw(*shape).to(load.device)) for shape in shapes]
    activations = {0: BlockActivations(*leaves, lambda x, _: F.linear(x, weight))}
    labels = dataclasses.replace(load, size=side * load.patch, classes=classes).labels()

    def work() -> None:
        with load.autocast():
            losses = guidance(activations, patch_class_fractions(labels, load.patch, classes))
        sum(losses.values()).backward()

    return Case(work, leaves, guidance)


def format_guidance(found: Mapping) -> str:
    """In Markdown."""
    rows = []
    for cell in found['cells']:
        share = cell['share'] and f'{100 * cell["share"]:.2f} %'
        product = cell['classes'] * cell['patches']
        rows.append((cell['classes'], cell['patches'], *(1e3 * cell[k] for k in ('seconds', 'iqr')), share))
        rows[-1] += (1e9 * cell['seconds'] / product,)
    a, b = found['exponents'].values()
    return (
        table(('C', 'N', 'ms', 'IQR', 'share of a VPT-Deep step', 'ns a class and patch'), rows)
        + f'\n\nFitted: time ~ C^{a:.2f} N^{b:.2f}; no faster than C*N: {"yes" if max(a, b) <= 1 else "no"}.'
    )


def segmentor(load: Workload, kind: str = 'PromptedEncoderDecoder', **options: object) -> PromptedEncoderDecoder:
    """A whole segmentor with a light head; the same weights for every kind and option."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    backbone = dict(
        type='PromptedViT',
        arch=load.arch,
        pretrained=False,
        allow_random=True,
        img_size=load.side * load.patch,
        out_indices=load.activations,
        prompts=dict(num=PROMPTS),
        tuning='vpt_deep',
    )
    options = dict(test_cfg=dict(mode='whole')) | options
    cfg = ConfigDict(type=kind, backbone=backbone, decode_head=light_head(load), **options)  # mmseg reads test_cfg.mode
    return MODELS.build(cfg).to(load.device)


def evaluation_case(load: Workload, image: tuple[int, int], slide_batch: int) -> Case:
    """Prediction of one image with windows of the workload's size, a stride of two thirds; 0 windows: mmseg's loop."""
    test_cfg = dict(mode='slide', crop_size=(load.size,) * 2, stride=(load.size * 2 // 3,) * 2)
    if slide_batch:
        test_cfg['slide_batch'] = slide_batch
    model = segmentor(load, 'PromptedEncoderDecoder' if slide_batch else 'EncoderDecoder', test_cfg=test_cfg).eval()
    x = torch.randn(1, 3, *image, generator=torch.Generator().manual_seed(1)).to(load.device)
    data = samples(torch.zeros(1, *image, dtype=torch.long, device=load.device))

    @torch.no_grad()
    def work() -> Tensor:
        with load.autocast():
            return model.predict(x, data)[0].pred_sem_seg.data

    return Case(work, model=model)


def evaluation_cost(load: Workload, image: tuple[int, int], slide_batches: Sequence[int], timed: Timed) -> dict:
    """Images a second of mmseg's sequential windows and of ``slide_batch``, resizing and argmax included.

    Returns:
        Case -> ``images_per_second``, ``faster`` (times mmseg's rate: ``median``, ``iqr``), ``times``, ``memory``, and
        ``ade20k_minutes`` estimated for its 2000 images.
    """
    builds = {
        f'slide_batch={number}' if number else MMSEG: functools.partial(evaluation_case, load, image, number)
        for number in (0, *slide_batches)
    }
    times = timed({name: build() for name, build in builds.items()})
    small = dataclasses.replace(load, arch=TINY, size=64)
    warm = functools.partial(evaluation_case, small, (small.size, small.size), 1)
    return {
        name: dict(
            images_per_second=1 / times[name].median,
            faster=ratio(times[MMSEG].times, times[name].times),
            times=times[name].times,
            memory=peak_memory(build, warm, load.device),
            ade20k_minutes=ADE20K_VALIDATION * times[name].median / 60,
        )
        for name, build in builds.items()
    }


def format_evaluation(found: Mapping[str, Mapping]) -> str:
    """In Markdown."""
    rows = []
    for name, own in found.items():
        rate, memory = own['images_per_second'], f'{own["memory"]["growth"]:.0f}'
        faster = f'{own["faster"]["median"]:.2f}x (IQR {own["faster"]["iqr"]:.3f})'
        rows.append((name, rate, faster, memory, own['ade20k_minutes']))
    head = ('windows', 'images / s', "against mmseg's loop", 'memory, MB', f'{ADE20K_VALIDATION} images, minutes')
    return table(head, rows) + '\n\nMinutes are estimated from the rate; loading images comes on top.'


def data_rate(cfg: Config, number: int, timed: Timed) -> dict:
    """Images a second that one worker loads and augments.

    Args:
        cfg: A config with ``train_dataloader``.
        number: Images of a call.
        timed: Times it.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # as in a worker
    cv2.setNumThreads(0)
    try:
        run = {'images': lambda: [dataset[index % len(dataset)] for index in range(number)]}
        found = timed(run)['images']
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
    batch = cfg.train_dataloader.batch_size
    return dict(images_per_second=number / found.median, iqr=found.iqr / found.median, batch=batch)


def workers(rate: float, batch: int, step_seconds: float) -> int:
    """How many workers of ``rate`` images a second feed a step of ``batch`` images."""
    return math.ceil(batch / (rate * step_seconds))


def format_data(found: Mapping) -> str:
    """In Markdown."""
    rate, batch = found['images_per_second'], found['batch']
    rows = list(found['workers'].items())
    text = f'{rate:.1f} images / s a worker (IQR {100 * found["iqr"]:.1f} %), {batch} images a step.\n\n'
    return text + table(('seconds a step', 'workers needed'), rows)
