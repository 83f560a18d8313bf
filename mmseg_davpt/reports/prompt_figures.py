"""Figures of prompt attention: maps over an image, classes against prompts, prompts among patches and prototypes.

Each function takes one entry per model, so that two checkpoints, or one before and after training, stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from .prompt_attention import PromptAttention, PromptSpace

COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442')  # Okabe and Ito, 2008
_GREY = '#B0B0B0'
_DPI = 100  # figures are 12 inches, 1200 pixels, wide
_COLUMNS = 5


def prompt_titles(number: int, assignment: Tensor | None, classes: Sequence[str]) -> list[str]:
    """A title for each of ``number`` prompts: its index, and the classes that are assigned to it."""
    titles = []
    for prompt in range(number):
        names = [] if assignment is None else [classes[i] for i in (assignment == prompt).nonzero().flatten().tolist()]
        more = f' +{len(names) - 2}' if len(names) > 2 else ''
        titles.append(f'{prompt}: {", ".join(names[:2])}{more}' if names else str(prompt))
    return titles


def draw_prompt_maps(
    image: NDArray[np.uint8], models: Mapping[str, tuple[Tensor, Sequence[str]]], path: str | Path
) -> None:
    """Draw the attention to each prompt over an image, one panel per prompt.

    Args:
        image: ``(H, W, 3)``, RGB.
        models: Name of a model -> its maps ``(M, h, w)`` and the titles of its prompts. Panels of one model share
            their color scale, which the figure states.
        path: File to write; its folder is made.
    """
    lines = [math.ceil(len(maps) / _COLUMNS) for maps, _ in models.values()]
    height = 12 / _COLUMNS * image.shape[0] / image.shape[1] + 0.3
    figure = Figure(figsize=(12, sum(lines) * height + 0.9 * len(lines)), layout='constrained')
    gray = image.mean(axis=2)
    parts = figure.subfigures(len(models), 1, squeeze=False, height_ratios=lines)[:, 0]
    for part, number, (name, (maps, titles)) in zip(parts, lines, models.items()):
        top = float(maps.max())
        part.suptitle(f'{name}: attention to each prompt, 0 to {top:.2f}', fontsize=12)
        axes = part.subplots(number, _COLUMNS, squeeze=False).ravel()
        resized = F.interpolate(maps[None].float(), image.shape[:2], mode='bilinear', align_corners=False)[0].numpy()
        for axis, weights, title in zip(axes, resized, titles):
            axis.imshow(gray, cmap='gray', vmin=0, vmax=255)
            axis.imshow(weights, cmap='viridis', vmin=0, vmax=top, alpha=0.65)
            axis.set_title(title, fontsize=9)
        for axis in axes:
            axis.set_axis_off()
    _save(figure, path)


def draw_class_table(models: Mapping[str, PromptAttention], classes: Sequence[str], path: str | Path) -> None:
    """Draw how the attention of each class is spread over the prompts.

    Rows are classes, the most frequent first; classes that do not occur are left out. Each row sums to 1. A ring marks
    the prompt that is assigned to the class.

    Args:
        models: Name of a model -> its attention.
        classes: Name of each class.
        path: File to write; its folder is made.
    """
    first = next(iter(models.values()))
    figure = Figure(figsize=(12, 0.24 * int((first.patches > 0).sum()) + 1.8), layout='constrained')
    plot_class_table(figure, models, classes)
    _save(figure, path)


def plot_class_table(figure: Figure, models: Mapping[str, PromptAttention], classes: Sequence[str]) -> None:
    """What :func:`draw_class_table` draws, into a figure.

    Args:
        figure: An empty figure.
        models: Name of a model -> its attention.
        classes: Name of each class.
    """
    first = next(iter(models.values()))
    order = [index for index in first.patches.argsort(descending=True).tolist() if first.patches[index] > 0]
    axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    share = first.patches / first.patches.sum()
    for axis, (name, attention) in zip(axes, models.items()):
        table = attention.table / attention.table.sum(dim=1, keepdim=True).clamp(min=1e-12)
        picture = axis.imshow(table[order].numpy(), cmap='viridis', vmin=0, aspect='auto')
        figure.colorbar(picture, ax=axis, shrink=0.8, label='share of the attention to prompts')
        if attention.assignment is not None:
            marked = [(row, attention.assignment[index].item()) for row, index in enumerate(order)]
            rows = [row for row, prompt in marked if prompt >= 0]
            prompts = [prompt for _, prompt in marked if prompt >= 0]
            axis.scatter(prompts, rows, s=36, facecolors='none', edgecolors='white', linewidths=1.4)
        figures = attention.describe()
        own = f'own prompt {figures["to_own"]:.1f} %, ' if 'to_own' in figures else ''
        axis.set(title=f'{name}: {own}{figures["bits"]:.2f} bits', xlabel='prompt')
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_yticks(range(len(order)), [f'{classes[i]} ({100 * share[i]:.1f} %)' for i in order], fontsize=8)


def draw_prompt_space(
    models: Mapping[str, PromptSpace], classes: Sequence[str], path: str | Path, method: str = 'pca'
) -> None:
    """Draw prompts, patches and class prototypes as points of a plane.

    All vectors are scaled to unit length, because the guidance compares them by cosine. The most frequent classes have
    colors, the others are gray.

    Args:
        models: Name of a model -> its vectors; each model has a projection of its own.
        classes: Name of each class.
        path: File to write; its folder is made.
        method: ``'pca'``, or ``'umap'``, which needs the package umap-learn.

    Raises:
        ImportError: ``'umap'`` without umap-learn.
        ValueError: Another method.
    """
    if method not in ('pca', 'umap'):
        raise ValueError(f'method={method!r}: expected pca or umap')
    if method == 'umap' and find_spec('umap') is None:
        raise ImportError("method='umap' needs umap-learn: pip install umap-learn")
    figure = Figure(figsize=(12, 6.6 if len(models) > 1 else 9), layout='constrained')
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    frequent = next(iter(models.values())).counts.argsort(descending=True)[: len(COLORS)].tolist()
    colors = {index: COLORS[rank] for rank, index in enumerate(frequent)}
    for axis, (name, space) in zip(axes, models.items()):
        occurring = space.counts > 0
        parts = space.patches, space.prototypes[occurring], space.prompts
        points = _project([F.normalize(part, dim=1).numpy() for part in parts], method)
        of_patch = [colors.get(index, _GREY) for index in space.classes.tolist()]
        axis.scatter(*points[0].T, s=6, c=of_patch, alpha=0.5, linewidths=0)
        for point, index in zip(points[1], occurring.nonzero().flatten().tolist()):
            axis.scatter(*point, s=90, marker='*', color=colors.get(index, _GREY), edgecolors='black', linewidths=0.7)
            axis.annotate(classes[index], point, fontsize=8, xytext=(4, 4), textcoords='offset points')
        used = set() if space.assignment is None else set(space.assignment.tolist())
        filled = ['black' if prompt in used else 'white' for prompt in range(len(points[2]))]
        axis.scatter(*points[2].T, s=36, marker='D', c=filled, edgecolors='black', linewidths=1)
        axis.set(title=name, xticks=[], yticks=[])
    keys = [
        Line2D([], [], ls='', marker='o', color=_GREY, label='patch'),
        Line2D([], [], ls='', marker='*', color=_GREY, markeredgecolor='black', ms=10, label='class prototype'),
        Line2D([], [], ls='', marker='D', color='black', label='prompt with a class'),
        Line2D([], [], ls='', marker='D', color='white', markeredgecolor='black', label='prompt without a class'),
    ]
    figure.legend(handles=keys, loc='outside lower center', ncols=4, frameon=False)
    _save(figure, path)


def _project(parts: Sequence[NDArray[np.float32]], method: str) -> list[NDArray[np.float32]]:
    """Each part ``(n, D)`` -> ``(n, 2)``, by one projection of all; PCA is fitted to the patches and prototypes."""
    ends = np.cumsum([len(part) for part in parts])[:-1]
    if method == 'pca':
        pca = PCA(2, svd_solver='full').fit(np.concatenate(parts[:2]))
        return [pca.transform(part) for part in parts]
    from umap import UMAP

    return np.split(UMAP(random_state=0).fit_transform(np.concatenate(parts)), ends)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
