"""How the patches of an image attend to the prompts of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from torch import Tensor, nn

from ..guidance import class_prototypes
from ..models import PromptedEncoderDecoder, PromptedViT
from ..tuning import TOKEN_GRID, BlockActivations, DeepPrompts, TunedBlock


@torch.no_grad()
def attention_to_prompts(block: TunedBlock, x: Tensor, rope: Tensor | None, bias: Tensor | None) -> Tensor:
    """Attention weights of the patches for the prompts, mean over the heads.

    They are computed beside the attention of the forward pass, which does not hand them out. Gated prompts and residual
    values have a softmax of their own: their weights sum to 1.

    Args:
        block: A prompted block.
        x: Input of its attention, ``(B, T + N, D)``.
        rope: Rotary codes, as the attention gets them.
        bias: Relative positions that blocks share, as the attention gets them.

    Returns:
        ``(B, N, M)`` in [0, 1].
    """
    attn = block.attn
    joined = next(prompts for method in block.methods if (prompts := method.join(block)) is not None)
    q, k = attn.queries_and_keys(x, rope)
    keys = joined.keys.to(k.dtype).expand(len(x), -1, -1, -1)
    q = q[:, :, attn.prefix_length :] * attn.scale
    if joined.separate_softmax:
        return (q @ keys.transpose(-1, -2)).softmax(dim=-1).mean(dim=1)
    scores = q @ torch.cat([keys, k], dim=2).transpose(-1, -2)
    if (positions := attn.position_bias(bias)) is not None:
        scores[..., keys.shape[-2] :] += positions[:, :, attn.prefix_length :]
    return scores.softmax(dim=-1)[..., : keys.shape[-2]].mean(dim=1)


@dataclass(frozen=True)
class PromptAttention:
    """Attention of patches to the prompts of one block, summed by the patches' class.

    Attributes:
        table: Attention mass of the patches of a class on a prompt, ``(C, M)``, float64.
        patches: Number of patches of each class, ``(C,)``; a patch counts for a class by its label fraction.
        assignment: Prompt of each class, ``(C,)``, -1 without one; ``None`` where the block is not guided.
    """

    table: Tensor
    patches: Tensor
    assignment: Tensor | None

    def describe(self) -> dict[str, float]:
        """The table in a few numbers.

        Returns:
            ``to_prompts``: percent of a patch's attention that goes to prompts (mean over patches).
            ``to_own``: own-prompt attention share, the percent of that which goes to the prompt of the patch's class;
            only with an assignment.
            ``own_by_chance``: what ``to_own`` would be if prompts did not tell classes apart: the same prompts, the
            mean over all classes, each with the weight of its patches.
            ``bits``: mutual information of a patch's class and the prompt that it attends to; 0 if all classes attend
            alike.
        """
        joint = self.table / self.table.sum()
        of_class, of_prompt = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
        ratio = torch.where(joint > 0, joint / (of_class * of_prompt), 1.0)
        described = dict(
            to_prompts=100 * (self.table.sum() / self.patches.sum()).item(),
            bits=(joint * ratio.log2()).sum().clamp(min=0).item(),
        )
        if self.assignment is not None and (self.assignment >= 0).any():
            assigned = self.assignment >= 0
            classes, prompts = torch.nonzero(assigned).squeeze(1), self.assignment[assigned]
            described['to_own'] = 100 * joint[classes, prompts].sum().item()
            described['own_by_chance'] = 100 * (of_class[classes, 0] * of_prompt[0, prompts]).sum().item()
        return described


def prompted_blocks(model: BaseSegmentor, blocks: Sequence[int]) -> list[int]:
    """Indices among the prompted blocks -> block indices.

    Args:
        model: A segmentor with deep prompts.
        blocks: Which of the prompted blocks; negative ones count from the last.

    Raises:
        ValueError: The model has no deep prompts, or fewer prompted blocks.
    """
    prompts = model.backbone.prompts
    if not isinstance(prompts, DeepPrompts):
        raise ValueError(
            'prompt attention needs a model with deep prompts (tuning vpt_deep, davpt, davpt_residual ...)'
        )
    known = sorted(prompts.blocks)
    if wrong := [block for block in blocks if not -len(known) <= block < len(known)]:
        raise ValueError(f'block {wrong[0]}: the model has {len(known)} prompted blocks')
    return [known[block] for block in blocks]


def with_labels_of_image_size(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of a data loader; labels of another size than their image are resized to it (nearest).

    Test pipelines resize images before they load the labels, as mIoU is measured at the size of the labels.
    """
    samples = []
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        labels = sample.gt_sem_seg.data
        if labels.shape[-2:] != image.shape[-2:]:
            resized = F.interpolate(labels[None].float(), image.shape[-2:], mode='nearest')[0].to(labels.dtype)
            sample = sample.clone()
            sample.gt_sem_seg = PixelData(data=resized)
        samples.append(sample)
    return {**batch, 'data_samples': samples}


@torch.no_grad()
def measure_attention(
    model: PromptedEncoderDecoder, batches: Iterable[dict[str, Any]], blocks: Sequence[int] = (-1,)
) -> dict[int, PromptAttention]:
    """Measure the attention to prompts on labeled images.

    Args:
        model: A segmentor with deep prompts, with or without guidance; not wrapped for distributed training.
        batches: Of a data loader, with labels.
        blocks: Which of the prompted blocks.

    Returns:
        Block index -> its attention, over all batches.
    """
    indices = prompted_blocks(model, blocks)
    counts = model.backbone.prompt_counts
    tables = {index: torch.zeros(model.num_classes, counts[index], dtype=torch.float64) for index in indices}
    patches = torch.zeros(model.num_classes, dtype=torch.float64)
    fractions: Tensor  # of the batch in the forward pass

    def measure(index: int, weights: Tensor) -> None:
        tables[index].add_(torch.einsum('bnc,bnm->cm', fractions.double(), weights.double()).cpu())

    with _evaluating(model), _observed(model.backbone, indices, measure):
        for batch in batches:
            batch = model.data_preprocessor(with_labels_of_image_size(batch), training=True)
            fractions = model.class_fractions(batch['data_samples'])
            patches.add_(fractions.double().sum(dim=(0, 1)).cpu())
            model.backbone(batch['inputs'])
    return {index: PromptAttention(tables[index], patches, _assignment(model, index)) for index in indices}


def attention_mass(
    model: PromptedEncoderDecoder, batches: Iterable[dict[str, Any]], block: int = -1
) -> dict[str, float]:
    """:meth:`PromptAttention.describe` of one prompted block; arguments as for :func:`measure_attention`."""
    (measured,) = measure_attention(model, batches, [block]).values()
    return measured.describe()


@torch.no_grad()
def attention_maps(model: BaseSegmentor, inputs: Tensor, blocks: Sequence[int] = (-1,)) -> dict[int, Tensor]:
    """Attention to each prompt over the image.

    Args:
        model: A segmentor whose backbone has deep prompts.
        inputs: Normalized images, ``(B, 3, H, W)``.
        blocks: Which of the prompted blocks.

    Returns:
        Block index -> ``(B, M, h, w)`` in [0, 1], on the grid of patches (of the padded image).
    """
    indices, maps = prompted_blocks(model, blocks), {}

    def keep(index: int, weights: Tensor) -> None:
        assert TOKEN_GRID.size is not None  # set during PromptedViT.forward
        maps[index] = weights.transpose(1, 2).unflatten(2, TOKEN_GRID.size).cpu()

    with _evaluating(model), _observed(model.backbone, indices, keep):
        model.backbone(inputs)
    return maps


@dataclass(frozen=True)
class PromptSpace:
    """Prompts, patches and class prototypes of one block, in the spaces that the guidance compares.

    With ``center_prototypes``, the mean prototype is subtracted from patches and prototypes, as in the guidance.

    Attributes:
        prompts: ``(M, D)``.
        patches: A sample of patches, ``(P, D)``.
        classes: Class that covers most of each sampled patch, ``(P,)``.
        prototypes: Mean of each class over all batches, ``(C, D)``; zero for absent classes.
        counts: Number of patches of each class, ``(C,)``.
        assignment: Prompt of each class, ``(C,)``, -1 without one; ``None`` where the block is not guided.
    """

    prompts: Tensor
    patches: Tensor
    classes: Tensor
    prototypes: Tensor
    counts: Tensor
    assignment: Tensor | None


@torch.no_grad()
def prompt_space(
    model: PromptedEncoderDecoder, batches: Iterable[dict[str, Any]], block: int = -1, per_batch: int = 100
) -> PromptSpace:
    """Collect prompts, patches and class prototypes for a 2-D map.

    Args:
        model: A segmentor with deep prompts. Samples and prompts are in ``sample_space`` and ``prompt_space`` of its
            guidance; without guidance, queries and keys.
        batches: Of a data loader, with labels.
        block: Which of the prompted blocks.
        per_batch: Number of patches that are sampled from a batch, evenly spaced among the labeled ones.
    """
    (index,) = prompted_blocks(model, [block])
    guidance = model.guidance
    spaces = ('query', 'key') if guidance is None else (guidance.sample_space, guidance.prompt_space)
    sums, counts = torch.zeros(model.num_classes, model.backbone.embed_dims), torch.zeros(model.num_classes)
    patches, classes, prompts = [], [], torch.empty(0)
    with _evaluating(model):
        for batch in batches:
            batch = model.data_preprocessor(with_labels_of_image_size(batch), training=True)
            fractions = model.class_fractions(batch['data_samples'])
            with model.backbone.record([index]) as activations:
                model.backbone(batch['inputs'])
            recorded: BlockActivations = activations[index]
            samples = _in_space(recorded, recorded.attn_out if spaces[0] == 'attn_out' else recorded.tokens, spaces[0])
            prompts = _in_space(recorded, recorded.prompts, spaces[1]).float().cpu()
            means, _ = class_prototypes(samples.flatten(0, 1)[None], fractions.flatten(0, 1)[None])
            mass = fractions.sum(dim=(0, 1)).cpu()
            sums += mass[:, None] * means[0].float().cpu()
            counts += mass
            labeled = torch.nonzero(fractions.sum(dim=2).flatten() > 0.5).squeeze(1)
            chosen = labeled[torch.linspace(0, len(labeled) - 1, min(per_batch, len(labeled))).long()]
            patches.append(samples.flatten(0, 1)[chosen].float().cpu())
            classes.append(fractions.flatten(0, 1)[chosen].argmax(dim=1).cpu())
    prototypes = sums / counts.clamp(min=1e-9)[:, None]
    center = prototypes[counts > 0].mean(dim=0) if guidance is not None and guidance.center_prototypes else 0.0
    vectors = torch.cat(patches) - center, torch.cat(classes), prototypes - center
    return PromptSpace(prompts, *vectors, counts, _assignment(model, index))


def _in_space(recorded: BlockActivations, x: Tensor, space: str) -> Tensor:
    return recorded.project(x, space) if space in ('query', 'key') else x


def _assignment(model: PromptedEncoderDecoder, block: int) -> Tensor | None:
    if model.guidance is None or block not in model.guidance.blocks:
        return None
    return model.guidance.assignment_of[block].assignment.cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and the former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _observed(backbone: PromptedViT, blocks: Sequence[int], receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While open, a forward pass hands the attention of the blocks to ``receive(block, (B, N, M))``.

    Only those of this thread: others may use the model at the same time.
    """
    thread = get_ident()

    def observe(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() != thread:
                return
            block = backbone.trunk.blocks[index]
            weights = attention_to_prompts(block, args[0], kwargs.get('rope'), kwargs.get('shared_rel_pos_bias'))
            receive(index, weights)

        return hook

    handles = [
        backbone.trunk.blocks[index].attn.register_forward_pre_hook(observe(index), with_kwargs=True)
        for index in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
