"""Frozen linear layers with weights in int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LARGEST = 127


class Int8Linear(nn.Linear):
    """A linear layer with a frozen weight in int8 and one scale per output: ``W = scale * values``.

    ``weight`` is no parameter, but ``W`` in bfloat16, made on each access. Outputs and gradients, of the input and of
    the bias, are those of a bfloat16 layer with this weight. State dicts hold it, so that layers of any type load them.
    Loading rounds to int8; values that were rounded before come back exactly.

    :func:`store_int8` makes it of a layer, in place, so that hooks and references stay.

    Attributes:
        values: int8, ``(D_out, D_in)``.
        scale: float32, ``(D_out,)``.
    """

    values: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``W``, ``(D_out, D_in)``, bfloat16."""
        return _dequantize(self.values, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b``, ``(..., D_in)`` -> ``(..., D_out)``, bfloat16."""
        return self.project(x, slice(None), self.bias)

    def project(self, x: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        """``W x + b`` of some outputs; ``bias`` is theirs."""
        bias = bias if bias is None else bias.to(torch.bfloat16)
        out: Tensor = _Linear.apply(x.to(torch.bfloat16), self.values[rows], self.scale[rows], bias)
        return out

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f'{prefix}weight'] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name, shape = f'{prefix}weight', tuple(self.values.shape)
        if (weight := state_dict.get(name)) is None:
            missing_keys.append(name)
        elif weight.shape != shape:
            error_msgs.append(
                f'size mismatch for {name}: {tuple(weight.shape)} in the state dict, {shape} in the model.'
            )
        else:
            self.values, self.scale = (tensor.to(self.values.device) for tensor in quantize(weight))
        rest = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


class _Linear(torch.autograd.Function):
    """``x W^T + b``. It keeps int8 for the backward pass, where autograd would keep ``W`` in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, scale)
        return F.linear(x, _dequantize(values, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        of_x, _, _, of_bias = ctx.needs_input_grad
        grad_x = grad @ _dequantize(*ctx.saved_tensors) if of_x else None
        return grad_x, None, None, grad.reshape(-1, grad.shape[-1]).sum(0) if of_bias else None


def _dequantize(values: Tensor, scale: Tensor) -> Tensor:
    return values.to(torch.bfloat16).mul_(scale[:, None])  # computed in float32, rounded once


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of a matrix to 255 levels, symmetric about zero.

    The largest level is a value of bfloat16. So the levels in bfloat16 are rounded to the same levels.

    Args:
        weight: ``(D_out, D_in)``.

    Returns:
        int8 values ``(D_out, D_in)``, and float32 scales ``(D_out,)``.
    """
    weight = weight.float()
    largest = weight.abs().amax(1).to(torch.bfloat16).float()
    scale = (largest / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scale[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def store_int8(module: nn.Module) -> None:
    """Convert the linear layers with a frozen weight, in place."""
    for layer in module.modules():
        if type(layer) is nn.Linear and not layer.weight.requires_grad:
            tensors = quantize(layer.weight.detach())
            del layer.weight
            layer.__class__ = Int8Linear
            # Buffers, as mmengine takes means of all parameters, which int8 does not have.
            for name, tensor in zip(('values', 'scale'), tensors):
                layer.register_buffer(name, tensor, persistent=False)


def restore_float32(module: nn.Module) -> None:
    """Undo :func:`store_int8` but for the rounding, in place."""
    for layer in module.modules():
        if isinstance(layer, Int8Linear):
            weight = layer.weight.float()
            del layer.values, layer.scale
            layer.__class__ = nn.Linear  # type: ignore[assignment]  # the narrowed type
            layer.register_parameter('weight', nn.Parameter(weight, requires_grad=False))


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a module and the values of its int8 weights, under the names of its state dict."""
    yield from module.named_parameters()
    for name, layer in module.named_modules():
        if isinstance(layer, Int8Linear):
            yield f'{name}.weight', layer.values
