"""``prompts.init='prototype'``: prompts that start as centroids of the classes that they are assigned to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..guidance import PromptAssignment, class_prototypes
from ..tuning import DeepPrompts
from .segmentor import PromptedEncoderDecoder


class PrototypeInit:
    """Collects the class means at the input of every prompted block, then writes centroids into its prompts.

    A guided block's prompts take the centroids of its assignment; the other blocks cluster their class means. The
    paper measured that such a start hurts its guidance; ``configs/`` use it all the same (docs/results.md).

    Args:
        model: The segmentor, with deep prompts and guidance.

    Raises:
        ValueError: It has no prompts or no guidance.
    """

    def __init__(self, model: PromptedEncoderDecoder) -> None:
        prompts, guidance = model.backbone.prompts, model.guidance
        if not isinstance(prompts, DeepPrompts) or guidance is None:
            raise ValueError("prompts.init='prototype' needs a model with prompts and guidance")
        self.model, self.prompts, self.guidance = model, prompts, guidance
        self.means = {
            index: PromptAssignment(model.num_classes, *tokens.shape).to(tokens.device)
            for index, tokens in ((index, prompts.tokens[str(index)]) for index in prompts.blocks)
        }

    @torch.no_grad()
    def collect(self, inputs: Tensor, data_samples: Sequence[SegDataSample], blocks: Sequence[int] = ()) -> None:
        """Add a batch, by one forward pass of the backbone.

        Args:
            inputs: Normalized images, ``(B, 3, H, W)``.
            data_samples: Their labels, as in :meth:`PromptedEncoderDecoder.loss`.
            blocks: Guided blocks whose assignment collects from the same pass, see
                :meth:`PromptedEncoderDecoder.collect_prototypes`.
        """
        backbone, fractions = self.model.backbone, self.model.class_fractions(data_samples)

        def collect_input(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                prototypes, _present = class_prototypes(args[0][:, backbone.num_prefix_tokens :], fractions)
                self.means[index].collect(prototypes, fractions.sum(dim=1))

            return hook

        handles = []
        for index in self.means:
            block = backbone.trunk.get_submodule(f'blocks.{index}')
            handles.append(block.register_forward_pre_hook(collect_input(index)))
        try:
            self.model.collect_prototypes(inputs, data_samples, blocks)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def write(self, seed: int) -> None:
        """Write the centroids; a prompt without classes keeps its random start."""
        guided = self.guidance.assignment_of
        for index, collected in self.means.items():
            means = collected.class_means
            if index not in guided:
                collected.refresh(seed)
            assignment = guided.get(index, collected).assignment
            tokens = self.prompts.tokens[str(index)]
            for prompt in assignment[assignment >= 0].unique().tolist():
                tokens[prompt] = means[assignment == prompt].mean(dim=0)
        self.prompts.mark_initialised()
