"""Optimizer wrappers: mixed precision on a CPU, and parameter groups without a line for every frozen tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from ..models import PromptedViT
from ..options import check_integer, check_mapping, check_number
from ..tuning import TUNING_METHODS
from .precision import choose_cpu_dtype


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` under autocast on a CPU; mmengine's ``AmpOptimWrapper`` insists on an accelerator.

    Args:
        dtype: ``'bfloat16'``; ``'auto'``: bfloat16 on a CPU that has instructions for it, float32 on others;
            ``'float32'``: no autocast. It has no effect on a GPU, where modules run in float32.
        **options: As for ``OptimWrapper``.

    Attributes:
        cpu_dtype: ``torch.bfloat16`` or ``torch.float32``.

    Raises:
        ValueError: Another ``dtype``.
    """

    def __init__(self, dtype: str = 'bfloat16', **options: Any) -> None:
        super().__init__(**options)
        self.cpu_dtype = choose_cpu_dtype(dtype)
        if dtype == 'auto':
            name, no = ('bfloat16', '') if self.cpu_dtype == torch.bfloat16 else ('float32', 'no ')
            print_log(f'Precision on a CPU: {name}; this one has {no}instructions for bfloat16.', logger='current')

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast around the forward."""
        half = self.cpu_dtype == torch.bfloat16
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16, enabled=half):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups by tuning method; everything outside of a ``PromptedViT`` as in mmengine.

    A trainable parameter of the backbone is matched against ``paramwise_cfg.custom_keys`` under its name and under
    ``tuned.METHOD``, also where the method trains the trunk's parameters in place: ``'tuned.bias'`` holds for biases,
    ``'tuned.blocks'`` for full tuning, ``'tuned'`` for every method. The longest key that matches counts.

    Weight decay applies to weight matrices of the trunk only, unless the key names a ``decay_mult``: it would pull
    pretrained biases, norms and position tables towards zero.

    Frozen modules are skipped without mmengine's warning per parameter.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with the optimizer.
        paramwise_cfg: Rates and decay by name, as above.

    Raises:
        ValueError: A number out of range, an unknown option, or a key of ``custom_keys`` that matches no parameter of
            the model, trained or frozen, and names no tuning method, head or neck.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        _check_wrapper(self.optim_wrapper_cfg)
        for option in ('lr', 'weight_decay'):
            if self.optimizer_cfg.get(option) is not None:
                check_number(f'optim_wrapper.optimizer.{option}', self.optimizer_cfg[option])
        for key, options in self._custom_keys.items():
            _check_custom_key(key, options)

    @property
    def _custom_keys(self) -> Mapping[str, Any]:
        return self.paramwise_cfg.get('custom_keys', {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model and its wrapper."""
        parts = [f'tuned.{method}.' for method in TUNING_METHODS.module_dict]
        parts += [f'{part}.' for part in ('decode_head', 'auxiliary_head', 'neck')]
        names = [*(f'backbone.{part}' for part in parts), *parts, *(name for name, _ in model.named_parameters())]
        for key in self._custom_keys:
            if not any(key in name for name in names):
                close = get_close_matches(key, {part for name in names for part in _prefixes(name)}, n=3)
                raise ValueError(
                    f'optim_wrapper.paramwise_cfg.custom_keys[{key!r}] matches no parameter: the rates would be those '
                    f'of other keys. Close names: {", ".join(close) or "none"}'
                )
        return super().__call__(model)

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **kwargs: object) -> None:
        """Add the parameter groups of a module, unless all of it is frozen."""
        if isinstance(module, PromptedViT):
            self._add_tuned(params, module, prefix)
        elif any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, prefix, **kwargs)

    def _add_tuned(self, params: list[dict[str, Any]], backbone: PromptedViT, prefix: str) -> None:
        """One group per method and pair of learning rate and decay."""
        keys = sorted(self._custom_keys, key=len, reverse=True)
        groups: dict[tuple[str, float, float], dict[str, Any]] = {}
        for name, method, parameter in backbone.trainable_parameters():
            names = f'{prefix}.{name}', f'{prefix}.tuned.{method}.'
            key = next((key for key in keys if any(key in name for name in names)), None)
            options = {} if key is None else self._custom_keys[key]
            decayed = name.startswith('trunk.') and name.endswith('weight') and parameter.ndim > 1
            lr_mult, decay_mult = options.get('lr_mult', 1.0), options.get('decay_mult', float(decayed))
            group = groups.setdefault((method, lr_mult, decay_mult), dict(params=[], method=method))
            group['params'].append(parameter)
            if self.base_lr is not None:
                group['lr'] = self.base_lr * lr_mult
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * decay_mult
        params.extend(groups.values())


def _check_wrapper(cfg: Mapping[str, Any]) -> None:
    check_integer('optim_wrapper.accumulative_counts', cfg.get('accumulative_counts', 1))
    if (clip_grad := cfg.get('clip_grad')) is not None:
        check_mapping('optim_wrapper.clip_grad', clip_grad)
        for option in ('max_norm', 'clip_value'):
            if option in clip_grad:
                check_number(f'optim_wrapper.clip_grad.{option}', clip_grad[option], above=True)


def _check_custom_key(key: str, options: Any) -> None:
    name, known = f'optim_wrapper.paramwise_cfg.custom_keys[{key!r}]', ('lr_mult', 'decay_mult')
    for option, value in check_mapping(name, options).items():
        if option not in known:
            raise ValueError(f'{name}: unknown option {option!r}; known are {", ".join(known)}')
        check_number(f'{name}.{option}', value)


def _prefixes(name: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = name.rstrip('.').split('.')
    return ['.'.join(parts[:length]) for length in range(1, len(parts) + 1)]
