"""Which tensors learn: presets and options -> the set of tuned names, fixed when the model is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from torch import nn

from ..trunks import QKV, bias_home, resolve_blocks


@dataclass(frozen=True)
class TuningPolicy:
    """What of a backbone learns; everything else is frozen.

    Attributes:
        prompts: ``False``, ``'deep'``, ``'shallow'``, or ``True``: of the kind that the ``prompts`` option names.
        bias: ``'all'`` biases of the trunk, or a selection: ``'q'``, ``'k'``, ``'v'`` (parts of the attention's
            projection, tuned apart although timm fuses them) and names of linear or norm layers in a block
            (``'proj'``, ``'fc1'``, ``'fc2'``, ``'norm1'`` ...). The paper's DA-VPT+ tunes ``('k', 'v')``. Softmax
            cancels a key bias, unless the trunk norms its keys: its gradient from the segmentation loss is zero, and
            ``('v',)`` alone does the same.
        norm: Weights and biases of all norms.
        cls_token: The class token.
        blocks: ``'all'`` or indices of blocks that learn as a whole; the final norm goes with the last one.
        stem: All but the blocks: patch embedding, position tables, class token and registers.
        lora: Options of :func:`~mmseg_davpt.tuning.lora.build_lora` (``targets``, ``rank``, ``alpha``) for every block.
        adapter: Options of :class:`~mmseg_davpt.tuning.adapter.AdaptFormer` (``dim``, ``scale``) for every block.
    """

    prompts: bool | str = False
    bias: str | Sequence[str] = ()
    norm: bool = False
    cls_token: bool = False
    blocks: str | Sequence[int] = ()
    stem: bool = False
    lora: Mapping | None = None
    adapter: Mapping | None = None

    @property
    def split_bias(self) -> tuple[str, ...]:
        """The parts of the attention projection's bias that learn apart, in the order q, k, v."""
        return () if self.bias == 'all' else tuple(part for part in QKV if part in self.bias)


PRESETS = {
    'frozen': TuningPolicy(),
    'full': TuningPolicy(blocks='all', stem=True),
    'bias': TuningPolicy(bias='all'),
    'norm': TuningPolicy(norm=True),
    'vpt_shallow': TuningPolicy(prompts='shallow'),
    'vpt_deep': TuningPolicy(prompts='deep'),
    'davpt': TuningPolicy(prompts='deep'),
    'davpt_plus': TuningPolicy(prompts='deep', bias=('k', 'v')),
    'vpt_bias': TuningPolicy(prompts='deep', bias='all'),
    'lora': TuningPolicy(lora=dict(targets=('q', 'v'), rank=8)),
    'lora_all': TuningPolicy(lora=dict(targets=('q', 'k', 'v', 'proj'), rank=8)),
    'adaptformer': TuningPolicy(adapter=dict(dim=64, scale=0.1)),
}


def resolve_policy(tuning: str | Mapping, depth: int) -> TuningPolicy:
    """Read the ``tuning`` option.

    Args:
        tuning: A preset of :data:`PRESETS`, ``partial-k`` for the last ``k`` blocks, or a dict of
            :class:`TuningPolicy`'s attributes.
        depth: Number of blocks up to the last one that is read.

    Raises:
        ValueError: Unknown preset or option.
    """
    if isinstance(tuning, str):
        if partial := re.fullmatch(r'partial-(\d+)', tuning):
            last = int(partial[1])
            if not 1 <= last <= depth:
                raise ValueError(f'tuning={tuning!r}: the trunk uses {depth} blocks')
            return TuningPolicy(blocks=tuple(range(depth - last, depth)))
        if tuning not in PRESETS:
            raise ValueError(f'tuning={tuning!r}: expected one of {", ".join(PRESETS)}, partial-k, or a dict')
        return PRESETS[tuning]
    known = [field.name for field in fields(TuningPolicy)]
    if unknown := sorted(set(tuning) - set(known)):
        raise ValueError(f'tuning: unknown option {unknown[0]!r}; known are {", ".join(known)}')
    return TuningPolicy(**tuning)


def tuned_names(trunk: nn.Module, policy: TuningPolicy, depth: int, norm_outputs: bool) -> set[str]:
    """Names of the trunk's own parameters that learn under a policy.

    Parameters that no output depends on (blocks behind the last tap, poolers) never learn: a parameter without a
    gradient breaks distributed training.

    Args:
        trunk: A timm ViT.
        policy: The policy.
        depth: Number of blocks up to the last one that is read.
        norm_outputs: Whether the final norm is applied, hence used.

    Raises:
        ValueError: An option that matches no parameter.
    """
    used = {name for name, _ in trunk.named_parameters() if _is_used(name, depth, norm_outputs)}
    chosen: set[str] = set()

    def choose(option: str, names: set[str]) -> None:
        if not names & used:
            raise ValueError(f'tuning: {option} matches no parameter of this trunk')
        chosen.update(names & used)

    if policy.bias == 'all':
        choose("bias='all'", {name for name in used if _BIAS.search(name)})
    elif isinstance(policy.bias, str):
        raise ValueError(f"tuning: bias={policy.bias!r}: expected 'all' or a tuple such as ('k', 'v')")
    else:
        for part in policy.bias:
            if part in QKV:
                _require_bias(trunk, part)
            else:
                choose(f'bias={part!r}', {name for name in used if re.search(rf'\.{re.escape(part)}\.bias$', name)})
    if policy.norm:
        choose('norm', norm_parameters(trunk))
    if policy.cls_token:
        choose('cls_token', {'cls_token'})
    if policy.stem:
        choose('stem', {name for name in used if name.split('.')[0] in _STEM})
    if policy.blocks:
        blocks = resolve_blocks(policy.blocks, depth, 'tuning.blocks')
        if policy.split_bias:
            raise ValueError(f'tuning: blocks {blocks} learn as a whole, bias={policy.split_bias} would learn twice')
        for index in blocks:
            choose(f'blocks: {index}', {name for name in used if name.startswith(f'blocks.{index}.')})
        if depth - 1 in blocks:
            chosen.update(name for name in used if name.startswith('norm.'))
    return chosen


def _require_bias(trunk: nn.Module, part: str) -> None:
    """A bias that the trunk does not have is not added: it could not be merged back."""
    attn = trunk.blocks[0].attn
    if bias_home(attn, part) is None:
        has = [other for other in QKV if bias_home(attn, other) is not None]
        raise ValueError(
            f"tuning: bias={part!r} matches no parameter: of its attention's projections, this trunk has a bias for "
            f'{", ".join(has) or "none"}'
            + (' (a key bias changes nothing: tuning=dict(prompts=True, bias=("v",)) does the same)' if has else '')
        )


_BIAS = re.compile(r'(\.|\.[qv]_)bias$')
_STEM = (
    'patch_embed',
    'pos_embed',
    'cls_token',
    'dist_token',
    'reg_token',
    'norm_pre',
    'rope',  # mixed rotary frequencies
    'rel_pos_bias',  # BEiT's shared table
)


def norm_parameters(module: nn.Module) -> set[str]:
    """Names of the weights and biases of all norms in a module."""
    return {
        f'{path}.{name}'
        for path, child in module.named_modules()
        if 'norm' in path.split('.')[-1]
        for name, _ in child.named_parameters(recurse=False)
    }


def _is_used(name: str, depth: int, norm_outputs: bool) -> bool:
    parts = name.split('.')
    if parts[0] == 'blocks':
        return int(parts[1]) < depth
    if parts[0] == 'norm':
        return norm_outputs
    return parts[0] in _STEM


def freeze_except(trunk: nn.Module, names: set[str]) -> None:
    """Freeze the trunk but for the named parameters."""
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name in names)


def train_tuned_parts(trunk: nn.Module, mode: bool = True) -> None:
    """Put the parts that learn as a whole into train mode and everything else into eval mode (no live drop path)."""
    trunk.eval()
    if mode:
        parts = [child for name, child in trunk.named_children() if name != 'blocks']
        for part in (*parts, *trunk.blocks):
            parameters = list(part.parameters())
            if parameters and all(parameter.requires_grad for parameter in parameters):
                part.train()
