"""LoRA on the projections of attention, by peft (Hu et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..options import check_integer, check_number, check_sequence, wrong
from ..trunks import QKV, Trunk, projection, resolve_blocks, weight_home
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import tune_attention

TARGETS = (*QKV, 'proj')


class Projection(nn.Linear):
    """One projection of attention as the linear layer that peft adapts.

    It has no parameters: its weight and bias are views of the trunk's, which keep timm's names, fused or not. Its
    output is computed by the attention and passed in. So it differs from nn.Linear in the types of its members.
    """

    def __init__(self, attn: nn.Module, target: str) -> None:
        nn.Module.__init__(self)
        self._attn, self.target = [attn], target  # a list: the attention is no child
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``(D, D)``."""
        return projection(self._attn[0], self.target)[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """``(D,)``."""
        return projection(self._attn[0], self.target)[1]

    def forward(self, x: Tensor, out: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``out``, the projection of ``x``."""
        return out


@TUNING_METHODS.register_module(name='lora')
class LoRA(TuningMethod):
    """Low-rank updates of projections: ``W x + b + alpha / rank * B A x``, with ``B = 0`` at the start.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        targets: Of ``'q'``, ``'k'``, ``'v'``, ``'proj'``; LoRA's choice is query and value.
        rank: Rank of the updates.
        alpha: Their scale is ``alpha / rank``; ``rank`` by default.
        blocks: ``'all'`` or block indices, negative ones counted from the end. Blocks before the first build no graph.

    Raises:
        ImportError: peft is not installed.
        ValueError: An unknown or repeated target, or a number or a block out of range; the message names the option.
    """

    presets = {
        'lora': Preset(dict(lora={})),
        'lora_all': Preset(dict(lora=dict(targets=TARGETS))),
    }
    peft_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        trunk: Trunk,
        depth: int,
        targets: Sequence[str] = ('q', 'v'),
        rank: int = 8,
        alpha: float | None = None,
        blocks: str | Sequence[int] = 'all',
    ) -> None:
        super().__init__(trunk, depth)
        name = type(self).__name__
        rank = check_integer(self.option('rank'), rank)
        alpha = rank if alpha is None else check_number(self.option('alpha'), alpha, above=True)
        expected = f'a list or tuple of some of {", ".join(map(repr, TARGETS))}'
        targets = check_sequence(self.option('targets'), targets, expected)
        if sorted(targets, key=str) != sorted(set(TARGETS).intersection(targets)) or not targets:
            raise wrong(self.option('targets'), targets, expected)
        try:
            from peft import LoraConfig, inject_adapter_in_model  # optional, and slow to import
        except ImportError as error:
            raise ImportError(f"{name} needs peft: pip install 'mmseg-davpt[lora]', or peft") from error
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
            target_modules='|'.join(targets),
            **self.peft_options,
        )
        self.blocks = resolve_blocks(blocks, depth, self.option('blocks'))
        self.layers: Any = nn.ModuleDict()  # block -> nn.ModuleDict, target -> layer of peft
        for index in self.blocks:
            block = trunk.blocks[index]
            # peft looks for a parameter to learn its device, and the projections have none.
            layers = nn.ModuleDict({'device': block.attn, **{t: Projection(block.attn, t) for t in targets}})
            layers = cast(nn.ModuleDict, inject_adapter_in_model(config, layers))
            del layers['device']
            self.layers[str(index)] = layers

    def attach(self, trunk: Trunk) -> None:
        """Change the outputs of the target projections."""
        for index in self.blocks:
            attention = tune_attention(trunk, index)
            attention.methods.append(self)
            for layer in self.layers[str(index)].values():
                layer.get_base_layer()._attn = [attention]

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """``out + alpha / rank * B A x`` for the targets."""
        layers = self.layers[str(block)]
        return layers[target](x, out=out) if target in layers else out

    def merge(self, state: dict[str, Tensor]) -> None:
        """``W + alpha / rank * B A``."""
        for index, layers in self.layers.items():
            for target, layer in layers.items():
                name, rows = weight_home(layer.get_base_layer()._attn[0], target)
                weight = state[f'blocks.{index}.attn.{name}']
                weight[rows] = self.merged_weight(layer, weight[rows])

    def merged_weight(self, layer: Any, weight: Tensor) -> Tensor:
        """The weight ``(D, D)`` of one projection with the update of its layer."""
        return weight + layer.get_delta_weight('default')
