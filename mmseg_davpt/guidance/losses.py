"""The metric loss between prototypes and prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..options import check_number


class ProxyAnchorLoss(nn.Module):
    """Proxy-Anchor loss over prompts (Kim et al., CVPR 2020, eq. 4; DA-VPT, CVPR 2025, eq. 4).

    With ``s_ik`` the cosine similarity of sample ``i`` and prompt ``k``, ``a(y)`` the prompt of class ``y``, ``P`` the
    prompts with at least one class and ``P+`` those of them with a sample of one of their classes:

        L = 1/|P+| sum_{k in P+} log(1 + sum_{i: a(y_i) = k}  exp(-alpha (s_ik - margin)))
          + 1/|P|  sum_{k in P}  log(1 + sum_{i: a(y_i) != k} exp( alpha (s_ik + margin)))

    Args:
        alpha: Sharpness; 32 is Proxy-Anchor's value. (DA-VPT prints a margin of 32, which no cosine can meet; its code
            uses these values.)
        margin: Margin on the cosine, in ``[0, 1]``; 0.1.

    Raises:
        ValueError: ``alpha`` is not positive, or ``margin`` is not in ``[0, 1]``.
    """

    def __init__(self, alpha: float = 32.0, margin: float = 0.1) -> None:
        super().__init__()
        self.alpha = check_number('guidance.alpha', alpha, above=True)
        self.margin = check_number('guidance.margin', margin, high=1.0)

    def forward(self, samples: Tensor, labels: Tensor, proxies: Tensor, assignment: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            samples: ``(K, D)``; any scale.
            labels: Class of each sample, ``(K,)`` int; -1 takes no part.
            proxies: Prompts, ``(M, D)``; any scale.
            assignment: Prompt of each class, ``(C,)`` int; -1 for none, samples of such classes take no part.

        Returns:
            Scalar, at least float32 even under AMP; exactly 0, with a graph, if there is nothing to compare.
        """
        dtype = torch.promote_types(torch.promote_types(samples.dtype, proxies.dtype), torch.float32)
        with torch.autocast(samples.device.type, enabled=False):
            s = F.normalize(samples.to(dtype), dim=1) @ F.normalize(proxies.to(dtype), dim=1).T
            prompt = torch.arange(len(proxies), device=s.device)
            owner = torch.where(labels >= 0, assignment[labels.clamp(min=0)], -1).unsqueeze(1)
            pull = owner == prompt
            push = (owner >= 0) & ~pull
            with_class = (assignment.unsqueeze(1) == prompt).any(dim=0)
            positive = _log1p_sum_exp(-self.alpha * (s - self.margin), pull)
            negative = _log1p_sum_exp(self.alpha * (s + self.margin), push) * with_class
            return positive.sum() / pull.any(dim=0).sum().clamp(min=1) + negative.sum() / with_class.sum().clamp(min=1)


def _log1p_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum_i exp(x_i))`` over the masked rows of ``(K, M)``: stable, 0 where a column has none."""
    if len(x) == 0:
        return x.sum(dim=0)
    # A finite floor: the gradient through an infinite one would be nan.
    return F.softplus(torch.logsumexp(x.masked_fill(~mask, torch.finfo(x.dtype).min), dim=0))
