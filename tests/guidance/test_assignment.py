"""Class -> prompt assignment: clustering, identity, buffers."""

import numpy as np
import oracles
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
        rows = means[assignment == k] / np.linalg.norm(means[assignment == k], axis=1, keepdims=True)
        mean = rows.mean(axis=0)
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


@given(seed=st.integers(0, 1000), center=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_classes_does_not_matter(seed, center):
    """Permuted classes give the permuted partition."""
    rng = np.random.default_rng(seed)
    means, truth = clusters(rng, [3, 4, 2, 5])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    order = rng.permutation(len(truth))
    seen = np.ones(len(truth), bool)
    plain, _ = assign_classes(means, seen, *fresh(14, 4), seed=0, center_prototypes=center)
    permuted, _ = assign_classes(means[order], seen, *fresh(14, 4), seed=0, center_prototypes=center)
    assert same_partition(permuted, plain[order])


@given(seed=st.integers(0, 1000), center=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_same_means_give_the_same_assignment(seed, center):
    """Stable over refreshes, on data with and without clusters."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((14, D)) if seed % 2 else clusters(rng, [3, 4, 2, 5])[0]
    seen = rng.random(14) < 0.9
    state = assign_classes(means, seen, *fresh(14, 4), seed=0, center_prototypes=center)
    for refresh in range(1, 4):
        after = assign_classes(means, seen, *state, seed=refresh, center_prototypes=center)
        assert (after[0] == state[0]).all()
        state = after


@given(seed=st.integers(0, 1000), classes=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_centering_does_not_change_one_class_per_prompt(seed, classes):
    rng = np.random.default_rng(seed)
    means, seen = rng.standard_normal((8, D)), np.zeros(8, bool)
    seen[rng.choice(8, classes, replace=False)] = True
    last = np.where(rng.random(8) < 0.5, rng.permutation(8), -1).clip(max=4), np.zeros((5, D))
    plain, _ = assign_classes(means, seen, *last, seed=0)
    centered, _ = assign_classes(means, seen, *last, seed=0, center_prototypes=True)
    assert (centered == plain).all()


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_centered_clustering_is_that_of_the_centered_samples(seed):
    """A direction that all classes share hides the clusters from cosines; the losses do not see it either."""
    rng = np.random.default_rng(seed)
    means, truth = clusters(rng, [3, 2, 4, 3])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    shared = rng.standard_normal(D)
    shifted = means + 50 * shared / np.linalg.norm(shared)
    seen = np.ones(len(truth), bool)
    expected, centroids = assign_classes(means, seen, *fresh(12, 4), seed=0, center_prototypes=True)
    found, moved_centroids = assign_classes(shifted, seen, *fresh(12, 4), seed=0, center_prototypes=True)
    assert same_partition(found, truth)
    assert (found == expected).all()
    np.testing.assert_allclose(moved_centroids, centroids, atol=1e-6)
    centered = means - means.mean(axis=0)
    assert (found == (centered @ centroids.T).argmax(axis=1)).all()


def filled():
    assignment = PromptAssignment(6, 3, D)
    prototypes, mass = torch.randn(4, 6, D), torch.rand(4, 6)
    mass[:, 5] = 0
    assignment.collect(prototypes, mass)
    return assignment, prototypes, mass


class TestBuffers:
    def test_class_means_are_weighted_means(self):
        assignment, prototypes, mass = filled()
        expected = (mass.unsqueeze(-1) * prototypes).sum(0)[:5] / mass.sum(0)[:5, None]
        torch.testing.assert_close(assignment.class_means[:5], expected)
        assert not assignment.class_means[5].any()

    def test_collecting_twice_adds_up(self):
        assignment, prototypes, mass = filled()
        more, weight = torch.randn(4, 6, D), torch.rand(4, 6)
        assignment.collect(more, weight)
        both = PromptAssignment(6, 3, D)
        both.collect(torch.cat([prototypes, more]), torch.cat([mass, weight]))
        torch.testing.assert_close(assignment.class_means, both.class_means)

    def test_sums_are_float32_under_autocast(self):
        """A training step collects inside autocast; fp16 would overflow, bf16 would keep three digits."""
        assignment, prototypes, mass = filled()
        low = PromptAssignment(6, 3, D)
        with torch.autocast('cpu', torch.bfloat16):
            low.collect(prototypes, mass)
        assert low.sums.dtype == torch.float32
        torch.testing.assert_close(low.sums, assignment.sums)

    def test_refresh_keeps_the_means(self):
        assignment, _, _ = filled()
        means = assignment.class_means.clone()
        assert assignment.refresh(seed=0) == 0  # no class had a prompt before
        torch.testing.assert_close(assignment.class_means, means)
        assert assignment.assignment[5] == -1
        assert sum(assignment.cluster_sizes()) == 5

    def test_changes_are_counted(self):
        means, _ = clusters(np.random.default_rng(0), [3, 3])
        assignment = PromptAssignment(6, 2, D)
        assignment.collect(torch.from_numpy(means).float().unsqueeze(0), torch.ones(1, 6))
        assignment.refresh(seed=0)
        settled = assignment.assignment.clone()
        assert assignment.refresh(seed=0) == 0
        assignment.assignment[4] = 1 - settled[4]
        assert assignment.refresh(seed=0) == 1  # back to its cluster
        assert torch.equal(assignment.assignment, settled)

    def test_everything_is_saved(self):
        assignment, _, _ = filled()
        assignment.refresh(seed=0)
        twin = PromptAssignment(6, 3, D)
        twin.load_state_dict(assignment.state_dict())
        assert set(assignment.state_dict()) == {'assignment', 'centroids', 'sums', 'weights', 'new_mass'}
        for name, value in assignment.state_dict().items():
            assert torch.equal(getattr(twin, name), value)

    def test_checkpoint_without_new_mass_loads_strictly(self):
        """Of a release that did not save it."""
        assignment, _, _ = filled()
        assignment.refresh(seed=0)
        state = assignment.state_dict()
        state.pop('new_mass', None)
        twin = PromptAssignment(6, 3, D)
        twin.new_mass.fill_(7)
        twin.load_state_dict(state)
        assert not twin.new_mass.any()
        assert torch.equal(twin.sums, assignment.sums)

    def test_empty_checkpoint_misses_every_tensor(self):
        missing = PromptAssignment(6, 3, D).load_state_dict({}, strict=False).missing_keys
        assert set(missing) == set(PromptAssignment(6, 3, D).state_dict())

    @pytest.mark.parametrize('convert', ['bfloat16', 'half', 'to'])
    def test_half_precision_models_keep_float32_buffers(self, convert):
        """2049 patches have no float16, a sum of 70000 overflows it; the values themselves must not be rounded."""
        assignment, prototypes, mass = filled()
        assignment.collect(70000 * prototypes, mass)
        before = {name: value.clone() for name, value in assignment.state_dict().items()}
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), assignment)
        model.to('cpu', torch.bfloat16) if convert == 'to' else getattr(model, convert)()
        assert model[0].weight.dtype != torch.float32
        for name, value in before.items():
            assert getattr(assignment, name).dtype == value.dtype
            assert torch.equal(getattr(assignment, name), value)
        assignment.collect(prototypes.bfloat16(), mass)
        assert assignment.refresh(seed=0) == 0

    def test_other_conversions_and_moves_are_as_in_any_module(self):
        assignment, _, _ = filled()
        means = assignment.class_means
        assert assignment.double().sums.dtype == torch.float64
        torch.testing.assert_close(assignment.class_means.float(), means)
        assert assignment.half().sums.dtype == torch.float32
        torch.testing.assert_close(assignment.class_means, means)
        moved = assignment.to('meta', torch.bfloat16)
        assert {buffer.device.type for buffer in moved.buffers()} == {'meta'}
        assert moved.sums.dtype == torch.float32
        assert assignment.to_empty(device='cpu').sums.device.type == 'cpu'


class TestNonFinite:
    """A step whose forward overflows, as float16 training has them now and then."""

    @pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
    @pytest.mark.parametrize('absent', [True, False])
    def test_leaves_no_trace(self, value, absent):
        assignment, prototypes, mass = filled()
        before = {name: buffer.clone() for name, buffer in assignment.state_dict().items()}
        broken = prototypes.clone()
        broken[1, 5 if absent else 2, 0] = value  # class 5 has no mass: 0 * nan is nan
        assignment.collect(broken, mass)
        for name, buffer in assignment.state_dict().items():
            assert torch.equal(buffer, before[name]), name
        assert assignment.skipped.item() == 1
        assignment.collect(prototypes, mass)
        assert assignment.class_means.isfinite().all()
        assignment.refresh(seed=0)
        assert (assignment.assignment[:5] >= 0).all()
        assert assignment.skipped.item() == 0  # counted anew after each refresh

    def test_opposite_infinities_are_no_number_either(self):
        assignment, prototypes, mass = filled()
        means = assignment.class_means
        prototypes[0, 0, 0], prototypes[1, 0, 0] = float('inf'), -float('inf')
        assignment.collect(prototypes, mass)
        assert torch.equal(assignment.class_means, means)


class TestDiscount:
    """How fast earlier evidence fades."""

    def one_class(self, value, mass):
        """A batch with one class, whose prototype is ``value`` everywhere."""
        return torch.full((1, 1, 2), float(value)), torch.full((1, 1), float(mass))

    def test_renewed_evidence_halves_the_old(self):
        assignment = PromptAssignment(1, 1, 2)
        assignment.collect(*self.one_class(0, 8))
        assignment.refresh(seed=0)
        assert assignment.weights.item() == 4  # half of 8
        assignment.collect(*self.one_class(1, 8))
        torch.testing.assert_close(assignment.class_means, torch.full((1, 2), 8 / (4 + 8)))

    @given(masses=st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1000)), min_size=1, max_size=12))
    @settings(max_examples=50, deadline=None)
    def test_against_the_formula(self, masses):
        """One number per refresh; class means from Python floats."""
        assignment = PromptAssignment(1, 1, 2).double()
        total, weight = 0.0, 0.0
        for value, mass in enumerate(masses):
            assignment.collect(*(batch.double() for batch in self.one_class(value, mass)))
            kept = oracles.kept_evidence(weight, mass)
            total, weight = (total + value * mass) * kept, (weight + mass) * kept
            assignment.refresh(seed=0)
            assert assignment.weights.item() == pytest.approx(weight, rel=1e-6)
            assert assignment.class_means[0, 0].item() == pytest.approx(total / weight if weight else 0, rel=1e-6)
            assert assignment.weights.item() <= max(masses) * (1 + 1e-6)  # bounded, however many refreshes

    def test_a_class_that_is_not_seen_again_keeps_its_prompt(self):
        """Of 300 passes over the data, the first alone holds class 0."""
        assignment = PromptAssignment(3, 3, D)
        prototypes = torch.randn(1, 3, D)
        assignment.collect(prototypes, torch.ones(1, 3))
        assignment.refresh(seed=0)
        first = assignment.assignment.clone()
        rest = torch.tensor([[0.0, 1.0, 1.0]])
        for _ in range(300):
            assignment.collect(prototypes, rest)
            assignment.refresh(seed=0)
        assert torch.equal(assignment.assignment, first)
        torch.testing.assert_close(assignment.class_means, prototypes[0])

    @given(seed=st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_refreshes_without_new_evidence_change_nothing(self, seed):
        torch.manual_seed(seed)
        assignment = PromptAssignment(8, 3, D)
        assignment.collect(torch.randn(2, 8, D), torch.rand(2, 8))
        assignment.refresh(seed=0)
        state = {name: value.clone() for name, value in assignment.state_dict().items()}
        for refresh in range(3):
            assert assignment.refresh(seed=refresh) == 0
        for name in ('assignment', 'sums', 'weights', 'new_mass'):
            assert torch.equal(getattr(assignment, name), state[name]), name
