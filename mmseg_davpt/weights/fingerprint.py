"""Fingerprint of a frozen trunk: a hash of each tensor, by which a task file knows the trunk that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .formats import WeightsError

DIGEST_BYTES = 16


def tensor_digest(tensor: Tensor) -> bytes:
    """First 16 bytes of the SHA-256 of a tensor's shape and float32 values.

    The type does not count: a float16 file and the float32 trunk that was loaded from it have one digest.

    Args:
        tensor: Of any shape and type.
    """
    values = tensor.detach().to('cpu', torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.digest()[:DIGEST_BYTES]


def trunk_fingerprint(state: Mapping[str, Tensor], trained: Collection[str] = ()) -> Tensor:
    """Digests of the frozen tensors of a trunk.

    Args:
        state: timm name -> tensor.
        trained: Names of the tensors that a method trains in place. They are no part of the fingerprint.

    Returns:
        ``(n, 16)`` uint8, in the order of the sorted names.
    """
    digests = [list(tensor_digest(state[name])) for name in sorted(state.keys() - set(trained))]
    return torch.tensor(digests, dtype=torch.uint8)


def require_same_trunk(
    fingerprint: Tensor, state: Mapping[str, Tensor], trained: Collection[str], arch: str, source: str
) -> None:
    """Refuse a trunk that a task file does not belong to.

    Args:
        fingerprint: Of the task file, from :func:`trunk_fingerprint`.
        state: The trunk's tensors, timm name -> tensor.
        trained: Names of the tensors that the task file holds itself.
        arch: timm name, for the message.
        source: Where the trunk's weights come from, for the message.

    Raises:
        WeightsError: Another number of tensors, or another tensor; the message names the first.
    """
    names = sorted(state.keys() - set(trained))
    if tuple(fingerprint.shape) != (len(names), DIGEST_BYTES):
        raise WeightsError(
            f'The task file belongs to a trunk of {len(fingerprint)} frozen tensors; {arch} has {len(names)}: it was made '
            'for another architecture'
        )
    differing = [name for name, digest in zip(names, fingerprint.tolist()) if bytes(digest) != tensor_digest(state[name])]
    if not differing:
        return
    hint = ''
    if differing == ['pos_embed']:
        hint = ' Only the position table differs: set img_size as in the training of the task.'
    raise WeightsError(
        f'The task file belongs to other weights of {arch} than {source}: {differing[0]} differs'
        f'{f", and {len(differing) - 1} more tensors" if len(differing) > 1 else ""}. Load the trunk that the task was '
        f'trained on.{hint}'
    )
