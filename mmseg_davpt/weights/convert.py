"""Checkpoints of other projects -> the tensors of the encoder, under names that timm's filters understand.

timm's filter of each model family renames most original files (DINOv2, DINOv3, CLIP, SigLIP, EVA) and resizes position
tables. This module adds what the filters lack: the choice of the encoder in a checkpoint, the names of OpenMMLab, and a
record of every tensor that is not used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from .checkpoints import FLOATS
from .formats import WeightsError, check_npz

# Entries of a checkpoint with weights; the first match wins. Averaged weights come before raw ones, as timm and DINO
# evaluate them.
_ENTRIES = ('state_dict_ema', 'model_ema', 'teacher', 'state_dict', 'model', 'module')
# Prefixes of the encoder; the first match wins. MoCo v3 evaluates its base encoder.
_ENCODERS = ('backbone.trunk.', 'trunk.', 'backbone.', 'base_encoder.', 'visual.trunk.', 'visual.')
# Classifiers, poolers, projections and decoders: no dense output depends on them.
_HEADS = re.compile(
    r'(visual\.)?(head|head_dist|fc_norm|attn_pool|pre_logits|lm_head|cls_pt_\w+|proj|decoder_\w+)(\.|$)'
)
_OPENMMLAB = (
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^layers\.', 'blocks.'),
    (r'\.attn\.attn\.in_proj_', '.attn.qkv.'),
    (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.attn\.gamma1\.weight$', '.ls1.gamma'),
    (r'\.ffn\.gamma2\.weight$', '.ls2.gamma'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'\.ffn\.w12\.', '.mlp.fc1.'),  # SwiGLU of mmpretrain's DINOv2
    (r'\.ffn\.w3\.', '.mlp.fc2.'),
    (r'\.ln([12])\.', r'.norm\1.'),
    (r'^(ln1|norm1)\.', 'norm.'),
    (r'^(ln2|norm2)\.', 'fc_norm.'),  # after mmpretrain's average pooling
    (r'^(ln_pre|pre_norm)\.', 'norm_pre.'),
)
_OPENMMLAB_NOTE = 'OpenMMLab names'


@dataclass
class Encoder:
    """The encoder of a checkpoint, and a record of the conversion.

    Attributes:
        state: Tensors of the encoder by name; floating point tensors are float32.
        notes: Choices of the conversion, for the log: the entry of the checkpoint, the prefix, added tensors.
        skipped: Names in the file that do not belong to the encoder.
    """

    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def is_head(name: str) -> bool:
    """Return whether a tensor belongs to a head, a projection or a decoder."""
    return _HEADS.match(name) is not None


# Tuning methods in a checkpoint of this project that change what the trunk computes; prompts are additional tokens. The
# second line holds the names of version 0.1.
_TUNED = re.compile(
    r'(backbone\.)?(tuned\.(?!prompts\.|shallow_prompts\.)'
    r'|(biases|lora|adapters)\.)'
)


def find_encoder(checkpoint: Any, trunk: nn.Module) -> Encoder:
    """Select the encoder's tensors in a checkpoint and rename them.

    Args:
        checkpoint: Result of :func:`~mmseg_davpt.weights.formats.read_checkpoint`: nested mappings with tensors.
        trunk: The timm model to load; only its names and shapes are used.

    Returns:
        The encoder. Its position tables keep the size of the file.

    Raises:
        WeightsError: The checkpoint has no tensors, or has trained parameters that the trunk cannot hold.
    """
    encoder = _select_entry(checkpoint)
    encoder.state = _require_same_count(clean_state_dict(encoder.state), encoder.state)
    tuned_names = [name for name in encoder.state if _TUNED.match(name)]
    if tuned_names:
        raise WeightsError(
            f'a checkpoint of mmseg_davpt with more trained parameters than prompts ({tuned_names[0]} ...): its trunk '
            'alone is not what was trained. Merge what can be merged: '
            "torch.save(model.backbone.merged_trunk(['bias']), FILE), then pretrained=FILE; adapters cannot be merged"
        )
    prefix = next((prefix for prefix in _ENCODERS if any(name.startswith(prefix) for name in encoder.state)), '')
    if prefix == 'visual.':  # timm's filters expect this prefix, so the names keep it
        _select_prefix(encoder, prefix, strip=False)
        prefix = ''
    elif prefix:
        _select_prefix(encoder, prefix, strip=True)
    _rename(encoder, trunk)
    _add_missing(encoder, trunk)
    encoder.state = name_final_norm(encoder.state, trunk)
    modules = {name.split('.')[0] for name in trunk.state_dict()}
    heads = [name for name in encoder.state if is_head(name) and name.split('.')[0] not in modules]
    encoder.skipped += [prefix + name for name in heads]
    encoder.state = {name: tensor for name, tensor in encoder.state.items() if name not in heads}
    return encoder


def name_final_norm(state: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """Rename ``fc_norm`` to ``norm`` where ``build_trunk`` made the norm after the pooling the final norm."""
    if not getattr(trunk, 'pooled_norm', False) or 'norm.weight' in state:
        return state
    return {re.sub(r'^fc_norm\.', 'norm.', name): tensor for name, tensor in state.items()}


def _select_entry(checkpoint: Any) -> Encoder:
    notes = []
    while isinstance(checkpoint, Mapping):
        entry = next((entry for entry in _ENTRIES if isinstance(checkpoint.get(entry), Mapping)), None)
        if entry is None:
            break
        other_keys = sorted(str(key) for key in checkpoint if key != entry)
        notes.append(f"'{entry}'" + (f' (beside {", ".join(other_keys)})' if other_keys else ''))
        checkpoint = checkpoint[entry]
    items = checkpoint if isinstance(checkpoint, Mapping) else {}
    state = {str(name): tensor for name, tensor in items.items() if isinstance(tensor, Tensor)}
    if not state:
        content = ', '.join(map(str, list(items)[:6])) if items else type(checkpoint).__name__
        raise WeightsError(f'no tensors in it, only: {content}. Known entries are {", ".join(_ENTRIES)}')
    skipped = [str(name) for name in items if str(name) not in state]
    # Other types stay, for the check of load.py to name them.
    return Encoder({name: t.float() if t.dtype in FLOATS else t for name, t in state.items()}, notes, skipped)


def _select_prefix(encoder: Encoder, prefix: str, strip: bool) -> None:
    encoder.notes.append(f'{prefix}*')
    encoder.skipped += [name for name in encoder.state if not name.startswith(prefix)]
    encoder.state = {
        name.removeprefix(prefix) if strip else name: tensor
        for name, tensor in encoder.state.items()
        if name.startswith(prefix)
    }


def _rename(encoder: Encoder, trunk: nn.Module) -> None:
    state = encoder.state
    if 'patch_embed.projection.weight' in state and any(name.startswith('layers.') for name in state):
        encoder.notes.append(_OPENMMLAB_NOTE)
        for pattern, replacement in _OPENMMLAB:
            state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    block_names = [name for name in state if name.startswith('blocks.')]
    if block_names and all(re.match(r'blocks\.\d+\.\d+\.', name) for name in block_names):
        # DINOv2 trains in chunks of blocks; the second number counts through all chunks.
        state = {re.sub(r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.', name): tensor for name, tensor in state.items()}
    if 'blocks.0.ls1.gamma' in trunk.state_dict():  # DeiT III
        state = {re.sub(r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma', n): t for n, t in state.items()}
    encoder.state = _require_same_count(state, encoder.state)


def _require_same_count(renamed: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    if len(renamed) < len(state):
        raise WeightsError(
            f'{len(state) - len(renamed)} of its tensors are there twice, under two spellings of one name'
        )
    return renamed


def _add_missing(encoder: Encoder, trunk: nn.Module) -> None:
    """Add or drop tensors where a file differs from the trunk without a change of the function."""
    trunk_state = trunk.state_dict()
    patch_bias = 'patch_embed.proj.bias'
    if _OPENMMLAB_NOTE in encoder.notes and patch_bias in trunk_state and patch_bias not in encoder.state:
        # mmseg's ViT has none without patch_bias=True; no bias equals a bias of zeros.
        encoder.notes.append(f'{patch_bias} of zeros, as the file has none')
        encoder.state[patch_bias] = torch.zeros_like(trunk_state[patch_bias])
    _repeat_shared_table(encoder, trunk_state)
    _drop_dinov3_biases(encoder, trunk_state)


def _repeat_shared_table(encoder: Encoder, trunk_state: Mapping[str, Tensor]) -> None:
    """Give each block the table that BEiT's pre-training shares, as BEiT's fine-tuning does."""
    tables = [name for name in trunk_state if name.endswith('.attn.relative_position_bias_table')]
    shared = 'rel_pos_bias.relative_position_bias_table'
    if shared not in encoder.state or shared in trunk_state or not tables:
        return
    encoder.notes.append(f'{shared} repeated for {len(tables)} blocks')
    table = encoder.state.pop(shared)
    encoder.state.update({name: table.clone() for name in tables})
    unused = [name for name in encoder.state if name.startswith('rel_pos_bias.')]
    encoder.skipped += unused
    encoder.state = {name: tensor for name, tensor in encoder.state.items() if name not in unused}


def _drop_dinov3_biases(encoder: Encoder, trunk_state: Mapping[str, Tensor]) -> None:
    """Drop fused biases of zeros where the trunk has no biases; timm's filter would drop others silently."""
    if 'storage_tokens' not in encoder.state:
        return
    biases = [name for name in encoder.state if name.endswith('.attn.qkv.bias')]
    if biases:
        encoder.notes.append('without biases of keys, which DINOv3 masks')
    for name in biases:
        if name.replace('qkv.bias', 'q_bias') in trunk_state:
            continue
        q, _, v = encoder.state.pop(name).chunk(3)
        if q.any() or v.any():
            raise WeightsError(
                f'{name} is not zero, but the trunk has no such bias. Use the arch that has it: its name ends in _qkvb'
            )
        encoder.skipped.append(name)


def read_npz(path: Path, trunk: nn.Module) -> Encoder:
    """Read a ViT of Google's JAX code through timm's reader, which fills a copy of the trunk.

    That reader is not strict. Tensors of the copy that it does not fill count as missing, arrays that it does not read
    as unexpected. The copy has the position table of the file, so that tables of all formats are resampled alike.

    Args:
        path: The archive.
        trunk: The timm model to load; unchanged.

    Returns:
        The encoder, under timm's names.

    Raises:
        WeightsError: The archive is damaged or holds no such ViT, or timm reads no archives for the trunk's family.
    """
    if not hasattr(trunk, 'load_pretrained'):
        raise WeightsError(f'a NumPy archive, which holds a plain ViT; {type(trunk).__name__} has no such weights')
    shapes, problems = _inspect_arrays(path)
    kernel = next((name for name in shapes if name.endswith('embedding/kernel')), None)
    if kernel is None:
        raise WeightsError(f'no JAX ViT: no embedding/kernel among {", ".join(list(shapes)[:6])}')
    if len(shapes[kernel]) != 4:
        raise WeightsError(f'{kernel} of shape {shapes[kernel]} is no kernel of a convolution')
    prefix = kernel.removesuffix('embedding/kernel')
    vit_shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    for name in vit_shapes:
        if prefix + name in problems and not name.startswith(_CLASSIFIER):
            raise WeightsError(problems[prefix + name])
    state = _fill_copy(path, trunk, vit_shapes)
    encoder = Encoder(state, [f'{prefix}*'] if prefix else [], [name for name in shapes if not name.startswith(prefix)])
    for name, shape in vit_shapes.items():
        if name.startswith(_NORM) and 'norm.weight' not in state:
            encoder.skipped.append(prefix + name)
        elif name.startswith('MAPHead_0/') and 'attn_pool.latent' in state:
            continue
        elif name.startswith((*_CLASSIFIER, 'MAPHead_0/')):
            encoder.skipped.append(prefix + name)
        elif not _is_read(name, shape, trunk):
            state[prefix + name] = torch.empty(shape)  # counts as unexpected
    return encoder


_NORM = 'Transformer/encoder_norm/'
_CLASSIFIER = ('head/', 'pre_logits/')


def _inspect_arrays(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shape of each array, and what is wrong with values; every array is read, which finds damage."""
    shapes, problems = {}, {}
    try:
        check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                shapes[name] = array.shape
                if array.dtype.kind == 'V':
                    problems[name] = f'{name} has a type that NumPy does not have (bfloat16): save it as float32'
                elif array.dtype.kind != 'f':
                    problems[name] = f'{name} is {array.dtype} instead of float32'
                elif not np.isfinite(array).all():
                    problems[name] = f'{name} holds values that are not finite (NaN or infinite)'
    except Exception as error:  # a damaged file raises exceptions of many types
        raise WeightsError(f'a damaged NumPy archive ({type(error).__name__}: {error})') from error
    return shapes, problems


def _fill_copy(path: Path, trunk: nn.Module, vit_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors that timm's reader fills in a copy of the trunk."""
    trunk_copy: Any = copy.deepcopy(trunk)
    h, w, channels, width = vit_shapes['embedding/kernel']
    trunk_copy.patch_embed.proj.weight = nn.Parameter(torch.empty(width, channels, h, w))
    if table := next((shape for name, shape in vit_shapes.items() if name.endswith('pos_embedding')), None):
        trunk_copy.pos_embed = nn.Parameter(torch.empty(table))
    if 'MAPHead_0/probe' not in vit_shapes:
        trunk_copy.attn_pool = None
    with torch.no_grad():
        for parameter in trunk_copy.parameters():
            parameter.fill_(torch.nan)
    try:
        trunk_copy.load_pretrained(str(path))
    except Exception as error:  # a file of another architecture raises exceptions of many types
        raise WeightsError(f'not a ViT like this one: {type(error).__name__}: {error}') from error
    return {name: tensor for name, tensor in trunk_copy.state_dict().items() if not tensor.isnan().any()}


def _is_read(name: str, shape: tuple[int, ...], trunk: Any) -> bool:
    """Return whether timm's reader uses an array of the ViT."""
    if name == 'cls':
        return trunk.cls_token is not None
    if block := re.match(r'Transformer/encoderblock(?:_(\d+))?/', name):
        depth = len(trunk.blocks)
        return int(block[1]) < depth if block[1] else shape[0] == depth
    return name.startswith(('embedding/', _NORM)) or name.endswith('pos_embedding')
