"""timm name -> trunk: a pretrained plain Vision Transformer, exactly as timm builds it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import timm
from timm.layers import Attention, AttentionRope, PatchEmbed
from timm.models import beit, eva, vision_transformer
from torch import nn

# Classes of trunks that prompts can join, with their blocks and attentions: pre-norm, one sequence of tokens.
SUPPORTED = {
    vision_transformer.VisionTransformer: (vision_transformer.Block, (Attention,)),
    eva.Eva: (eva.EvaBlock, (eva.EvaAttention, AttentionRope)),
    beit.Beit: (beit.Block, (beit.Attention,)),
}


def build_trunk(arch: str, img_size: int | tuple[int, int] | None = None, drop_path_rate: float = 0.0) -> nn.Module:
    """Build a timm ViT without its classifier, with random weights, for any input size if the architecture allows it.

    A model that timm builds for pooled features norms after the pooling (``fc_norm``). A trunk is not pooled: that norm
    becomes its final norm, ``norm``.

    Args:
        arch: timm model name, optionally with the tag of its weights, e.g. ``vit_base_patch16_224.augreg_in21k``.
        img_size: Size in pixels that the position table is made for; ``None`` keeps the pretrained one, so that the
            table equals the file's. Other input sizes are resampled from it on the fly, in float32. For BEiT, whose
            relative positions are a table too, it is the largest input.
        drop_path_rate: Stochastic depth, live only in blocks that are tuned as a whole.

    Returns:
        The trunk. Inputs that are no multiple of the patch are padded to the right and below.

    Raises:
        ValueError: The name is unknown to timm, or the model is not a ViT that prompts can join; the message says why.
    """
    name = arch.split('.')[0]
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f'arch={arch!r} is not a timm model. Close names: {", ".join(close) or "none"}.')
    options = {} if img_size is None else {'img_size': img_size}
    if timm.models.model_entrypoint(name).__module__ != beit.__name__:
        options |= dict(dynamic_img_size=True, dynamic_img_pad=True)
    try:
        trunk = timm.create_model(arch, num_classes=0, drop_path_rate=drop_path_rate, **options)
    except TypeError:  # no such options: another kind of model
        trunk = timm.create_model(arch)
    if reason := _why_unsupported(trunk):
        raise ValueError(
            f'arch={arch!r}: {reason}. Prompts join pre-norm blocks with full attention: ViT, DeiT, DINO, DINOv2, '
            'DINOv3, MAE, MoCo-v3, CLIP, SigLIP, EVA-02, BEiT (docs/backbones.md).'
        )
    trunk.pooled_norm = not isinstance(trunk.fc_norm, nn.Identity)
    if trunk.pooled_norm:
        trunk.norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    return trunk


def _why_unsupported(trunk: nn.Module) -> str | None:
    """What prompts as keys and values would silently get wrong."""
    kind = next((kind for kind in SUPPORTED if isinstance(trunk, kind)), None)
    if kind is None:
        return f'a {type(trunk).__name__} is not one sequence of tokens under full attention (windows, pyramids, SAM)'
    if not isinstance(trunk.patch_embed, PatchEmbed):
        return f'its patches come from a {type(trunk.patch_embed).__name__}, not from one linear patch embedding'
    own_block, own_attentions = SUPPORTED[kind]
    for index, block in enumerate(trunk.blocks):
        if type(block) is not own_block:
            return f'block {index} is a {type(block).__name__}, not a pre-norm block (norm, attention, norm, MLP)'
        if type(block.attn) not in own_attentions:
            return f'the attention of block {index} is a {type(block.attn).__name__}, not softmax attention'
        if getattr(block.attn, 'num_kv_groups', 1) > 1:
            return f'block {index} shares keys among heads (grouped queries): queries and keys differ in width'
    return None


def pixel_statistics(trunk: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the weights were trained with, RGB, in pixel values (0 to 255)."""
    cfg = trunk.pretrained_cfg
    return [255 * value for value in cfg['mean']], [255 * value for value in cfg['std']]


def resolve_blocks(blocks: str | Sequence[int], depth: int, key: str) -> tuple[int, ...]:
    """Turn ``'all'`` or possibly negative indices into sorted block indices.

    Args:
        blocks: ``'all'`` or indices in ``[-depth, depth)``.
        depth: Number of blocks up to the last one that is read.
        key: The option's name, for the error.

    Raises:
        ValueError: Empty, repeated, or out of range.
    """
    if blocks == 'all':
        return tuple(range(depth))
    if isinstance(blocks, str) or not blocks:
        raise ValueError(f"{key}={blocks!r}: expected 'all' or block indices")
    wrong = [index for index in blocks if not -depth <= index < depth]
    if wrong:
        raise ValueError(f'{key}={list(blocks)}: {depth} blocks are read, there is no block {wrong[0]}')
    resolved = sorted(index % depth for index in blocks)
    if len(set(resolved)) < len(resolved):
        raise ValueError(f'{key}={list(blocks)}: a block is named twice')
    return tuple(resolved)
