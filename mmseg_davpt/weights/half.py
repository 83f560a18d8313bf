"""Frozen matrices of a trunk in half precision, and the digests of their values before the cast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .fingerprint import tensor_digest

TRUNK_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
HALF = (torch.bfloat16, torch.float16)
# In a state dict behind the trunk's prefix: digests for tensors that were cast before they were saved.
DIGESTS = 'file_digests'


def store_frozen(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Convert the frozen weights and biases of linear and convolutional layers, in place.

    These are all but about 1 % of a trunk. Norms, LayerScale, tokens and position tables stay float32, as under
    autocast. ``trunk.file_digests`` receives the digest of each converted tensor as it is loaded, before the cast.

    Args:
        trunk: A timm ViT.
        dtype: A type of :data:`TRUNK_DTYPES`; with float32 nothing is converted.
    """
    trunk.file_digests = {}  # type: ignore[assignment]  # torch types attributes of modules as tensors and modules
    trunk.register_load_state_dict_pre_hook(_note_digests)
    for module in trunk.modules():
        for parameter in module._parameters.values() if isinstance(module, (nn.Linear, nn.Conv2d)) else ():
            if parameter is not None and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def _note_digests(trunk: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before the trunk is loaded: keep the digests of values that a half precision tensor cannot hold."""
    known: dict[str, str] = state.pop(prefix + DIGESTS, {})
    for name, tensor in trunk.state_dict().items():
        value: Tensor | None = state.get(prefix + name)
        if value is None:
            continue
        trunk.file_digests.pop(name, None)
        if name in known:
            trunk.file_digests[name] = known[name]
        elif tensor.dtype in HALF and not value.is_meta:
            trunk.file_digests[name] = tensor_digest(value)
