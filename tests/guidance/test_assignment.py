"""Class -> prompt assignment: clustering, identity, buffers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_davpt.guidance import PromptAssignment, assign_classes

D = 16


def clusters(rng, sizes, noise=0.05):
    """Class means around as many orthogonal directions as there are sizes; returns means and the true cluster."""
    directions = np.linalg.qr(rng.standard_normal((D, D)))[0][: len(sizes)]
    truth = np.repeat(np.arange(len(sizes)), sizes)
    means = directions[truth] + noise * rng.standard_normal((len(truth), D))
    return means * rng.uniform(0.1, 10, (len(truth), 1)), truth  # length must not matter


def fresh(num_classes, num_prompts):
    return np.full(num_classes, -1), np.zeros((num_prompts, D))


def same_partition(a, b):
    return all((a[i] == a[j]) == (b[i] == b[j]) for i in range(len(a)) for j in range(len(a)))


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_recovers_clusters(seed, sizes):
    rng = np.random.default_rng(seed)
    means, truth = clusters(rng, [*sizes, 2])
    assignment, centroids = assign_classes(means, np.ones(len(truth), bool), *fresh(len(truth), len(sizes) + 1), seed=0)
    assert same_partition(assignment, truth)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1)
    for k in range(len(centroids)):
        own = means[assignment == k] / np.linalg.norm(means[assignment == k], axis=1, keepdims=True)
        mean = own.mean(axis=0)
        np.testing.assert_allclose(centroids[k], mean / np.linalg.norm(mean), atol=1e-6)


def test_every_class_is_with_its_nearest_centroid():
    """The optimality condition of spherical k-means, on data without clusters."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((60, D))
    assignment, centroids = assign_classes(means, np.ones(60, bool), *fresh(60, 8), seed=0)
    cosines = means @ centroids.T
    assert (assignment == cosines.argmax(axis=1)).all()
    assert set(assignment) == set(range(8))


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_warm_start_keeps_prompts(seed):
    """Small drift: same assignment, not merely the same partition."""
    rng = np.random.default_rng(seed)
    means, _ = clusters(rng, [3, 4, 2, 5])
    seen = np.ones(14, bool)
    first = assign_classes(means, seen, *fresh(14, 4), seed=0)
    drifted = means + 0.02 * np.linalg.norm(means, axis=1, keepdims=True) * rng.standard_normal(means.shape)
    second = assign_classes(drifted, seen, *first, seed=1)
    assert (first[0] == second[0]).all()


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_common_drift_does_not_collapse_the_clusters(seed):
    """All features move together, as when prompts join: far from the old centroids, but in the old clusters."""
    rng = np.random.default_rng(seed)
    means, _ = clusters(rng, [3, 2, 4, 3])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    seen = np.ones(12, bool)
    first = assign_classes(means, seen, *fresh(12, 4), seed=0)
    offset = rng.standard_normal(D)
    moved, _ = assign_classes(means + 2 * offset / np.linalg.norm(offset), seen, *first, seed=0)
    assert (moved == first[0]).all()


def test_no_more_classes_than_prompts():
    """One class a prompt, kept for good; newcomers take free prompts; the rest stay free."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((5, D))
    seen = np.array([True, False, True, False, False])
    first = assign_classes(means, seen, *fresh(5, 4), seed=0)
    assert (first[0][seen] >= 0).all()
    assert (first[0][~seen] == -1).all()
    seen = np.array([True, True, True, False, True])
    assignment, centroids = assign_classes(means, seen, *first, seed=0)
    assert (assignment[[0, 2]] == first[0][[0, 2]]).all()
    assert len(set(assignment[seen])) == 4
    assert assignment[3] == -1
    np.testing.assert_allclose(centroids[assignment[1]], means[1] / np.linalg.norm(means[1]))


def test_from_one_class_a_prompt_to_sharing_keeps_identity():
    """When the classes outgrow the prompts, old classes stay where their centroid is."""
    rng = np.random.default_rng(0)
    means, truth = clusters(rng, [2, 2, 2])
    old = np.array([True, False] * 3)  # one of each cluster, seen first
    first = assign_classes(means, old, *fresh(6, 3), seed=0)
    assignment, _ = assign_classes(means, np.ones(6, bool), *first, seed=0)
    assert (assignment[old] == first[0][old]).all()
    assert same_partition(assignment, truth)
    wide = assign_classes(means, old, *fresh(6, 4), seed=0)  # a prompt is still free when sharing begins
    assignment, centroids = assign_classes(means, np.ones(6, bool), *wide, seed=0)
    assert (assignment >= 0).all()
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(1)


def test_empty_cluster_keeps_its_centroid():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((D, D)))[0]
    means = np.concatenate([directions[:1].repeat(3, 0), directions[1:2].repeat(3, 0)]) + 0.01 * rng.standard_normal(
        (6, D)
    )
    centroids = directions[[0, 1, 2]]
    assignment, new = assign_classes(means, np.ones(6, bool), np.array([0, 0, 0, 1, 1, 1]), centroids, seed=0)
    assert assignment.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(new[2], directions[2])


def test_nothing_seen():
    assignment, centroids = assign_classes(np.zeros((3, D)), np.zeros(3, bool), *fresh(3, 2), seed=0)
    assert (assignment == -1).all()
    assert not centroids.any()


class TestBuffers:
    def filled(self):
        part = PromptAssignment(6, 3, D)
        prototypes, mass = torch.randn(4, 6, D), torch.rand(4, 6)
        mass[:, 5] = 0
        part.collect(prototypes, mass)
        return part, prototypes, mass

    def test_class_means_are_weighted_means(self):
        part, prototypes, mass = self.filled()
        expected = (mass.unsqueeze(-1) * prototypes).sum(0)[:5] / mass.sum(0)[:5, None]
        torch.testing.assert_close(part.class_means[:5], expected)
        assert not part.class_means[5].any()

    def test_collecting_twice_adds_up(self):
        part, prototypes, mass = self.filled()
        more, weight = torch.randn(4, 6, D), torch.rand(4, 6)
        part.collect(more, weight)
        both = PromptAssignment(6, 3, D)
        both.collect(torch.cat([prototypes, more]), torch.cat([mass, weight]))
        torch.testing.assert_close(part.class_means, both.class_means)

    def test_sums_are_float32_under_autocast(self):
        """A training step collects inside autocast; fp16 would overflow, bf16 would keep three digits."""
        part, prototypes, mass = self.filled()
        low = PromptAssignment(6, 3, D)
        with torch.autocast('cpu', torch.bfloat16):
            low.collect(prototypes, mass)
        assert low.sums.dtype == torch.float32
        torch.testing.assert_close(low.sums, part.sums)

    def test_refresh_keeps_the_means(self):
        part, _, _ = self.filled()
        means = part.class_means.clone()
        assert part.refresh(seed=0) == 0  # nobody had a prompt before
        torch.testing.assert_close(part.class_means, means)
        assert part.assignment[5] == -1
        assert sum(part.cluster_sizes()) == 5

    def test_changes_are_counted(self):
        means, _ = clusters(np.random.default_rng(0), [3, 3])
        part = PromptAssignment(6, 2, D)
        part.collect(torch.from_numpy(means).float().unsqueeze(0), torch.ones(1, 6))
        part.refresh(seed=0)
        settled = part.assignment.clone()
        assert part.refresh(seed=0) == 0
        part.assignment[4] = 1 - settled[4]
        assert part.refresh(seed=0) == 1  # back to its cluster
        assert torch.equal(part.assignment, settled)

    def test_everything_is_saved(self):
        part, _, _ = self.filled()
        part.refresh(seed=0)
        twin = PromptAssignment(6, 3, D)
        twin.load_state_dict(part.state_dict())
        assert set(part.state_dict()) == {'assignment', 'centroids', 'sums', 'weights'}
        for name, value in part.state_dict().items():
            assert torch.equal(getattr(twin, name), value)
