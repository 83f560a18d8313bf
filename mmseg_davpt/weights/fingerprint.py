"""Fingerprints of frozen trunks: a digest per tensor, which relates a file to its trunk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .formats import WeightsError

_HEX_DIGITS = 32


@dataclass(frozen=True)
class TrunkFingerprint:
    """What a file without the trunk records of the trunk.

    Attributes:
        arch: timm name.
        position_grid: Height and width of the position table in patches; ``None`` for a trunk without one.
        tensors: timm name -> :func:`tensor_digest`, of the frozen tensors that an output depends on.
    """

    arch: str
    position_grid: tuple[int, int] | None
    tensors: Mapping[str, str]

    @classmethod
    def of(
        cls,
        arch: str,
        position_grid: tuple[int, int] | None,
        state: Mapping[str, Tensor],
        known: Mapping[str, str] | None = None,
    ) -> TrunkFingerprint:
        """Fingerprint of tensors.

        Args:
            arch: timm name.
            position_grid: Height and width of the position table in patches, or ``None``.
            state: timm name -> tensor.
            known: Digests of tensors that were cast after they were read; timm name -> digest.
        """
        known = known or {}
        digests = {name: known.get(name) or tensor_digest(state[name]) for name in sorted(state)}
        return cls(arch, position_grid, digests)

    @classmethod
    def from_dict(cls, values: Any) -> TrunkFingerprint:
        """Read the result of :meth:`to_dict`.

        Raises:
            WeightsError: It is something else.
        """
        try:
            grid = values['position_grid']
            fingerprint = cls(values['arch'], None if grid is None else (grid[0], grid[1]), values['tensors'])
            names = [fingerprint.arch, *fingerprint.tensors, *fingerprint.tensors.values()]
            if not all(isinstance(name, str) for name in names):
                raise TypeError
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise WeightsError('The fingerprint of the trunk is damaged') from error
        return fingerprint

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON and checkpoints."""
        grid = None if self.position_grid is None else list(self.position_grid)
        return dict(arch=self.arch, position_grid=grid, tensors=dict(self.tensors))

    def require_match(self, other: TrunkFingerprint, source: str) -> None:
        """Refuse another trunk.

        Args:
            other: Fingerprint of the trunk at hand.
            source: Where its weights come from, for the message.

        Raises:
            WeightsError: The message names the first tensor that differs.
        """
        differing = sorted(name for name, digest in self.tensors.items() if other.tensors.get(name) != digest)
        if not differing and self.tensors.keys() == other.tensors.keys():
            return
        expected = f'The file belongs to {self.arch}'
        if differing == ['pos_embed'] and self.position_grid != other.position_grid:
            raise WeightsError(
                f'{expected} with a position table of {_size(self.position_grid)} patches; this model has '
                f'{_size(other.position_grid)}. Set backbone.img_size as in the training'
            )
        first = (differing or sorted(other.tensors.keys() - self.tensors.keys()))[0]
        more = f' and {len(differing) - 1} more tensors differ' if len(differing) > 1 else ' differs'
        raise WeightsError(
            f'{expected} with other weights than {other.arch} from {source}: {first}{more}. Load the trunk that the '
            'file was trained on: backbone.pretrained (in Python: trunk=...)'
        )


def tensor_digest(tensor: Tensor) -> str:
    """First 32 hex digits of the SHA-256 of a tensor's shape and float32 values.

    The type does not count: a float16 file and the float32 trunk that it was loaded into have one digest.

    Args:
        tensor: Of any shape and type.
    """
    values = tensor.detach().to('cpu', torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()[:_HEX_DIGITS]


def _size(grid: tuple[int, int] | None) -> str:
    return 'no' if grid is None else f'{grid[0]}x{grid[1]}'
