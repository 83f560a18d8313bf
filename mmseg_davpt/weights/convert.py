"""Checkpoints of other projects -> an encoder's tensors under names that timm's own filters understand.

timm's filter of each model family renames most original files (DINOv2, DINOv3, CLIP, SigLIP, EVA) and resizes tables.
Here is what it lacks: which part of a checkpoint is the encoder, names of OpenMMLab, and strictness about what is left.
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

from .formats import WeightsError

# Parts of a checkpoint, the first one wins: averaged weights before raw ones, as timm and DINO's own evaluation do.
_PARTS = ('state_dict_ema', 'model_ema', 'teacher', 'state_dict', 'model', 'module')
# Prefixes of the encoder, the first one wins. MoCo v3 evaluates its base encoder.
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
    (r'^(ln2|norm2)\.', 'fc_norm.'),  # behind mmpretrain's average pooling
    (r'^(ln_pre|pre_norm)\.', 'norm_pre.'),
)


@dataclass
class Encoder:
    """The encoder of a checkpoint, and what was decided on the way.

    Attributes:
        state: Its tensors, floating point ones in float32.
        taken: Which part of the checkpoint they are, and what was filled in; for the log.
        skipped: Names of the file that are not of the encoder.
    """

    state: dict[str, Tensor]
    taken: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a head, a projection or a decoder."""
    return _HEADS.match(name) is not None


def find_encoder(checkpoint: Any, trunk: nn.Module) -> Encoder:
    """The encoder in whatever :func:`~mmseg_davpt.trunks.files.read_checkpoint` returned.

    Args:
        checkpoint: Nested mappings with tensors.
        trunk: The timm model that is to get them; only its names and shapes matter.

    Raises:
        WeightsError: No tensors, or a part that has no place in the trunk and must not be lost.
    """
    found = _take_part(checkpoint)
    found.state = _same_size(clean_state_dict(found.state), found.state)
    if beside := [name for name in found.state if re.match(r'(backbone\.)?(biases|lora|adapters)\.', name)]:
        raise WeightsError(
            f'a checkpoint of mmseg_davpt that tuned more than prompts beside its trunk ({beside[0]} ...): its trunk '
            'alone is not what was trained. Merge biases and LoRA: torch.save(model.backbone.merged_trunk(), FILE), '
            'then pretrained=FILE; adapters cannot be merged'
        )
    prefix = next((prefix for prefix in _ENCODERS if any(name.startswith(prefix) for name in found.state)), '')
    if prefix:
        found.taken.append(f'{prefix}*')
        found.skipped += [name for name in found.state if not name.startswith(prefix)]
        strip = '' if prefix == 'visual.' else prefix  # which timm's filters look for
        found.state = {n.removeprefix(strip): t for n, t in found.state.items() if n.startswith(prefix)}
    _rename(found, trunk)
    _fill_in(found, trunk)
    found.state = name_final_norm(found.state, trunk)
    own = {name.split('.')[0] for name in trunk.state_dict()}
    heads = [name for name in found.state if is_head(name) and name.split('.')[0] not in own]
    found.skipped += [f'{prefix if prefix != "visual." else ""}{name}' for name in heads]
    found.state = {name: tensor for name, tensor in found.state.items() if name not in heads}
    return found


def name_final_norm(state: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """Call the norm that timm puts behind the pooling as ``build_trunk`` does, where it made it the final norm."""
    if not getattr(trunk, 'pooled_norm', False) or 'norm.weight' in state:
        return state
    return {re.sub(r'^fc_norm\.', 'norm.', name): tensor for name, tensor in state.items()}


def _take_part(checkpoint: Any) -> Encoder:
    taken = []
    while isinstance(checkpoint, Mapping):
        part = next((part for part in _PARTS if isinstance(checkpoint.get(part), Mapping)), None)
        if part is None:
            break
        beside = sorted(str(key) for key in checkpoint if key != part)
        taken.append(f"'{part}'" + (f' (beside {", ".join(beside)})' if beside else ''))
        checkpoint = checkpoint[part]
    tensors = {k: t for k, t in checkpoint.items() if isinstance(t, Tensor)} if isinstance(checkpoint, Mapping) else {}
    if not tensors:
        held = (
            ', '.join(map(str, list(checkpoint)[:6])) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        )
        raise WeightsError(f'no tensors in it, only: {held}. Known parts are {", ".join(_PARTS)}')
    skipped = [str(name) for name in checkpoint if name not in tensors]
    return Encoder({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, taken, skipped)


def _rename(found: Encoder, trunk: nn.Module) -> None:
    own, state = trunk.state_dict(), found.state
    if 'patch_embed.projection.weight' in state and any(name.startswith('layers.') for name in state):
        found.taken.append('OpenMMLab names')
        for pattern, replacement in _OPENMMLAB:
            state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    blocks = [name for name in state if name.startswith('blocks.')]
    if blocks and all(re.match(r'blocks\.\d+\.\d+\.', name) for name in blocks):
        # DINOv2 trained in chunks; the second number counts through.
        state = {re.sub(r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.', name): tensor for name, tensor in state.items()}
    if 'blocks.0.ls1.gamma' in own:  # DeiT III
        state = {re.sub(r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma', n): t for n, t in state.items()}
    found.state = _same_size(state, found.state)


def _same_size(renamed: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    if len(renamed) < len(state):
        raise WeightsError(f'{len(state) - len(renamed)} of its tensors are there twice, under two spellings of a name')
    return renamed


def _fill_in(found: Encoder, trunk: nn.Module) -> None:
    own, state = trunk.state_dict(), found.state
    if 'OpenMMLab names' in found.taken and 'patch_embed.proj.bias' in own.keys() - state.keys():
        # mmseg's ViT has none unless patch_bias=True; without is the same as zero.
        found.taken.append('zeros as patch_embed.proj.bias, of which it has none')
        state['patch_embed.proj.bias'] = torch.zeros_like(own['patch_embed.proj.bias'])
    tables = [name for name in own if name.endswith('.attn.relative_position_bias_table')]
    shared = 'rel_pos_bias.relative_position_bias_table'
    if shared in state and shared not in own and tables:  # BEiT's pre-training; its fine-tuning repeats it likewise
        found.taken.append(f'{shared} repeated for {len(tables)} blocks')
        table = state.pop(shared)
        state.update({name: table.clone() for name in tables})
        found.skipped += [name for name in state if name.startswith('rel_pos_bias.')]
        found.state = state = {name: tensor for name, tensor in state.items() if not name.startswith('rel_pos_bias.')}
    biases = [name for name in state if name.endswith('.attn.qkv.bias')] if 'storage_tokens' in state else []
    if biases:  # DINOv3; timm's filter drops what the model has no place for
        found.taken.append('without biases of keys, which DINOv3 masks')
    for name in biases:
        if name.replace('qkv.bias', 'q_bias') not in own:
            q, _, v = state.pop(name).chunk(3)
            if q.any() or v.any():
                raise WeightsError(
                    f'{name} is not zero, but the trunk has no such bias. Build the one that has: the arch whose name '
                    'ends in _qkvb'
                )
            found.skipped.append(name)


def read_npz(path: Path, trunk: nn.Module) -> Encoder:
    """A ViT of Google's JAX code, through timm's own reader, which fills a copy of the trunk.

    That reader is not strict: what it leaves of the copy is missing, what it leaves of the file is unexpected. It
    resizes nothing here, so that a table is resampled as one of any other file.

    Args:
        path: The archive.
        trunk: The timm model that is to get the tensors; unchanged.

    Raises:
        WeightsError: Not such a file, or the trunk's family has no such weights.
    """
    if not hasattr(trunk, 'load_pretrained'):
        raise WeightsError(f'a NumPy archive, which holds a plain ViT; {type(trunk).__name__} has no such weights')
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged file fails in many ways
        raise WeightsError(f'a damaged NumPy archive ({type(error).__name__}: {error})') from error
    if void := [name for name, array in arrays.items() if array.dtype.kind == 'V']:
        raise WeightsError(
            f'{void[0]} and others have a type that NumPy does not know (bfloat16): save them as float32'
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    stem = next((name for name in shapes if name.endswith('embedding/kernel')), None)
    if stem is None:
        raise WeightsError(f'no JAX ViT: no embedding/kernel among {", ".join(list(shapes)[:6])}')
    prefix = stem.removesuffix('embedding/kernel')
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    copied = copy.deepcopy(trunk)
    h, w, channels, width = inside['embedding/kernel']
    copied.patch_embed.proj.weight = nn.Parameter(torch.empty(width, channels, h, w))
    if table := next((shape for name, shape in inside.items() if name.endswith('pos_embedding')), None):
        copied.pos_embed = nn.Parameter(torch.empty(table))
    if 'MAPHead_0/probe' not in inside:
        copied.attn_pool = None
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(torch.nan)
    try:
        copied.load_pretrained(str(path))
    except Exception as error:  # a file of another architecture fails in many ways
        raise WeightsError(f'not a ViT like this one: {type(error).__name__}: {error}') from error
    state = {name: tensor for name, tensor in copied.state_dict().items() if not tensor.isnan().any()}
    found = Encoder(state, [f'{prefix}*'] if prefix else [], [name for name in shapes if not name.startswith(prefix)])
    for name, shape in inside.items():
        if name.startswith(_NORM) and 'norm.weight' not in state:
            found.skipped.append(prefix + name)
        elif name.startswith('MAPHead_0/') and 'attn_pool.latent' in state:
            continue
        elif name.startswith(('head/', 'pre_logits/', 'MAPHead_0/')):
            found.skipped.append(prefix + name)
        elif not _is_read(name, shape, trunk):
            state[prefix + name] = torch.empty(shape)  # unexpected
    return found


_NORM = 'Transformer/encoder_norm/'


def _is_read(name: str, shape: tuple[int, ...], trunk: nn.Module) -> bool:
    """Whether timm's reader takes an array of the image tower."""
    if name == 'cls':
        return trunk.cls_token is not None
    if block := re.match(r'Transformer/encoderblock(?:_(\d+))?/', name):
        return int(block[1]) < len(trunk.blocks) if block[1] else shape[0] == len(trunk.blocks)
    return name.startswith(('embedding/', _NORM)) or name.endswith('pos_embedding')
