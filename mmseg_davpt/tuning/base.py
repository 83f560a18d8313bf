"""``TuningMethod``: the trainable parameters of one method on one trunk, and the registry of methods."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from mmengine.registry import Registry
from torch import Tensor, nn

from ..trunks import Trunk
from .attention import JoinedPrompts
from .block import TunedBlock

TUNING_METHODS = Registry('tuning method', scope='mmseg_davpt', locations=['mmseg_davpt.tuning'])


@dataclass(frozen=True)
class Preset:
    """A named selection of methods.

    Attributes:
        methods: Method name -> its options.
        guided: The preset names a method with guidance (DA-VPT): the segmentor refuses to train it without.
    """

    methods: Mapping[str, Mapping[str, Any]]
    guided: bool = False


class TuningMethod(nn.Module):
    """Trainable parameters of one method on one trunk.

    A subclass lives in one file of this package and registers itself with ``TUNING_METHODS.register_module(name=...)``.
    Its name is the key in ``tuning=dict(...)``, the prefix of its parameters (``backbone.tuned.NAME``), its row in the
    parameter report and its key for the learning rate. It overrides the hooks that it needs: :meth:`project`,
    :meth:`join`, :meth:`attention_branch`, :meth:`mlp_branch`. A hook is called for the blocks and attentions to which
    :meth:`attach` has added the method.

    Args:
        trunk: A timm ViT of :func:`~mmseg_davpt.trunks.build_trunk`.
        depth: Number of blocks up to the last output; later blocks are never computed.

    Attributes:
        presets: Preset name -> :class:`Preset`.
        main_option: Option that a plain value sets: ``tuning=dict(bias=('v',))`` is ``bias=dict(layers=('v',))``.
        order: Where several methods act on the same projection: 0 updates of weights, 1 biases, 2 scales of outputs.
        active: ``False`` only inside of :meth:`disabled`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    main_option: ClassVar[str | None] = None
    order: ClassVar[int] = 0

    def __init__(self, trunk: Trunk, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.width: int = trunk.embed_dim
        self.active = True

    @classmethod
    def option(cls, name: str) -> str:
        """An option as a config writes it, for messages: ``tuning.lora.rank``."""
        method = next((key for key, known in TUNING_METHODS.module_dict.items() if known is cls), cls.__name__)
        return f'tuning.{method}.{name}'

    def attach(self, trunk: Trunk) -> None:
        """Add the method to the blocks of the trunk. Nothing to do for a method that trains the trunk's parameters."""

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """Names of the trunk's own parameters that the method trains in place.

        Args:
            used: Names of the trunk's parameters that an output depends on. Others must stay frozen: a parameter
                without a gradient breaks distributed training.

        Raises:
            ValueError: An option that matches no parameter.
        """
        return set()

    def check(self, methods: Mapping[str, TuningMethod]) -> None:
        """Refuse methods that cannot be combined with this one.

        Args:
            methods: All methods of the model, by name.

        Raises:
            ValueError: The message names both.
        """

    def trunk_loaded(self) -> None:
        """Recompute what depends on the trunk's weights; called once the pretrained weights are in the trunk."""

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """Change the output of a projection of attention.

        Args:
            block: Index of the block.
            target: ``'q'``, ``'k'``, ``'v'`` or ``'proj'``.
            x: Input of the projection, ``(..., D)``.
            out: Its output, ``(..., D)``.

        Returns:
            The new output, ``(..., D)``.
        """
        return out

    def join(self, block: TunedBlock) -> JoinedPrompts | None:
        """Prompts that join the attention of a block as keys and values, or ``None``; one method of a model at most."""
        return None

    def attention_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """A branch beside attention.

        Args:
            block: Index of the block.
            x: ``LN1`` of the tokens, ``(B, T + N, D)``.
            grid: Height and width of the patch grid, ``N = h * w``; ``None`` outside of ``PromptedViT.forward``.

        Returns:
            What joins the residual stream, of the shape of ``x``, or ``None``.
        """
        return None

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """A branch beside the MLP; as :meth:`attention_branch`, with ``LN2`` of the tokens."""
        return None

    def merge(self, state: dict[str, Tensor]) -> None:
        """Fold the method into a copy of the trunk's tensors, in place.

        Args:
            state: timm name -> tensor. Methods are merged in :attr:`order`, each into the result of the one before.

        Raises:
            ValueError: The trunk has no weights that can express the method; the message gives the reason.
        """
        raise ValueError(f'{type(self).__name__} cannot be merged into the trunk: it adds a computation, not a weight')

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While open, the trunk runs as if the method were not there.

        Parameters of the trunk that the method trains in place keep their present values.
        """
        self.active = False
        try:
            yield
        finally:
            self.active = True
