"""LoRA on the projections of attention, by peft (Hu et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..trunks import QKV, projection

TARGETS = (*QKV, 'proj')


class Projection(nn.Linear):
    """One projection of an attention module as the linear layer that peft adapts.

    It reads the trunk's weight and owns none: the trunk keeps timm's names, fused or not.
    """

    def __init__(self, attn: nn.Module, part: str) -> None:
        nn.Module.__init__(self)
        self.__dict__['attn'] = attn  # no submodule: its parameters are the trunk's
        self.part = part
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:
        """``(D, D)``."""
        return projection(self.attn, self.part)[0]

    @property
    def bias(self) -> Tensor | None:
        """``(D,)``."""
        return projection(self.attn, self.part)[1]


def build_lora(
    attn: nn.Module, targets: Sequence[str] = ('q', 'v'), rank: int = 8, alpha: float | None = None
) -> nn.ModuleDict:
    """Low-rank updates of an attention's projections: ``W x + b + alpha / rank * B A x``, with ``B = 0`` at first.

    Args:
        attn: An attention module of a trunk.
        targets: Of ``'q'``, ``'k'``, ``'v'``, ``'proj'``; LoRA's own choice is query and value.
        rank: Rank of the updates.
        alpha: Their scale is ``alpha / rank``; ``rank`` by default.

    Returns:
        Target -> peft's layer, which takes the place of the projection.

    Raises:
        ImportError: peft is not installed.
        ValueError: An unknown target, or a rank below 1.
    """
    if rank < 1 or not targets or not set(targets) <= set(TARGETS):
        raise ValueError(f'tuning.lora: targets={tuple(targets)}, rank={rank}: expected some of {TARGETS}, a rank >= 1')
    try:
        from peft import LoraConfig, inject_adapter_in_model  # optional, and slow to import
    except ImportError as error:
        raise ImportError("tuning.lora needs peft: pip install 'mmseg-davpt[lora]', or peft") from error
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules='|'.join(targets))
    # peft asks the model for a parameter to learn its device, and the projections own none.
    layers = nn.ModuleDict({'owner': attn, **{part: Projection(attn, part) for part in targets}})
    layers = inject_adapter_in_model(config, layers)
    del layers['owner']
    return layers


def lora_deltas(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Target -> what merging adds to its weight, ``(D, D)``."""
    return {part: layer.get_delta_weight('default') for part, layer in layers.items()}
