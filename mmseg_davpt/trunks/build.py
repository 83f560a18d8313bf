"""timm name -> trunk: a pretrained plain Vision Transformer, exactly as timm builds it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import timm
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer


def build_trunk(
    arch: str, img_size: int | tuple[int, int] | None = None, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """Build a timm ViT without its classifier, with random weights, for any input size.

    Args:
        arch: timm model name, optionally with the tag of its weights, e.g. ``vit_base_patch16_224.augreg_in21k``.
        img_size: Size in pixels that the position table is made for; ``None`` keeps the pretrained one, so that the
            table equals the file's. Other input sizes are resampled from it on the fly, in float32.
        drop_path_rate: Stochastic depth, live only in blocks that are tuned as a whole.

    Returns:
        The trunk. Inputs that are no multiple of the patch are padded to the right and below.

    Raises:
        ValueError: The name is unknown to timm, or the model is not a ViT that prompts can join.
    """
    name = arch.split('.')[0]
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f'arch={arch!r} is not a timm model. Close names: {", ".join(close) or "none"}.')
    options = {} if img_size is None else {'img_size': img_size}
    try:
        trunk = timm.create_model(
            arch,
            num_classes=0,
            dynamic_img_size=True,
            dynamic_img_pad=True,
            drop_path_rate=drop_path_rate,
            **options,
        )
    except TypeError as error:
        raise ValueError(f'arch={arch!r} takes no dynamic image size, so it is no plain ViT: {error}') from error
    _require_plain_vit(arch, trunk)
    return trunk


def _require_plain_vit(arch: str, trunk: VisionTransformer) -> None:
    """Refuse what prompts as keys and values would silently get wrong."""
    if not isinstance(trunk, VisionTransformer):
        raise ValueError(
            f'arch={arch!r} is a {type(trunk).__name__}; PromptedViT supports timm.models.VisionTransformer '
            '(ViT, DeiT, DINO, DINOv2, MAE, MoCo, CLIP and SigLIP image towers).'
        )
    for index, block in enumerate(trunk.blocks):
        if type(block) is not Block or type(block.attn) is not Attention:
            raise ValueError(
                f'arch={arch!r}: block {index} is {type(block).__name__}/{type(block.attn).__name__}; prompts need '
                'pre-norm blocks with standard attention (timm Block/Attention).'
            )


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
