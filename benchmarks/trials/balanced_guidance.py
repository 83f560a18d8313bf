"""Guidance whose images have the same weight: ``benchmarks/suites/frame_ccp_linear.py``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmseg.registry import MODELS
from torch import Tensor

from mmseg_davpt.guidance import MetricGuidance
from mmseg_davpt.guidance.guidance import Activations


@MODELS.register_module()
class BalancedGuidance(MetricGuidance):
    """The batch's prototype of a class is the mean of its images' prototypes; so is the class mean of the clustering.

    ``MetricGuidance`` weights images by the patches that the class covers. The patch term is the same in both.
    """

    def forward(self, activations: Mapping[int, Activations], fractions: Tensor) -> dict[str, Tensor]:
        """As of ``MetricGuidance``."""
        return super().forward(activations, _balanced(fractions))

    def collect(self, activations: Mapping[int, Activations], fractions: Tensor) -> None:
        """As of ``MetricGuidance``."""
        super().collect(activations, _balanced(fractions))


def _balanced(fractions: Tensor) -> Tensor:
    """Label fractions ``(B, N, C)`` that sum to one over the patches of each image, or to zero."""
    mass = fractions.sum(dim=1, keepdim=True)
    return fractions / torch.where(mass > 0, mass, 1)
