"""The cases: the same images through one trunk, with every way of tuning."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmseg.models.backbones import VisionTransformer
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_davpt.guidance import MetricGuidance, patch_class_fractions
from mmseg_davpt.models import PromptedViT
from mmseg_davpt.trunks import build_trunk
from mmseg_davpt.trunks.build import SUPPORTED

from .measure import Case, Timed, peak_memory
from .workload import TINY, Workload, light_head, samples, shape


def prompted(
    workload: Workload,
    num: int = 20,
    last: int = 1,
    gate: bool = False,
    prompts: bool = True,
    **options: Any,
) -> PromptedViT:
    """The backbone of this project, with prompts or another method.

    Args:
        workload: Model size and images.
        num: Number of prompts.
        last: The method acts in one of so many parts of the blocks, the last one: 3 for the last third.
        gate: Gated prompts.
        prompts: Whether ``tuning`` has prompts.
        **options: Of the backbone.
    """
    blocks = tuple(range(workload.depth - workload.depth // last, workload.depth))
    prompt_options = dict(num=num, blocks=blocks) | (dict(gate=True) if gate else {})
    if last > 1 and not prompts:
        options['tuning'] = {options['tuning']: dict(blocks=blocks)}
    return PromptedViT(
        workload.arch,
        pretrained=False,
        allow_random=True,
        img_size=workload.side * workload.patch,
        out_indices=workload.activations,
        prompts=prompt_options if prompts else None,
        **options,
    )


class TimmTrunk(nn.Module):
    """timm's unchanged trunk: the bound for prompted ones."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.trunk = build_trunk(workload.arch, workload.side * workload.patch).requires_grad_(False)
        self.activations = list(workload.activations)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Maps ``(B, D, h, w)`` of images ``(B, 3, H, W)``."""
        return self.trunk.forward_intermediates(x, indices=self.activations, norm=True, intermediates_only=True)


def stock(workload: Workload, full: bool = False) -> VisionTransformer:
    """The ViT of mmseg, with the same sizes."""
    block = shape(workload.arch).blocks[0]
    init_default_scope('mmseg')
    model = VisionTransformer(
        img_size=workload.side * workload.patch,
        patch_size=workload.patch,
        patch_bias=True,
        embed_dims=workload.dims,
        num_layers=workload.depth,
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features // workload.dims,
        out_indices=workload.activations,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=block.norm1.eps),
    )
    model.init_weights()
    return model.requires_grad_(full)


class PromptTokens(nn.Module):
    """VPT-Deep in its literal form: each block runs on ``[tokens, P]``, and its outputs for the prompts are dropped.

    The reference of the benchmark. Prompts are last in the sequence: without positions, attention gives the same result
    as with VPT's place behind the class token, and it saves a copy: one concatenation per block.

    Args:
        model: A frozen backbone; its blocks are hooked.
        blocks: The blocks of ``model``; each maps ``(B, T, D)`` to the same shape.
        num: Prompts per block.
        width: ``D``.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], num: int, width: int) -> None:
        super().__init__()
        if any(hasattr(block.attn, 'rotate_half') or hasattr(block.attn, 'window_size') for block in blocks):
            raise ValueError('prompts as tokens need absolute positions: choose another arch')
        self.model = model
        self.prompts = nn.ParameterList(torch.randn(num, width) * 0.02 for _ in blocks)
        for block, prompts in zip(blocks, self.prompts):
            block.register_forward_pre_hook(functools.partial(self._join, prompts))
            block.register_forward_hook(lambda _, __, out: out[:, :-num])

    @staticmethod
    def _join(prompts: Tensor, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.cat([args[0], prompts.expand(len(args[0]), -1, -1)], dim=1), *args[1:]

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Maps ``(B, D, h, w)`` of images ``(B, 3, H, W)``."""
        return self.model(x)


def concatenated(workload: Workload, num: int) -> PromptTokens:
    """Prompts as tokens of the same trunk."""
    model = prompted(workload, tuning='frozen', prompts=False)
    return PromptTokens(model, model.trunk.blocks, num, workload.dims)


def stock_prompted(workload: Workload, num: int = 20) -> PromptTokens:
    """Prompts as tokens of mmseg's ViT."""
    model = stock(workload)
    return PromptTokens(model, model.layers, num, workload.dims)


BFLOAT16 = 'bfloat16'
RESIDUAL: dict[str, Any] = dict(residual_prompts={})  # random prompts: the prototype start costs nothing in a step
# The guidance of guided cases: the paper's, which are the defaults of the class, and that of the recipe of configs/.
GUIDANCE: dict[str, dict[str, Any]] = dict(
    paper={}, recipe=dict(sample_space='query', prompt_space='key', center_prototypes=True)
)

# Name -> the model, its options, and the work: inference, a step, or a step with one kind of guidance.
CASES: dict[str, tuple[Callable[..., nn.Module], Mapping[str, Any], str]] = {
    'timm trunk, inference': (TimmTrunk, {}, 'inference'),
    '20 prompts, inference': (prompted, dict(tuning='vpt_deep'), 'inference'),
    '20 gated prompts, inference': (prompted, dict(tuning='vpt_deep', gate=True), 'inference'),
    '20 residual prompts, inference': (prompted, dict(tuning='vpt_residual'), 'inference'),
    'head only': (prompted, dict(tuning='frozen', prompts=False), 'step'),
    'VPT-Deep tokens, M=20': (concatenated, dict(num=20), 'step'),
    'VPT-Deep tokens, M=100': (concatenated, dict(num=100), 'step'),
    'VPT-Deep k/v, M=10': (prompted, dict(tuning='vpt_deep', num=10), 'step'),
    'VPT-Deep k/v, M=20': (prompted, dict(tuning='vpt_deep'), 'step'),
    'VPT-Deep k/v, M=100': (prompted, dict(tuning='vpt_deep', num=100), 'step'),
    'VPT-Deep k/v, M=20, last half': (prompted, dict(tuning='vpt_deep', last=2), 'step'),
    'VPT-Deep k/v, M=20, last third': (prompted, dict(tuning='vpt_deep', last=3), 'step'),
    'VPT-Deep k/v, M=20, bfloat16 trunk': (prompted, dict(tuning='vpt_deep', trunk_dtype=BFLOAT16), 'step'),
    'VPT-Deep k/v, M=20, with_cp': (prompted, dict(tuning='vpt_deep', with_cp=True), 'step'),
    'DA-VPT': (prompted, dict(tuning='davpt'), 'paper'),
    'DA-VPT+': (prompted, dict(tuning='davpt_plus'), 'paper'),
    'gated DA-VPT': (prompted, dict(tuning='davpt', gate=True), 'recipe'),
    'residual DA-VPT': (prompted, dict(tuning=RESIDUAL), 'recipe'),
    'residual DA-VPT, last half': (prompted, dict(tuning=RESIDUAL, last=2), 'recipe'),
    'residual DA-VPT, last third': (prompted, dict(tuning=RESIDUAL, last=3), 'recipe'),
    'residual DA-VPT, bfloat16 trunk': (prompted, dict(tuning=RESIDUAL, trunk_dtype=BFLOAT16), 'recipe'),
    'residual DA-VPT, last third, bfloat16 trunk': (
        prompted,
        dict(tuning=RESIDUAL, last=3, trunk_dtype=BFLOAT16),
        'recipe',
    ),
    'residual DA-VPT, M=10, and LoRA 6': (prompted, dict(tuning=RESIDUAL | dict(lora=dict(rank=6)), num=10), 'recipe'),
    'bias': (prompted, dict(tuning='bias', prompts=False), 'step'),
    'AdaptFormer': (prompted, dict(tuning='adaptformer', prompts=False), 'step'),
    'AdaptFormer, last half': (prompted, dict(tuning='adaptformer', prompts=False, last=2), 'step'),
    'AdaptFormer, last third': (prompted, dict(tuning='adaptformer', prompts=False, last=3), 'step'),
    'LoRA': (prompted, dict(tuning='lora', prompts=False), 'step'),
    'LoRA, last half': (prompted, dict(tuning='lora', prompts=False, last=2), 'step'),
    'LoRA, last third': (prompted, dict(tuning='lora', prompts=False, last=3), 'step'),
    'LoRA, bfloat16 trunk': (prompted, dict(tuning='lora', prompts=False, trunk_dtype=BFLOAT16), 'step'),
    'full tuning': (prompted, dict(tuning='full', prompts=False), 'step'),
    'mmseg ViT, frozen': (stock, {}, 'step'),
    'mmseg ViT, full': (stock, dict(full=True), 'step'),
    'mmseg ViT, tokens, M=20': (stock_prompted, {}, 'step'),
}


def available_cases() -> list[str]:
    """All cases; without LoRA if peft is not installed."""
    return [name for name in CASES if 'LoRA' not in name or find_spec('peft')]


def build_case(name: str, workload: Workload, weights: dict[object, Any] | None = None) -> Case:
    """Make one of :data:`CASES`.

    Args:
        name: Name of the case.
        workload: Model size, images and device.
        weights: Filled by the first case of a kind of trunk and shared with the others, so that all fit into memory.
            They do not change while time is measured.
    """
    make, options, kind = CASES[name]
    torch.manual_seed(0)
    model = make(workload, **options).to(workload.device)
    model.train(kind != 'inference')  # mmseg's ViT returns nothing here
    if weights is not None:
        _share(model, weights)
    images = workload.images()
    if kind == 'inference':
        return Case(functools.partial(_infer, model, images, workload), model=model)
    torch.manual_seed(0)  # models draw different amounts of random numbers
    gradients = torch.randn(workload.batch, workload.dims, workload.side, workload.side).to(workload.device)
    head = guidance = None
    if kind in GUIDANCE:
        guidance = MetricGuidance(workload.classes, model.prompt_counts, model.embed_dims, **GUIDANCE[kind])
        for assignment in guidance.assignments:
            assignment.assignment.copy_(torch.arange(workload.classes) % len(assignment.centroids))
        guidance.to(workload.device)
    if workload.head:
        init_default_scope('mmseg')
        head = MODELS.build(light_head(workload)).to(workload.device).train()
    modules = [module for module in (model, head) if module is not None]
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    step = functools.partial(_step, model, guidance, head, images, workload.labels(), gradients, workload)
    return Case(step, trainable, model)


def _share(model: nn.Module, weights: dict[object, Any]) -> None:
    kind = getattr(model, 'trunk_dtype', None)
    for module in model.modules():
        if isinstance(module, (*SUPPORTED, VisionTransformer)):
            key = (type(module), kind) if kind == BFLOAT16 else type(module)
            module.load_state_dict(weights.setdefault(key, module.state_dict()), assign=True)


@torch.no_grad()
def _infer(model: nn.Module, images: Tensor, workload: Workload) -> Sequence[Tensor]:
    with workload.autocast():
        return model(images)


def _step(
    model: nn.Module,
    guidance: MetricGuidance | None,
    head: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    gradients: Tensor,
    workload: Workload,
) -> None:
    """Forward and backward, as in ``PromptedEncoderDecoder.loss``."""
    with workload.autocast():
        with nullcontext({}) if guidance is None else model.record(guidance.blocks) as activations:
            maps = model(images)
        losses = []
        if guidance is not None:
            losses += guidance(activations, patch_class_fractions(labels, workload.patch, workload.classes)).values()
        if head is not None:
            losses.append(head.loss(maps, samples(labels), {})['loss_ce'])
    roots = [(loss, None) for loss in losses]
    if head is None:
        roots += [(out, gradients.to(out.dtype)) for out in maps if out.requires_grad]
    if roots:
        torch.autograd.backward(*zip(*roots))


def trunk_cost(
    workload: Workload, names: Sequence[str], timed: Timed, memory: bool = True
) -> dict[str, dict[str, Any]]:
    """Time the cases together, then measure the memory of each by itself.

    Returns:
        Case -> ``seconds`` (median), ``iqr``, ``times`` (one per round), ``trainable`` (number of trainable parameters,
        light head included) and ``memory`` (MB; ``None`` without ``memory``).
    """
    weights: dict[object, Any] = {}
    cases = {name: build_case(name, workload, weights) for name in names}
    times = timed(cases)
    trainable = {name: sum(p.numel() for p in case.trainable) for name, case in cases.items()}
    del cases, weights
    gc.collect()  # hooks make cycles
    torch.cuda.empty_cache()
    small = dataclasses.replace(workload, arch=TINY, size=64, batch=1)
    results = {}
    for name in names:
        builds = functools.partial(build_case, name, workload), functools.partial(build_case, name, small)
        results[name] = dict(
            seconds=times[name].median,
            iqr=times[name].iqr,
            times=times[name].times,
            trainable=trainable[name],
            memory=peak_memory(*builds, workload.device) if memory else None,
        )
    return results
