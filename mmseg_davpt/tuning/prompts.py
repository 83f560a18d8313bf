"""Trainable prompts: VPT (Jia et al., ECCV 2022), DA-VPT (Ren et al., CVPR 2025), gated prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..options import check_bool, check_choice, check_integer, check_integers, check_number, wrong
from ..trunks import Trunk, resolve_blocks
from .attention import GatedPrompts, JoinedPrompts
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import TunedBlock, tune_attention, tune_block

INITS = ('xavier', 'prototype')


@TUNING_METHODS.register_module(name='prompts')
class DeepPrompts(TuningMethod):
    """Prompts ``P^l``, shape ``(M, D)``, of each prompted block (VPT-Deep; VPT, section 3.2).

    They join the block's attention as keys and values: :class:`~mmseg_davpt.tuning.attention.JoinedPrompts`, or
    :class:`~mmseg_davpt.tuning.attention.GatedPrompts` with ``gate=True``.

    In eval mode without gradients the keys and values are constants. They are computed once and dropped by ``train()``
    and ``eval()``, on loading, and on a change of device or type. A block whose parameters are replaced or changed in
    place in between is computed anew.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        num: Prompts per block: one number, or one for each prompted block.
        blocks: ``'all'`` or block indices, negative ones counted from the end.
        init: ``'xavier'`` (the default), or ``'prototype'``: ``PromptAssignmentHook`` writes the centroids of the
            assigned clusters into the prompts before training. The paper measured that initializing with means of the
            data hurts its guidance.
        dropout: Probability that an element of a prompt is zeroed in training; the same for every image.
        gate: Gated prompts, whose gate is zero at the start.

    Attributes:
        tokens: Block index, as a string -> prompts ``(M, D)``.
        gates: Block index, as a string -> gate ``(1,)``; empty without ``gate``.
        initialised: Buffer, saved with the model: ``False`` while prompts wait for their prototypes.
        is_ready: The same as a Python value.

    Raises:
        ValueError: An option out of range; the message names it.
    """

    presets = {
        'vpt_deep': Preset(dict(prompts={})),
        'davpt': Preset(dict(prompts={}), guided=True),
        'davpt_gated': Preset(dict(prompts=dict(gate=True, init='prototype')), guided=True),
    }
    initialised: Tensor

    def __init__(
        self,
        trunk: Trunk,
        depth: int,
        num: int | Sequence[int] = 20,
        blocks: str | Sequence[int] = 'all',
        init: str = 'xavier',
        dropout: float = 0.0,
        gate: bool = False,
    ) -> None:
        super().__init__(trunk, depth)
        self.init = check_choice('prompts.init', init, INITS)
        self.dropout = check_number('prompts.dropout', dropout, high=1.0, below=True)
        self.gated = check_bool('prompts.gate', gate)
        self.blocks = resolve_blocks(blocks, depth, 'prompts.blocks')
        if isinstance(num, Sequence):
            counts = check_integers('prompts.num', num, len(self.blocks))
            if min(counts) < 1:
                raise wrong('prompts.num', num, f'a number >= 1 for each of {len(self.blocks)} prompted blocks')
        else:
            counts = (check_integer('prompts.num', num),) * len(self.blocks)
        self.tokens, self.gates = nn.ParameterDict(), nn.ParameterDict()
        for block, count in zip(self.blocks, counts):
            self.tokens[str(block)] = nn.Parameter(torch.empty(count, self.width))
            if self.gated:
                self.gates[str(block)] = nn.Parameter(torch.zeros(1))
        self.register_buffer('initialised', torch.tensor(init != 'prototype'))
        self.is_ready = init != 'prototype'  # reading the buffer waits for the device
        self._cache: dict[tuple[int, torch.dtype | None], _Constants] = {}
        # Drawn in the order of the names: seeds keep their meaning for the stored results of the benchmarks.
        init_prompts([self.tokens[name] for name in sorted(self.tokens)], trunk.patch_embed.patch_size)

    def check(self, methods: Mapping[str, TuningMethod]) -> None:
        """Refuse two methods with deep prompts: a block takes the prompts of one."""
        names = [name for name, method in methods.items() if isinstance(method, DeepPrompts)]
        if len(names) > 1:
            raise ValueError(f'tuning: {" and ".join(names)} both have deep prompts: choose one')

    def attach(self, trunk: Trunk) -> None:
        """Join the attention of the prompted blocks."""
        for index in self.blocks:
            tune_block(trunk, index).methods.append(self)
            tune_attention(trunk, index)

    def forward(self, block: int) -> Tensor:
        """The prompts of a block, ``(M, D)``, after dropout."""
        return F.dropout(self.tokens[str(block)], self.dropout, self.training)

    def join(self, block: TunedBlock) -> JoinedPrompts:
        """``LN1(P)`` and the keys and values made from it by the block's projections."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._project(block)
        device = self.tokens[str(block.index)].device.type
        key = block.index, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        constants = self._cache.get(key)  # one read: another thread may replace the entry
        if constants is None or not constants.valid():
            modules = [block.norm1, block.attn, *block.attn.methods, self]
            self._cache[key] = constants = _Constants(self._project(block), modules)
        return constants.joined

    def _project(self, block: TunedBlock) -> JoinedPrompts:
        tokens = block.norm1(self(block.index))
        keys, values = block.attn.prompt_keys(tokens), block.attn.prompt_values(tokens)
        if not self.gated:
            return JoinedPrompts(tokens, keys, values)
        return GatedPrompts(tokens, keys, values * self.gates[str(block.index)])

    def mark_initialised(self) -> None:
        """Note that the prompts hold their prototypes."""
        self.initialised.fill_(True)
        self.is_ready = True

    def require_initialised(self) -> None:
        """Refuse prompts that wait for their prototypes.

        Raises:
            RuntimeError: ``init='prototype'``, and no prototypes were written or loaded.
        """
        if not self.is_ready:
            raise RuntimeError(
                "prompts.init='prototype', but no prototypes were written: it needs a PromptedEncoderDecoder with "
                "guidance and dict(type='PromptAssignmentHook') in custom_hooks"
            )

    def counts(self) -> list[int]:
        """Number of prompts of each of the ``depth`` blocks; 0 where a block has none."""
        return [len(self.tokens[str(block)]) if str(block) in self.tokens else 0 for block in range(self.depth)]

    def train(self, mode: bool = True) -> DeepPrompts:
        """As ``nn.Module.train``; drops the constants of eval mode."""
        self._cache.clear()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeepPrompts:
        self._cache.clear()
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)
        if not self.initialised.is_meta:
            self.is_ready = bool(self.initialised)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_cache': {}}  # copies and pickles compute their own

    def merge(self, state: dict[str, Tensor]) -> None:
        """Refused: prompts are keys and values, not weights."""
        raise ValueError('prompts cannot be merged into the trunk: they are additional keys and values, not weights')


class _Constants:
    """Prompts of one block in eval mode, and the parameters that they were computed from.

    Args:
        joined: The prompts.
        modules: Modules that hold these parameters.
    """

    def __init__(self, joined: JoinedPrompts, modules: Sequence[nn.Module]) -> None:
        self.joined = joined
        self._sources = [
            (slots, name, parameter, _version(parameter))
            for root in modules
            for module in root.modules()
            for slots in (module._parameters,)
            for name, parameter in slots.items()
            if parameter is not None
        ]

    def valid(self) -> bool:
        """Whether each parameter is the same object (``torch.func.functional_call`` swaps them) and unchanged."""
        return all(
            slots.get(name) is parameter and _version(parameter) == version
            for slots, name, parameter, version in self._sources
        )


def _version(parameter: Tensor) -> int:
    """How often a tensor was written to in place; inference tensors do not count."""
    return 0 if parameter.is_inference() else parameter._version


@TUNING_METHODS.register_module(name='shallow_prompts')
class ShallowPrompts(TuningMethod):
    """VPT-Shallow: prompts join the tokens before the first block, and later blocks carry them along.

    They stand between prefix and patches, ``[prefix, P, patches]``.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        num: Number of prompts.
        dropout: Probability that an element of a prompt is zeroed in training.

    Raises:
        ValueError: An option out of range, or attention with a table of relative positions (BEiT), which has none for
            prompts.
    """

    presets = {'vpt_shallow': Preset(dict(shallow_prompts={}))}

    def __init__(self, trunk: Trunk, depth: int, num: int = 20, dropout: float = 0.0) -> None:
        super().__init__(trunk, depth)
        num = check_integer('prompts.num', num)  # one: shallow prompts enter before block 0 only
        self.dropout = check_number('prompts.dropout', dropout, high=1.0, below=True)
        if any(hasattr(block.attn, 'relative_position_bias_table') for block in trunk.blocks):
            raise ValueError('tuning: shallow prompts have no place in a table of relative positions: use vpt_deep')
        self.prefix_length: int = trunk.num_prefix_tokens
        self.tokens = nn.ParameterDict({'0': nn.Parameter(torch.empty(num, self.width))})
        self._trunk = [trunk]  # a list: the trunk is no child of the method
        init_prompts(self.tokens.values(), trunk.patch_embed.patch_size)

    def attach(self, trunk: Trunk) -> None:
        """Enter before the first block; rotary attention leaves the prompts in front of the patches unrotated."""
        tune_block(trunk, 0).register_forward_pre_hook(self._insert)
        self._shift_rotation(len(self.tokens['0']))

    def _shift_rotation(self, number: int) -> None:
        for block in self._trunk[0].blocks:
            if hasattr(block.attn, 'num_prefix_tokens'):
                block.attn.num_prefix_tokens += number

    def _insert(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Forward pre-hook of the first block: ``(B, T + N, D)`` tokens become ``(B, T + M + N, D)``."""
        if not self.active:
            return None
        x, prefix = args[0], self.prefix_length
        prompts = F.dropout(self.tokens['0'], self.dropout, self.training).to(x.dtype).expand(x.shape[0], -1, -1)
        return (torch.cat([x[:, :prefix], prompts, x[:, prefix:]], dim=1), *args[1:])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """As for every method; rotary codes then begin right behind the prefix."""
        self._shift_rotation(-len(self.tokens['0']))
        try:
            with super().disabled():
                yield
        finally:
            self._shift_rotation(len(self.tokens['0']))

    def merge(self, state: dict[str, Tensor]) -> None:
        """Refused: prompts are tokens, not weights."""
        raise ValueError('shallow_prompts cannot be merged into the trunk: they are additional tokens, not weights')


@torch.no_grad()
def init_prompts(tokens: Iterable[Tensor], patch_size: tuple[int, int]) -> None:
    """Xavier-uniform over the fan of the patch embedding, as in VPT, divided by 8 as in the official DA-VPT code."""
    for prompts in tokens:
        bound = (6.0 / (3 * patch_size[0] * patch_size[1] + prompts.shape[1])) ** 0.5 / 8.0
        nn.init.uniform_(prompts, -bound, bound)
