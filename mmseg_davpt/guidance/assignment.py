"""Class means over the dataset -> prompt of each class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_rank
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from torch import Tensor, nn

# Earlier evidence of a class keeps at least this share of its weight at a refresh, however much new mass there is.
_MIN_KEPT = 0.5


class PromptAssignment(nn.Module):
    """Running class means ``S`` of one guided block and the class -> prompt assignment made from them.

    All state is in buffers: saved, resumed, and the same on every rank. They stay in float32 when the model is
    converted to half precision, where sums over an epoch would overflow or stop growing.

    Args:
        num_classes: Number of classes ``C``.
        num_prompts: Number of prompts ``M`` of the guided block.
        embed_dims: Width ``D`` of the samples.
        center_prototypes: Cluster the class means after subtraction of their mean, see :func:`assign_classes`.

    Attributes:
        assignment: Prompt of each class, ``(C,)`` int64; -1: not seen yet.
        centroids: Unit centroids of the clusters, ``(M, D)``; zero for a prompt that has never had a class.
        sums: Weighted sums of prototypes, ``(C, D)``; with ``weights`` ``(C,)``, in patches, they give ``S``.
        new_mass: The part of ``weights`` that was collected since the last refresh, ``(C,)``.
        skipped: Number of batches since the last refresh that were left out because they held inf or nan, int64
            scalar. Not saved.
    """

    assignment: Tensor
    centroids: Tensor
    sums: Tensor
    weights: Tensor
    new_mass: Tensor
    skipped: Tensor

    def __init__(self, num_classes: int, num_prompts: int, embed_dims: int, center_prototypes: bool = False) -> None:
        super().__init__()
        self.center_prototypes = center_prototypes
        self.register_buffer('assignment', torch.full((num_classes,), -1))
        self.register_buffer('centroids', torch.zeros(num_prompts, embed_dims))
        self.register_buffer('sums', torch.zeros(num_classes, embed_dims))
        self.register_buffer('weights', torch.zeros(num_classes))
        self.register_buffer('new_mass', torch.zeros(num_classes))
        self.register_buffer('skipped', torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def class_means(self) -> Tensor:
        """``S``, shape ``(C, D)``; zero for classes not seen yet."""
        return self.sums / self.weights.clamp(min=torch.finfo(self.weights.dtype).tiny).unsqueeze(1)

    @torch.no_grad()
    def collect(self, prototypes: Tensor, mass: Tensor) -> None:
        """Add a batch to ``S``, summed over the ranks. Nothing waits for the device.

        A batch that holds inf or nan on any rank, as in a step that overflows in float16, is left out on all of them
        and counted in ``skipped``.

        Args:
            prototypes: ``(B, C, D)``.
            mass: Number of patches behind each prototype, ``(B, C)``; 0 for absent classes.
        """
        prototypes, mass = prototypes.to(self.sums.dtype), mass.to(self.sums.dtype)
        weighted = (mass.unsqueeze(-1) * prototypes).sum(dim=0)  # no product of matrices: autocast would lower it
        batch = torch.cat([weighted, mass.sum(dim=0).unsqueeze(1)], dim=1)
        all_reduce(batch)
        finite = batch.isfinite().all()  # of the sum over the ranks: all of them decide alike
        batch = torch.where(finite, batch, 0)
        self.sums += batch[:, :-1]
        self.weights += batch[:, -1]
        self.new_mass += batch[:, -1]
        self.skipped += ~finite

    def reset(self) -> None:
        """Reset sums and assignment."""
        self.assignment.fill_(-1)
        for buffer in (self.centroids, self.sums, self.weights, self.new_mass, self.skipped):
            buffer.zero_()

    @torch.no_grad()
    def refresh(self, seed: int) -> int:
        """Make the assignment anew from ``S``; the first rank decides for all. Then discount the evidence.

        The features drift while the prompts learn, so earlier evidence must fade, but only as fast as new evidence
        comes in. With ``new`` the mass of a class since the last refresh and ``old`` its weight before, its sums and
        weights are multiplied by

            max(1/2, old / (old + new))

        A class without new mass keeps its evidence. One whose evidence is renewed by at least its old weight is
        halved, as is one without old evidence. In between the weight stays at ``old``, so it is bounded by the mass
        between two refreshes. (A factor such as ``2 ** -(new / old)`` would let it grow without bound.)

        Args:
            seed: Seed of the clustering's first start.

        Returns:
            How many classes that had a prompt changed it.
        """
        before = self.assignment.clone()
        if get_rank() == 0:
            assignment, centroids = assign_classes(
                self.class_means.cpu().double().numpy(),
                (self.weights > 0).cpu().numpy(),
                self.assignment.cpu().numpy(),
                self.centroids.cpu().double().numpy(),
                seed,
                center_prototypes=self.center_prototypes,
            )
            self.assignment.copy_(torch.from_numpy(assignment))
            self.centroids.copy_(torch.from_numpy(centroids))
        broadcast(self.assignment)
        broadcast(self.centroids)
        old = self.weights - self.new_mass
        kept = (old / self.weights.clamp(min=torch.finfo(old.dtype).tiny)).clamp(min=_MIN_KEPT)
        self.sums *= kept.unsqueeze(1)
        self.weights *= kept
        self.new_mass.zero_()
        self.skipped.zero_()
        return int(((before >= 0) & (before != self.assignment)).sum())

    def cluster_sizes(self) -> list[int]:
        """Number of classes of each prompt."""
        return torch.bincount(self.assignment[self.assignment >= 0], minlength=len(self.centroids)).tolist()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptAssignment:
        """Move and convert the buffers, but never below float32: ``half()`` would lose the sums."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            converted = self._buffers[name]
            if buffer is None or converted is None or not converted.is_floating_point():
                continue
            dtype = torch.promote_types(converted.dtype, torch.float32)
            if dtype != converted.dtype:
                self._buffers[name] = buffer.to(converted.device, dtype)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Checkpoints from before ``new_mass`` existed: all of their mass counts as old."""
        if f'{prefix}weights' in state_dict:
            state_dict.setdefault(f'{prefix}new_mass', torch.zeros_like(self.new_mass))
        super()._load_from_state_dict(state_dict, prefix, *args)


def assign_classes(
    means: NDArray[np.float64],
    seen: NDArray[np.bool_],
    assignment: NDArray[np.int64],
    centroids: NDArray[np.float64],
    seed: int,
    *,
    center_prototypes: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Spherical k-means of class means into as many clusters as there are prompts; cluster ``k`` is prompt ``k``.

    No more classes than prompts: one class per prompt, kept once given, the other prompts stay free. Otherwise the last
    clusters are the start, which keeps a cluster on its prompt. Their centroids are computed again from the current
    means: features drift together while the prompts learn, and the stored centroids would all be far, one of them
    nearest to most classes. A cluster without classes keeps its centroid. scikit-learn's k-means runs on unit vectors,
    where squared distance is ``2 - 2 cos``.

    Args:
        means: Class means, ``(C, D)``.
        seen: Which classes have been seen, ``(C,)`` bool.
        assignment: The last assignment, ``(C,)`` int, -1 for none.
        centroids: The last centroids, ``(M, D)``, unit or zero.
        seed: Seed of a first clustering.
        center_prototypes: Subtract the mean over the seen classes from their means first. For losses that compare
            centered prototypes with the prompts (:class:`~mmseg_davpt.MetricGuidance`): clusters of the uncentered
            means follow the direction that all classes share.

    Returns:
        The new assignment ``(C,)`` and unit centroids ``(M, D)``.
    """
    num_prompts = len(centroids)
    assignment, centroids = assignment.copy(), centroids.copy()
    classes = np.flatnonzero(seen)
    if len(classes) == 0:
        return assignment, centroids
    rows = means[classes]
    rows = normalize(rows - rows.mean(axis=0) if center_prototypes else rows)
    if len(classes) <= num_prompts:
        chosen = _one_class_per_prompt(assignment[classes], num_prompts)
        centroids[chosen] = rows
    else:
        if not centroids.any(axis=1).all():  # the first clustering, or the first with more classes than prompts
            centroids = _first_centroids(rows, centroids, seed)
        else:
            last = assignment[classes]
            for prompt in np.unique(last[last >= 0]):
                centroids[prompt] = normalize(rows[last == prompt].mean(axis=0, keepdims=True))
        nearest = (rows @ centroids.T).argmax(axis=1)
        occupied = np.unique(nearest)
        kmeans = KMeans(n_clusters=len(occupied), init=centroids[occupied], n_init=1).fit(rows)
        centroids[occupied] = normalize(kmeans.cluster_centers_)
        chosen = (rows @ centroids.T).argmax(axis=1)
    assignment[:] = -1
    assignment[classes] = chosen
    return assignment, centroids


def _one_class_per_prompt(last: NDArray[np.int64], num_prompts: int) -> NDArray[np.int64]:
    """Keep each class on its prompt; give a class without one, or whose prompt is shared, a free one."""
    chosen = np.full(len(last), -1)
    _, first = np.unique(last, return_index=True)
    keep = [index for index in first if last[index] >= 0]
    chosen[keep] = last[keep]
    free = np.setdiff1d(np.arange(num_prompts), chosen)
    missing = np.flatnonzero(chosen < 0)
    chosen[missing] = free[: len(missing)]
    return chosen


def _first_centroids(rows: NDArray[np.float64], last: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Best of ten starts; clusters go to the prompts whose last centroids they resemble most."""
    centroids = normalize(KMeans(n_clusters=len(last), n_init=10, random_state=seed).fit(rows).cluster_centers_)
    prompts, clusters = linear_sum_assignment(-last @ centroids.T)
    return centroids[clusters[np.argsort(prompts)]]
