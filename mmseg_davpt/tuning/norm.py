"""Weights and biases of all norms."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from ..trunks import Trunk
from .base import TUNING_METHODS, Preset, TuningMethod


@TUNING_METHODS.register_module(name='norm')
class Norm(TuningMethod):
    """Weights and biases of all norms of the trunk, trained in place.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
    """

    presets = {'norm': Preset(dict(norm={}))}

    def __init__(self, trunk: Trunk, depth: int) -> None:
        super().__init__(trunk, depth)
        self._names = {
            f'{path}.{name}'
            for path, module in trunk.named_modules()
            if 'norm' in path.split('.')[-1]
            for name, _ in module.named_parameters(recurse=False)
        }

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """All norms."""
        if not (names := self._names & set(used)):
            raise ValueError('tuning: norm matches no parameter of this trunk')
        return names

    def merge(self, state: dict[str, Tensor]) -> None:
        """Nothing to do: the parameters are the trunk's."""
