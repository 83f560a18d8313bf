"""State dicts of a backbone: old names, a trunk that a file leaves out, values in half precision."""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..weights import WeightsError
from ..weights.fingerprint import TrunkFingerprint
from ..weights.half import DIGESTS

# Key of a state dict whose trunk is absent, for TrunkFingerprint.to_dict(). Also of one whose trunk was cast to half
# precision, for the JSON text of it as bytes, because users of state dicts expect tensors.
FINGERPRINT = 'trunk_fingerprint'

# Names of checkpoints that were written before each method had a folder of its own (version 0.1).
_RENAMED = {
    'prompts.': 'tuned.prompts.',
    'biases.': 'tuned.bias.offsets.',
    'lora.': 'tuned.lora.layers.',
    'adapters.': 'tuned.adaptformer.branches.',
}


class Backbone(Protocol):
    """What this module uses of :class:`~mmseg_davpt.models.PromptedViT`.

    Attributes:
        trunk: The timm ViT.
        tuned: Method name -> method.
        pretrained: Source of the trunk's weights.
        weights_loaded: Whether the trunk's weights were loaded.
    """

    trunk: Any
    tuned: nn.ModuleDict
    pretrained: bool | str
    weights_loaded: bool

    def init_weights(self) -> None:
        """Load the weights of ``pretrained``."""

    def fingerprint(self) -> TrunkFingerprint:
        """Fingerprint of the frozen tensors."""


def prepare_state(backbone: Backbone, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state dict is loaded: read old names, add the trunk where it is missing, note whether it is whole.

    A hook of ``Module.register_load_state_dict_pre_hook``.

    Args:
        backbone: The module that loads.
        state: The state dict; changed in place.
        prefix: Of the backbone's names in it.

    Raises:
        WeightsError: The fingerprint is damaged or that of another trunk, or the trunk's weights cannot be loaded.
    """
    shallow = {'prompts.': 'tuned.shallow_prompts.'} if 'shallow_prompts' in backbone.tuned else {}
    for old, new in {**_RENAMED, **shallow}.items():
        for name in [name for name in state if name.startswith(prefix + old)]:
            state[prefix + new + name.removeprefix(prefix + old)] = state.pop(name)
    tokens, flag = f'{prefix}tuned.prompts.tokens.', f'{prefix}tuned.prompts.initialised'
    if flag not in state and any(name.startswith(tokens) for name in state):
        state[flag] = torch.tensor(True)
    own = backbone.trunk.state_dict()
    if (entry := state.pop(prefix + FINGERPRINT, None)) is not None:
        fingerprint = TrunkFingerprint.from_dict(_read_text(entry) if isinstance(entry, Tensor) else entry)
        if all(f'{prefix}trunk.{name}' in state for name in own):
            state[f'{prefix}trunk.{DIGESTS}'] = dict(fingerprint.tensors)  # type: ignore[assignment]  # popped by the trunk
        else:
            _add_trunk(backbone, state, prefix, fingerprint)
    if all(getattr(state.get(f'{prefix}trunk.{name}'), 'shape', None) == own[name].shape for name in own):
        backbone.weights_loaded = True


def add_fingerprint(backbone: Backbone, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """After a state dict is made: add the fingerprint of a trunk whose values were cast.

    A hook of ``Module.register_state_dict_post_hook``.

    Args:
        backbone: The module whose state it is.
        state: The state dict; changed in place.
        prefix: Of the backbone's names in it.
    """
    if backbone.trunk.file_digests:
        text = json.dumps(backbone.fingerprint().to_dict()).encode()
        state[prefix + FINGERPRINT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _read_text(entry: Tensor) -> Any:
    try:
        return json.loads(entry.cpu().numpy().tobytes())
    except ValueError as error:
        raise WeightsError('The fingerprint of the trunk is damaged') from error


def _add_trunk(backbone: Backbone, state: dict[str, Tensor], prefix: str, fingerprint: TrunkFingerprint) -> None:
    """Complete a state dict that holds the fingerprint of a trunk with the tensors of the backbone's own trunk.

    Raises:
        WeightsError: The trunk is another one, or its weights cannot be loaded.
    """
    if not backbone.weights_loaded:
        if not backbone.pretrained:
            raise WeightsError(
                f'The file holds no trunk, only what was trained on {fingerprint.arch}: set backbone.pretrained to the '
                f"weights of {fingerprint.arch} (True: timm's hub; a path: python tools/get_weights.py lists sources)"
            )
        backbone.init_weights()
    source = 'the hub' if backbone.pretrained is True else str(backbone.pretrained)
    fingerprint.require_match(backbone.fingerprint(), source)
    trained = {name for name, parameter in backbone.trunk.named_parameters() if parameter.requires_grad}
    for name, tensor in backbone.trunk.state_dict().items():
        if name not in trained:  # the file holds these; loading fails where it does not
            state.setdefault(f'{prefix}trunk.{name}', tensor)
    state[f'{prefix}trunk.{DIGESTS}'] = dict(backbone.trunk.file_digests)  # type: ignore[assignment]  # as above
