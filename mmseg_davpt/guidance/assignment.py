"""Dataset-level class means -> which prompt stands for which class."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast, get_rank
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from torch import Tensor, nn

# Evidence of earlier epochs counts half at each refresh: the features drift while the prompts learn, and the sums stay
# small enough for float32 however long training goes on.
_DECAY = 0.5


class PromptAssignment(nn.Module):
    """Running class means ``S`` of one guided block and the class -> prompt assignment made from them.

    All of it is buffers: saved, resumed, and the same on every rank.

    Args:
        num_classes: ``C``.
        num_prompts: ``M`` of the guided block.
        embed_dims: Width ``D`` of the samples.

    Attributes:
        assignment: Prompt of each class, ``(C,)`` int64; -1: not seen yet.
        centroids: Unit centroids of the clusters, ``(M, D)``; zero for a prompt that has never owned a class.
        sums: Weighted sums of prototypes, ``(C, D)``; with ``weights`` ``(C,)`` they give ``S``.
    """

    def __init__(self, num_classes: int, num_prompts: int, embed_dims: int) -> None:
        super().__init__()
        self.register_buffer('assignment', torch.full((num_classes,), -1))
        self.register_buffer('centroids', torch.zeros(num_prompts, embed_dims))
        self.register_buffer('sums', torch.zeros(num_classes, embed_dims))
        self.register_buffer('weights', torch.zeros(num_classes))

    @property
    def class_means(self) -> Tensor:
        """``S``, shape ``(C, D)``; zero for classes not seen yet."""
        return self.sums / self.weights.clamp(min=torch.finfo(self.weights.dtype).tiny).unsqueeze(1)

    @torch.no_grad()
    def collect(self, prototypes: Tensor, mass: Tensor) -> None:
        """Add a batch to ``S``, summed over the ranks.

        Args:
            prototypes: ``(B, C, D)``.
            mass: Number of patches behind each prototype, ``(B, C)``; 0 for absent classes.
        """
        prototypes, mass = prototypes.to(self.sums.dtype), mass.to(self.sums.dtype)
        weighted = (mass.unsqueeze(-1) * prototypes).sum(dim=0)  # no product of matrices: autocast would lower it
        batch = torch.cat([weighted, mass.sum(dim=0).unsqueeze(1)], dim=1)
        all_reduce(batch)
        self.sums += batch[:, :-1]
        self.weights += batch[:, -1]

    def reset(self) -> None:
        """Forget everything."""
        self.assignment.fill_(-1)
        for buffer in (self.centroids, self.sums, self.weights):
            buffer.zero_()

    @torch.no_grad()
    def refresh(self, seed: int) -> int:
        """Make the assignment anew from ``S``; the first rank decides for all.

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
            )
            self.assignment.copy_(torch.from_numpy(assignment))
            self.centroids.copy_(torch.from_numpy(centroids))
        broadcast(self.assignment)
        broadcast(self.centroids)
        self.sums *= _DECAY
        self.weights *= _DECAY
        return int(((before >= 0) & (before != self.assignment)).sum())

    def cluster_sizes(self) -> list[int]:
        """Number of classes of each prompt."""
        return torch.bincount(self.assignment[self.assignment >= 0], minlength=len(self.centroids)).tolist()


def assign_classes(
    means: np.ndarray, seen: np.ndarray, assignment: np.ndarray, centroids: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means of class means into as many clusters as there are prompts; cluster ``k`` is prompt ``k``.

    No more classes than prompts: one class a prompt, kept once given, the other prompts stay free. Otherwise the last
    clusters are the start, which keeps a cluster on its prompt: their centroids over today's means, because features
    drift together while the prompts learn, and yesterday's centroids would all be far, one of them nearest to most. A
    cluster without classes keeps its centroid. scikit-learn's k-means runs on unit vectors, where squared distance is
    ``2 - 2 cos``.

    Args:
        means: Class means, ``(C, D)``.
        seen: Which classes have been seen, ``(C,)`` bool.
        assignment: The last assignment, ``(C,)`` int, -1 for none.
        centroids: The last centroids, ``(M, D)``, unit or zero.
        seed: Seed of a first clustering.

    Returns:
        The new assignment ``(C,)`` and unit centroids ``(M, D)``.
    """
    num_prompts = len(centroids)
    assignment, centroids = assignment.copy(), centroids.copy()
    classes = np.flatnonzero(seen)
    if len(classes) == 0:
        return assignment, centroids
    rows = normalize(means[classes])
    if len(classes) <= num_prompts:
        chosen = _one_class_a_prompt(assignment[classes], num_prompts)
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


def _one_class_a_prompt(last: np.ndarray, num_prompts: int) -> np.ndarray:
    """Keep each class on its prompt; give a class without one, or whose prompt is shared, a free one."""
    chosen = np.full(len(last), -1)
    _, first = np.unique(last, return_index=True)
    keep = [index for index in first if last[index] >= 0]
    chosen[keep] = last[keep]
    free = np.setdiff1d(np.arange(num_prompts), chosen)
    without = np.flatnonzero(chosen < 0)
    chosen[without] = free[: len(without)]
    return chosen


def _first_centroids(rows: np.ndarray, last: np.ndarray, seed: int) -> np.ndarray:
    """Best of ten starts; clusters go to the prompts whose last centroids they resemble most."""
    centroids = normalize(KMeans(n_clusters=len(last), n_init=10, random_state=seed).fit(rows).cluster_centers_)
    prompts, clusters = linear_sum_assignment(-last @ centroids.T)
    return centroids[clusters[np.argsort(prompts)]]
