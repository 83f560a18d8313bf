"""One batch whose images belong to different tasks: one pass through the trunk, with the methods of each task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from mmseg.models import BaseSegmentor
from torch import Tensor, nn

from ..models import PromptedEncoderDecoder, PromptedViT
from ..tuning import JoinedPrompts, TunedAttention, TunedBlock, TuningMethod
from .description import TaskInfo

Module = TypeVar('Module', bound=nn.Module)
FILL = -1e4  # logit of a class that a task does not have: its probability is 0 in float32, its sums are finite
TASK = 'task'  # key in the meta information of an image


def can_mix(model: BaseSegmentor, other: BaseSegmentor) -> bool:
    """Whether two models can share a batch.

    They must have the same trunk in memory (:func:`~mmseg_davpt.tasks.model.share_trunk`), with no tensor trained in
    place, and the same windows. Methods that work by forward hooks (SSF, shallow prompts) cannot
    mix, as their layers see the whole batch. Heads must give logits per class.
    """
    if not all(isinstance(m, PromptedEncoderDecoder) and m.out_channels > 1 for m in (model, other)):
        return False
    ours, theirs = model.backbone, other.backbone
    tensors = [
        [*vit.trunk.named_parameters(remove_duplicate=False), *vit.trunk.named_buffers()] for vit in (ours, theirs)
    ]
    return (
        len(tensors[0]) == len(tensors[1])
        and all(a == b and one is two for (a, one), (b, two) in zip(*tensors))
        and not any(m._forward_hooks or m._forward_pre_hooks for vit in (ours, theirs) for m in vit.trunk.modules())
        and (ours.norm_outputs, ours.trunk_dtype) == (theirs.norm_outputs, theirs.trunk_dtype)
        and model.align_corners == other.align_corners
        and model.test_cfg == other.test_cfg
    )


def same_inputs(info: TaskInfo, other: TaskInfo) -> bool:
    """Whether two tasks prepare an image of a model's input size in the same way."""
    ours, theirs = (task.model.get('data_preprocessor') or {} for task in (info, other))
    return all(ours.get(key) == theirs.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'test_cfg'))


class MixedSegmentor(PromptedEncoderDecoder):
    """Inference of several models in one batch: the trunk runs once, each head on the images of its task.

    The meta information of each image holds the index of its model under ``'task'``. Logits have the channels of the
    model with the most classes; channels that a task does not have are ``-1e4``.

    Args:
        models: Models in eval mode, each pair of which :func:`can_mix`, for tasks with :func:`same_inputs`.
    """

    models: Sequence[PromptedEncoderDecoder]  # a ModuleList

    def __init__(self, models: Sequence[PromptedEncoderDecoder]) -> None:
        first = models[0]
        BaseSegmentor.__init__(self, data_preprocessor=first.data_preprocessor)
        self.models = nn.ModuleList(models)  # type: ignore[assignment]  # typed by what it holds
        self.test_cfg, self.align_corners, self.decode_head = first.test_cfg, first.align_corners, first.decode_head
        self.out_channels = self.num_classes = max(model.out_channels for model in models)
        self.eval()

    def encode_decode(self, inputs: Tensor, batch_img_metas: Sequence[Mapping[str, Any]]) -> Tensor:
        """Logits ``(B, C, H, W)`` of images ``(B, 3, H, W)``."""
        rows = [[i for i, meta in enumerate(batch_img_metas) if meta[TASK] == t] for t in range(len(self.models))]
        present = [(model, indices) for model, indices in zip(self.models, rows) if indices]
        order = [index for _, indices in present for index in indices]
        maps = forward_mixed([model.backbone for model, _ in present], inputs[order], [len(i) for _, i in present])
        logits = None
        for (model, indices), features in zip(present, maps):
            if model.with_neck:
                features = model.neck(features)
            metas = [batch_img_metas[index] for index in indices]
            part = model.decode_head.predict(features, metas, model.test_cfg)
            if logits is None:
                logits = part.new_full((len(inputs), self.out_channels, *part.shape[2:]), FILL)
            logits[indices, : part.shape[1]] = part
        assert logits is not None
        return logits


def forward_mixed(models: Sequence[PromptedViT], x: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Feature maps of a batch whose images belong to different models on one trunk.

    Args:
        models: Models with the same trunk in memory, in eval mode.
        x: Normalized images, ``(B, 3, H, W)``: first those of the first model, and so on.
        sizes: Number of images of each model.

    Returns:
        For each model, its maps ``(b, D, h, w)``, as its ``forward`` returns them.
    """
    mixed = mix_backbones(models, sizes)
    parts = zip(*(maps.split(list(sizes)) for maps in mixed(x)))
    by_index = [dict(zip(mixed.out_indices, maps)) for maps in parts]
    return [tuple(maps[index] for index in model.out_indices) for model, maps in zip(models, by_index)]


def mix_backbones(models: Sequence[PromptedViT], sizes: Sequence[int]) -> PromptedViT:
    """A backbone for batches with ``sizes[i]`` images of ``models[i]``, in this order; no tensor is copied.

    Frozen layers run once on the whole batch. Where a block has tuning methods, each acts on the images of its model.
    """
    trunk = _copy(models[0].trunk)
    trunk.blocks = nn.Sequential(
        *(_mix_blocks([model.trunk.blocks[index] for model in models], sizes) for index in range(len(trunk.blocks)))
    )
    mixed = _copy(models[0])
    mixed.trunk, mixed.tuned = trunk, nn.ModuleDict()
    mixed.out_indices = tuple(sorted({index for model in models for index in model.out_indices}))
    return mixed


def _copy(module: Module) -> Module:
    """A module with the same children; replacing one leaves the original as it is."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    return new


def _mix_blocks(blocks: Sequence[nn.Module], sizes: Sequence[int]) -> nn.Module:
    if not any(isinstance(block, TunedBlock) or isinstance(block.attn, TunedAttention) for block in blocks):
        return blocks[0]
    methods = _MixedMethods(blocks, sizes)
    plain = next((block for block in blocks if isinstance(block, TunedBlock)), blocks[0])
    mixed = TunedBlock(plain, methods.index)
    mixed.methods = [methods]
    attention = next((block.attn for block in blocks if isinstance(block.attn, TunedAttention)), None)
    if attention is not None:
        mixed.attn = TunedAttention(attention, methods.index, attention.prefix_length)
        mixed.attn.methods = [methods]
    return mixed


class _MixedMethods:
    """The tuning methods of several models on one block; each acts on its rows of the batch.

    Args:
        blocks: The block of each model.
        sizes: Rows of each model.
    """

    active = True

    def __init__(self, blocks: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        self.blocks: Sequence[Any] = blocks
        self.sizes = list(sizes)
        self.methods: list[list[TuningMethod]] = [getattr(block, 'methods', []) for block in blocks]
        self.projections: list[list[TuningMethod]] = [getattr(block.attn, 'methods', []) for block in blocks]
        tuned = [m for block in blocks for m in (block, block.attn) if isinstance(m, (TunedBlock, TunedAttention))]
        self.index: int = tuned[0].index

    def join(self, block: TunedBlock) -> MixedPrompts | None:
        """Prompts of each model."""
        parts = [
            next((prompts for method in methods if (prompts := method.join(tuned)) is not None), None)
            for tuned, methods in zip(self.blocks, self.methods)
        ]
        present = next((part for part in parts if part is not None), None)
        if present is None:
            return None
        return MixedPrompts(present.tokens, present.keys, present.values, tuple(parts), tuple(self.sizes))

    def attention_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """Branches beside the attention."""
        return self._branch(x, lambda method, rows: method.attention_branch(block, rows, grid))

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """Branches beside the MLP."""
        return self._branch(x, lambda method, rows: method.mlp_branch(block, rows, grid))

    def _branch(self, x: Tensor, run: Callable[[TuningMethod, Tensor], Tensor | None]) -> Tensor | None:
        """Sum of the branches of each model, on its rows."""
        sums: list[Tensor | None] = []
        for rows, methods in zip(x.split(self.sizes), self.methods):
            branches = [branch for method in methods if (branch := run(method, rows)) is not None]
            sums.append(torch.stack(branches).sum(0) if branches else None)
        return _join_rows(sums, x.split(self.sizes))

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """Changes of a projection's output."""
        parts = []
        for rows, part, methods in zip(x.split(self.sizes), out.split(self.sizes), self.projections):
            for method in methods:
                part = method.project(block, target, rows, part)
            parts.append(part)
        return torch.cat(parts)


def _join_rows(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor | None:
    """Concatenate rows; zeros, of the shape of ``like``, where there are none."""
    if all(part is None for part in parts):
        return None
    return torch.cat([torch.zeros_like(rows) if part is None else part for part, rows in zip(parts, like)])


@dataclass(frozen=True)
class MixedPrompts(JoinedPrompts):
    """Prompts of several models, each for its rows of the batch.

    Attributes:
        parts: Prompts of each model, or ``None``.
        sizes: Rows of each model.
    """

    parts: tuple[JoinedPrompts | None, ...]
    sizes: tuple[int, ...]

    def attend(self, attention: TunedAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of all queries, ``(B, H, T + N, d)``."""
        outs = []
        rows = zip(q.split(self.sizes), k.split(self.sizes), v.split(self.sizes))
        for part, (q, k, v) in zip(self.parts, rows):
            outs.append(attention.attend(q, k, v, bias) if part is None else part.attend(attention, q, k, v, bias))
        return torch.cat(outs)

    def residual(self, attention: TunedAttention, q: Tensor) -> Tensor | None:
        """What the prompts add to the residual stream, ``(B, T + N, D)``."""
        rows = q.split(self.sizes)
        parts = [None if part is None else part.residual(attention, q) for part, q in zip(self.parts, rows)]
        return _join_rows(parts, [q.transpose(1, 2).flatten(2) for q in rows])
