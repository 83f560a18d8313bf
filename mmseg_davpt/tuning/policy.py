"""The ``tuning`` option -> methods on a trunk; everything else is frozen."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..options import check_mapping
from ..trunks import Trunk
from .base import TUNING_METHODS, Preset, TuningMethod
from .blocks import STEM

PROMPTS = ('prompts', 'residual_prompts', 'shallow_prompts')


@dataclass(frozen=True)
class TuningPlan:
    """The ``tuning`` option, resolved.

    Attributes:
        methods: Method name -> its options.
        guided: A preset of a guided method (DA-VPT) was named.
    """

    methods: Mapping[str, Mapping[str, Any]]
    guided: bool = False


def presets() -> dict[str, Preset]:
    """Name -> preset, of every registered method."""
    found = {'frozen': Preset({})}
    for method in TUNING_METHODS.module_dict.values():
        found.update(method.presets)
    return found


def resolve_tuning(tuning: str | Mapping[str, Any], prompts: Mapping[str, Any] | None, depth: int) -> TuningPlan:
    """Read the options ``tuning`` and ``prompts``.

    Args:
        tuning: A preset, ``partial-k`` for the last ``k`` blocks, or a dict: method name -> ``True``, a dict of its
            options, or the value of its main option.
        prompts: Options for the prompts that ``tuning`` selects; they override the preset's.
        depth: Number of blocks up to the last output.

    Raises:
        ValueError: Unknown preset, method or option; options for prompts without prompts.
    """
    if isinstance(tuning, str):
        plan = _read_preset(tuning, depth)
    else:
        if not check_mapping('tuning', tuning):
            raise ValueError("tuning={} names no method: write tuning='frozen' to train nothing in the trunk")
        chosen = {name: value for name, value in tuning.items() if value is not None and value is not False}
        plan = TuningPlan({name: _read_options(name, value) for name, value in chosen.items()})
    methods = {name: dict(options) for name, options in plan.methods.items()}
    if prompts is not None and check_mapping('prompts', prompts):
        name = next((name for name in PROMPTS if name in methods), None)
        if name is None:
            raise ValueError(
                f'prompts={dict(prompts)} with tuning={tuning!r}, which has no prompts: set prompts=None, or choose a '
                'tuning with prompts'
            )
        methods[name].update(prompts)
    for name, options in methods.items():
        _check_options(name, options)
    return TuningPlan(methods, plan.guided)


def _read_preset(name: str, depth: int) -> TuningPlan:
    if partial := re.fullmatch(r'partial-(\d+)', name):
        last = int(partial[1])
        if not 1 <= last <= depth:
            raise ValueError(f'tuning={name!r}: the trunk uses {depth} blocks')
        return TuningPlan(dict(blocks=dict(indices=tuple(range(depth - last, depth)))))
    known = presets()
    if name not in known:
        raise ValueError(f'tuning={name!r}: expected one of {", ".join(sorted(known))}, partial-k, or a dict')
    return TuningPlan(known[name].methods, known[name].guided)


def _read_options(name: str, value: Any) -> Mapping[str, Any]:
    method = TUNING_METHODS.module_dict.get(name)
    if method is None:
        known = ', '.join(sorted(TUNING_METHODS.module_dict))
        raise ValueError(f'tuning: unknown method {name!r}; known are {known}')
    if value is True:
        return {}
    if isinstance(value, Mapping):
        return value
    if method.main_option is None:
        raise ValueError(f'tuning.{name}={value!r}: expected True or a dict of its options')
    return {method.main_option: value}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(TUNING_METHODS.module_dict[name]).parameters
    known = [option for option in parameters if option not in ('trunk', 'depth')]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f'tuning.{name}: unknown option {unknown[0]!r}; known are {", ".join(known) or "none"}')


def build_methods(plan: TuningPlan, trunk: Trunk, depth: int, norm_outputs: bool) -> nn.ModuleDict:
    """Make the methods, attach them to the trunk and freeze everything else.

    Args:
        plan: The resolved option.
        trunk: A timm ViT; its blocks are changed in place.
        depth: Number of blocks up to the last output.
        norm_outputs: Whether the trunk's final norm is applied to the outputs.

    Returns:
        Method name -> method, in the order in which they act.

    Raises:
        ValueError: An option that does not fit the trunk, or methods that cannot be combined.
    """
    classes = TUNING_METHODS.module_dict
    names = sorted(plan.methods, key=lambda name: (classes[name].order, name))
    methods: dict[str, TuningMethod] = {name: classes[name](trunk, depth, **plan.methods[name]) for name in names}
    used = used_parameters(trunk, depth, norm_outputs)
    trained: set[str] = set()
    for method in methods.values():
        method.check(methods)
        trained |= method.trunk_parameters(used)
    freeze_except(trunk, trained)
    for method in methods.values():
        method.attach(trunk)
    return nn.ModuleDict(methods)


def used_parameters(trunk: Trunk, depth: int, norm_outputs: bool) -> set[str]:
    """Names of the trunk's parameters that an output depends on: no later blocks, no poolers."""

    def is_used(name: str) -> bool:
        root, *rest = name.split('.')
        if root == 'blocks':
            return int(rest[0]) < depth
        return norm_outputs if root == 'norm' else root in STEM

    return {name for name, _ in trunk.named_parameters() if is_used(name)}


def freeze_except(trunk: Trunk, names: Collection[str]) -> None:
    """Freeze the trunk but for the named parameters."""
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name in names)


def train_tuned_modules(trunk: Trunk, mode: bool = True) -> None:
    """Put modules that are trained as a whole into train mode, everything else into eval mode (no drop path)."""
    trunk.eval()
    if mode:
        children = [child for name, child in trunk.named_children() if name != 'blocks']
        for module in (*children, *trunk.blocks):
            parameters = list(module.parameters())
            if parameters and all(parameter.requires_grad for parameter in parameters):
                module.train()
