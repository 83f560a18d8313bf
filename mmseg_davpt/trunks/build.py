"""timm name -> trunk: a plain Vision Transformer, exactly as timm builds it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

import timm
from timm.layers.attention import Attention, AttentionRope
from timm.layers.patch_embed import PatchEmbed
from timm.models import beit, eva, vision_transformer
from torch import nn

from ..options import check_integers, check_number, check_size, wrong

# A trunk of build_trunk. torch types every attribute of a module as Tensor | Module, and the supported classes of timm
# have no common base that declares blocks, patch_embed, embed_dim and the rest.
Trunk: TypeAlias = Any

# Class of trunk -> its block and attention classes. All are pre-norm, with full attention over one sequence of tokens.
SUPPORTED: dict[type[nn.Module], tuple[type[nn.Module], tuple[type[nn.Module], ...]]] = {
    vision_transformer.VisionTransformer: (vision_transformer.Block, (Attention,)),
    eva.Eva: (eva.EvaBlock, (eva.EvaAttention, AttentionRope)),
    beit.Beit: (beit.Block, (beit.Attention,)),
}


def build_trunk(arch: str, img_size: int | tuple[int, int] | None = None, drop_path_rate: float = 0.0) -> Trunk:
    """Build a timm ViT without its classifier, with random weights.

    Some timm models have a norm after the pooling of tokens (``fc_norm``) and none before. A trunk does not pool: that
    norm becomes its final norm, ``norm``, and ``trunk.pooled_norm`` is true.

    Args:
        arch: timm model name, optionally with the tag of its weights, e.g. ``vit_base_patch16_224.augreg_in21k``.
        img_size: Image size in pixels, one side or ``(height, width)``, for the position table. ``None`` keeps the size
            of the pretrained table. Inputs of other sizes resample the table in each forward pass, in float32. BEiT
            takes inputs up to this size only, as its relative positions are a table too.
        drop_path_rate: Stochastic depth, in ``[0, 1)``; it acts only in blocks whose weights are trained.

    Returns:
        The trunk. It pads inputs on the right and at the bottom to a multiple of the patch size.

    Raises:
        ValueError: timm has no model of that name, or prompts cannot join the model; the message gives the reason.
    """
    if not isinstance(arch, str):
        raise wrong('backbone.arch', arch, 'the name of a timm model')
    if img_size is not None:
        sides = check_size('backbone.img_size', img_size if isinstance(img_size, Sequence) else (img_size, img_size))
    drop_path_rate = check_number('backbone.drop_path_rate', drop_path_rate, high=1.0, below=True)
    name = arch.split('.')[0]
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f'backbone.arch={arch!r} is not a timm model. Close names: {", ".join(close) or "none"}.')
    options: dict[str, Any] = {} if img_size is None else {'img_size': sides}
    if timm.models.model_entrypoint(name).__module__ != beit.__name__:
        options |= dict(dynamic_img_size=True, dynamic_img_pad=True)
    try:
        trunk: Trunk = timm.create_model(arch, num_classes=0, drop_path_rate=drop_path_rate, **options)
    except TypeError:  # other kinds of models do not have these options
        trunk = timm.create_model(arch)
    if reason := _why_unsupported(trunk):
        raise ValueError(
            f'backbone.arch={arch!r}: {reason}. Prompts join pre-norm blocks with full attention: ViT, DeiT, DINO, '
            'DINOv2, DINOv3, MAE, MoCo-v3, CLIP, SigLIP, EVA-02, BEiT (docs/backbones.md).'
        )
    if img_size is not None:
        _check_patches(sides, trunk.patch_embed)
    trunk.pooled_norm = not isinstance(trunk.fc_norm, nn.Identity)
    if trunk.pooled_norm:
        trunk.norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    return trunk


def _check_patches(sides: tuple[int, int], patch_embed: PatchEmbed) -> None:
    """A position table needs a patch; a trunk of one size (BEiT) would drop the pixels behind the last whole one."""
    patch = patch_embed.patch_size
    if any(side < size or (patch_embed.strict_img_size and side % size) for side, size in zip(sides, patch)):
        multiple = 'a multiple of' if patch_embed.strict_img_size else 'at least'
        raise wrong('backbone.img_size', sides, f'(height, width), each {multiple} the patch size {patch}')


def _why_unsupported(trunk: Trunk) -> str | None:
    """Return why prompts as keys and values would give wrong features, or ``None`` where they are correct."""
    kind = next((kind for kind in SUPPORTED if isinstance(trunk, kind)), None)
    if kind is None:
        return f'a {type(trunk).__name__} is not one sequence of tokens under full attention (windows, pyramids, SAM)'
    if not isinstance(trunk.patch_embed, PatchEmbed):
        return f'its patches come from a {type(trunk.patch_embed).__name__}, not from one linear patch embedding'
    block_class, attention_classes = SUPPORTED[kind]
    for index, block in enumerate(trunk.blocks):
        if type(block) is not block_class:
            return f'block {index} is a {type(block).__name__}, not a pre-norm block (norm, attention, norm, MLP)'
        if type(block.attn) not in attention_classes:
            return f'the attention of block {index} is a {type(block.attn).__name__}, not softmax attention'
        if getattr(block.attn, 'num_kv_groups', 1) > 1:
            return f'block {index} shares keys among heads (grouped queries): queries and keys differ in width'
    return None


def pixel_statistics(trunk: Trunk) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the images in pre-training, RGB, in pixel values (0 to 255)."""
    cfg = trunk.pretrained_cfg
    return [255 * value for value in cfg['mean']], [255 * value for value in cfg['std']]


def resolve_blocks(blocks: str | Sequence[int], depth: int, key: str) -> tuple[int, ...]:
    """Turn ``'all'`` or possibly negative indices into sorted block indices.

    Args:
        blocks: ``'all'`` or indices in ``[-depth, depth)``.
        depth: Number of blocks up to the last one whose output is used.
        key: Name of the option, for the error message.

    Returns:
        Indices in ``[0, depth)``, in ascending order.

    Raises:
        ValueError: ``blocks`` is empty, has a repeated index or one out of range.
    """
    if isinstance(blocks, str) and blocks == 'all':
        return tuple(range(depth))
    if isinstance(blocks, str) or not (indices := check_integers(key, blocks)):
        raise wrong(key, blocks, "'all' or block indices")
    absent = [index for index in indices if not -depth <= index < depth]
    if absent:
        raise ValueError(f'{key}={list(indices)}: {depth} blocks are in use, there is no block {absent[0]}')
    resolved = sorted(index % depth for index in indices)
    if len(set(resolved)) < len(resolved):
        raise ValueError(f'{key}={list(indices)}: a block is given twice')
    return tuple(resolved)
