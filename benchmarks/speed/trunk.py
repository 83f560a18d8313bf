"""The cases: the same images through one trunk, tuned in every way."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec

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


def prompted(load: Workload, num: int = 20, late: bool = False, gate: bool = False, **options: object) -> PromptedViT:
    """Our backbone; ``late`` puts the prompts into the last third of the blocks, ``gate`` behind gates."""
    blocks = tuple(range(load.depth - load.depth // 3, load.depth)) if late else 'all'
    return PromptedViT(
        load.arch,
        pretrained=False,
        allow_random=True,
        img_size=load.side * load.patch,
        out_indices=load.activations,
        prompts=dict(num=num, blocks=blocks, gate=gate),
        **options,
    )


class TimmTrunk(nn.Module):
    """timm's trunk as it is: the bound of what a prompted one can reach."""

    def __init__(self, load: Workload) -> None:
        super().__init__()
        self.trunk = build_trunk(load.arch, load.side * load.patch).requires_grad_(False)
        self.activations = list(load.activations)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Maps ``(B, D, h, w)`` of images ``(B, 3, H, W)``."""
        return self.trunk.forward_intermediates(x, indices=self.activations, norm=True, intermediates_only=True)


def stock(load: Workload, full: bool = False) -> VisionTransformer:
    """The ViT of mmseg itself, of the same shape."""
    block = shape(load.arch).blocks[0]
    init_default_scope('mmseg')
    model = VisionTransformer(
        img_size=load.side * load.patch,
        patch_size=load.patch,
        patch_bias=True,
        embed_dims=load.dims,
        num_layers=load.depth,
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features // load.dims,
        out_indices=load.activations,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=block.norm1.eps),
    )
    model.init_weights()
    return model.requires_grad_(full)


class PromptTokens(nn.Module):
    """VPT-Deep word for word: each block runs on ``[tokens, P]``, what comes out for the prompts is dropped.

    The reference of the benchmark. Prompts stand last, which attention without positions cannot tell from VPT's place
    behind the class token, and which spares a copy: one concatenation a block.

    Args:
        model: A frozen backbone; its blocks are hooked.
        blocks: They map ``(B, T, D)`` to the same shape.
        num: Prompts a block.
        width: ``D``.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], num: int, width: int) -> None:
        super().__init__()
        if any(hasattr(block.attn, 'rotate_half') or hasattr(block.attn, 'window_size') for block in blocks):
            raise ValueError('prompts as tokens are written for absolute positions: choose an arch that has them')
        self.model = model
        self.prompts = nn.ParameterList(torch.randn(num, width) * 0.02 for _ in blocks)
        for block, own in zip(blocks, self.prompts):
            block.register_forward_pre_hook(functools.partial(self._join, own))
            block.register_forward_hook(lambda _, __, out: out[:, :-num])

    @staticmethod
    def _join(prompts: Tensor, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.cat([args[0], prompts.expand(len(args[0]), -1, -1)], dim=1), *args[1:]

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Maps ``(B, D, h, w)`` of images ``(B, 3, H, W)``."""
        return self.model(x)


def concatenated(load: Workload, num: int) -> PromptTokens:
    """Prompts as tokens of the same trunk."""
    model = prompted(load, tuning='frozen')
    return PromptTokens(model, model.trunk.blocks, num, load.dims)


def stock_prompted(load: Workload, num: int = 20) -> PromptTokens:
    """Prompts as tokens of mmseg's ViT."""
    model = stock(load)
    return PromptTokens(model, model.layers, num, load.dims)


# The guidance of guided cases: the class's defaults are the paper's.
GUIDANCE = dict(paper={}, recipe=dict(sample_space='query', prompt_space='key', center_prototypes=True))

# Name -> the model, its options, and what it does: infer, step, or step with one of the guidances.
CASES: dict[str, tuple[Callable[..., nn.Module], Mapping, str]] = {
    'timm trunk, inference': (TimmTrunk, {}, 'inference'),
    '20 prompts, inference': (prompted, dict(tuning='vpt_deep'), 'inference'),
    '20 prompts behind gates, inference': (prompted, dict(tuning='vpt_deep', gate=True), 'inference'),
    'head only': (prompted, dict(tuning='frozen'), 'step'),
    'VPT-Deep tokens, M=20': (concatenated, dict(num=20), 'step'),
    'VPT-Deep tokens, M=100': (concatenated, dict(num=100), 'step'),
    'VPT-Deep k/v, M=10': (prompted, dict(tuning='vpt_deep', num=10), 'step'),
    'VPT-Deep k/v, M=20': (prompted, dict(tuning='vpt_deep'), 'step'),
    'VPT-Deep k/v, M=100': (prompted, dict(tuning='vpt_deep', num=100), 'step'),
    'VPT-Deep k/v, M=20, last third': (prompted, dict(tuning='vpt_deep', late=True), 'step'),
    'VPT-Deep k/v, M=20, with_cp': (prompted, dict(tuning='vpt_deep', with_cp=True), 'step'),
    'DA-VPT': (prompted, dict(tuning='davpt'), 'paper'),
    'DA-VPT, gates': (prompted, dict(tuning='davpt', gate=True), 'recipe'),
    'DA-VPT+': (prompted, dict(tuning='davpt_plus'), 'paper'),
    'LoRA': (prompted, dict(tuning='lora'), 'step'),
    'full tuning': (prompted, dict(tuning='full'), 'step'),
    'mmseg ViT, frozen': (stock, {}, 'step'),
    'mmseg ViT, full': (stock, dict(full=True), 'step'),
    'mmseg ViT, tokens, M=20': (stock_prompted, {}, 'step'),
}


def available_cases() -> list[str]:
    """All cases; without LoRA where its library is not installed."""
    return [name for name in CASES if name != 'LoRA' or find_spec('peft')]


def build_case(name: str, load: Workload, weights: dict | None = None) -> Case:
    """Make one of :data:`CASES`.

    Args:
        name: Its name.
        load: What it works on.
        weights: Filled by the first case of a kind of trunk and shared by the others, so that all fit into memory.
            Nobody changes them while time is measured.
    """
    make, options, kind = CASES[name]
    torch.manual_seed(0)
    model = make(load, **options).to(load.device)
    model.train(kind != 'inference')  # mmseg's ViT returns nothing here
    if weights is not None:
        _share(model, weights)
    images = load.images()
    if kind == 'inference':
        return Case(functools.partial(_infer, model, images, load), model=model)
    torch.manual_seed(0)  # models draw differently often
    gradients = torch.randn(load.batch, load.dims, load.side, load.side).to(load.device)
    head = guidance = None
    if kind in GUIDANCE:
        guidance = MetricGuidance(load.classes, model.prompt_counts, model.embed_dims, **GUIDANCE[kind])
        for part in guidance.assignments:
            part.assignment.copy_(torch.arange(load.classes) % len(part.centroids))
        guidance.to(load.device)
    if load.head:
        init_default_scope('mmseg')
        head = MODELS.build(light_head(load)).to(load.device).train()
    learns = [p for part in (model, head) if part is not None for p in part.parameters() if p.requires_grad]
    step = functools.partial(_step, model, guidance, head, images, load.labels(), gradients, load)
    return Case(step, learns, model)


def _share(model: nn.Module, weights: dict) -> None:
    for part in model.modules():
        if isinstance(part, (*SUPPORTED, VisionTransformer)):
            part.load_state_dict(weights.setdefault(type(part), part.state_dict()), assign=True)


@torch.no_grad()
def _infer(model: nn.Module, images: Tensor, load: Workload) -> Sequence[Tensor]:
    with load.autocast():
        return model(images)


def _step(
    model: nn.Module,
    guidance: MetricGuidance | None,
    head: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    gradients: Tensor,
    load: Workload,
) -> None:
    """Forward and backward, as in ``PromptedEncoderDecoder.loss``."""
    with load.autocast():
        with nullcontext({}) if guidance is None else model.record(guidance.blocks) as activations:
            maps = model(images)
        losses = []
        if guidance is not None:
            losses += guidance(activations, patch_class_fractions(labels, load.patch, load.classes)).values()
        if head is not None:
            losses.append(head.loss(maps, samples(labels), {})['loss_ce'])
    roots = [(loss, None) for loss in losses]
    if head is None:
        roots += [(out, gradients.to(out.dtype)) for out in maps if out.requires_grad]
    if roots:
        torch.autograd.backward(*zip(*roots))


def trunk_cost(load: Workload, names: Sequence[str], timed: Timed, memory: bool = True) -> dict[str, dict]:
    """Time the cases together, then measure the memory of each by itself.

    Returns:
        Case -> ``seconds`` (median), ``iqr``, ``times`` (one a round), ``learns`` (number of tuned parameters, light
        head included) and ``memory`` (MB; ``None`` if it was not wanted).
    """
    weights: dict = {}
    cases = {name: build_case(name, load, weights) for name in names}
    times = timed(cases)
    learns = {name: sum(p.numel() for p in case.learns) for name, case in cases.items()}
    del cases, weights
    gc.collect()  # hooks make cycles
    torch.cuda.empty_cache()
    small = dataclasses.replace(load, arch=TINY, size=64, batch=1)
    found = {}
    for name in names:
        builds = functools.partial(build_case, name, load), functools.partial(build_case, name, small)
        found[name] = dict(
            seconds=times[name].median,
            iqr=times[name].iqr,
            times=times[name].times,
            learns=learns[name],
            memory=peak_memory(*builds, load.device) if memory else None,
        )
    return found
