"""The benchmark: every case computes what it says, statistics by hand, memory of a known size. Never time."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import DEPTH, DIMS, spread, tool
from mmseg.registry import MODELS
from torch import nn

from benchmarks import speed as benchmark
from benchmarks.speed import CASES, GOALS, Case, Workload, build_case, measure
from benchmarks.speed.assignment import refresh_case
from benchmarks.speed.components import segmentor
from benchmarks.speed.goals import goal_table
from benchmarks.speed.trunk import GUIDANCE
from benchmarks.speed.workload import samples
from mmseg_davpt.apis import load_config
from mmseg_davpt.guidance import MetricGuidance, assignment
from mmseg_davpt.weights import load_trunk_weights

LOAD = Workload('test_vit', size=72, batch=2, classes=7)  # 72: filled up to 80
KV, TOKENS, STOCK = 'VPT-Deep k/v, M=20', 'VPT-Deep tokens, M=20', 'mmseg ViT, tokens, M=20'


def outputs_and_gradients(model, prompts, x):
    """Maps, and what random gradients of the last one do to the prompts."""
    maps = model(x)
    torch.manual_seed(3)
    return maps, torch.autograd.grad(maps[-1], list(prompts), torch.randn_like(maps[-1]))


def test_tokens_and_keys_values_are_the_same_function():
    """The two forms that are compared, and both are VPT-Deep: the oracle's literal order of tokens."""
    kv, tokens = (build_case(name, LOAD).model.double() for name in (KV, TOKENS))
    own = list(kv.prompts.tokens.values())
    spread(kv)
    tokens.model.trunk.load_state_dict(kv.trunk.state_dict())
    for target, source in zip(tokens.prompts, own):
        target.data.copy_(source.data)
    x = LOAD.images().double()
    (maps, gradients), (literal, literal_gradients) = (
        outputs_and_gradients(model, prompts, x) for model, prompts in ((kv, own), (tokens, tokens.prompts))
    )
    for found, expected in zip((*maps, *gradients), (*literal, *literal_gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    plain, x = build_case('timm trunk, inference', LOAD).model.trunk.double(), x[..., :64, :64]
    plain.load_state_dict(kv.trunk.state_dict())
    expected = oracles.vpt_deep(plain, dict(enumerate(own)), x, LOAD.activations)
    for found, reference in zip(tokens(x), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-10)


def test_prompts_in_mmseg_s_vit_are_the_same_too(tmp_path):
    """mmseg's ViT with our trunk's weights, read as a user's checkpoint is."""
    load = Workload('test_vit', size=64, batch=2)
    kv, stock = (build_case(name, load).model for name in (KV, STOCK))
    spread(stock)
    torch.save(stock.model.state_dict(), tmp_path / 'mmseg.pth')
    load_trunk_weights(kv.trunk, 'test_vit', str(tmp_path / 'mmseg.pth'))
    own = list(kv.prompts.tokens.values())
    for target, source in zip(own, stock.prompts):
        target.data.copy_(source.data)
    x = load.images().double()
    maps, gradients = outputs_and_gradients(kv.double(), own, x)
    literal, literal_gradients = outputs_and_gradients(stock.double(), stock.prompts, x)
    assert len(literal) == len(maps) == 4
    torch.testing.assert_close(maps[-1], literal[-1], rtol=0, atol=1e-10)  # mmseg norms the last map alone
    for found, expected in zip(gradients, literal_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


TRUNK = 'all of the trunk'
TUNED = {
    'timm trunk, inference': 0,
    '20 prompts, inference': 0,
    '20 prompts behind gates, inference': 0,
    'head only': 0,
    TOKENS: DEPTH * 20 * DIMS,
    'VPT-Deep tokens, M=100': DEPTH * 100 * DIMS,
    'VPT-Deep k/v, M=10': DEPTH * 10 * DIMS,
    KV: DEPTH * 20 * DIMS,
    'VPT-Deep k/v, M=100': DEPTH * 100 * DIMS,
    'VPT-Deep k/v, M=20, last third': 2 * 20 * DIMS,
    'VPT-Deep k/v, M=20, with_cp': DEPTH * 20 * DIMS,
    'DA-VPT': DEPTH * 20 * DIMS,
    'DA-VPT, gates': DEPTH * (20 * DIMS + 1),
    'DA-VPT+': DEPTH * (20 * DIMS + 2 * DIMS),
    'LoRA': DEPTH * 2 * 2 * 8 * DIMS,
    'full tuning': TRUNK,
    'mmseg ViT, frozen': 0,
    'mmseg ViT, full': TRUNK,
    STOCK: DEPTH * 20 * DIMS,
}


@pytest.mark.parametrize('head', [False, True])
def test_what_learns_gets_gradients_and_nothing_else_changes(head):
    """All cases on shared weights, as they are timed."""
    assert list(TUNED) == list(CASES)
    load = Workload('test_vit', size=64, batch=1, classes=7, head=head)
    weights, heads = {}, []
    cases = {name: build_case(name, load, weights) for name in benchmark.available_cases()}
    assert len(weights) == 2  # timm's and mmseg's
    before = [value.clone() for state in weights.values() for value in state.values()]
    for name, case in cases.items():
        learns = [p for p in case.model.parameters() if p.requires_grad]
        own = [p for p in case.learns if all(p is not other for other in learns)]
        if 'inference' in name:
            assert case.learns == [], name
            assert not any(out.requires_grad for out in case.work()), name
            continue
        expected = sum(p.numel() for p in case.model.parameters()) if TUNED[name] == TRUNK else TUNED[name]
        assert sum(p.numel() for p in learns) == expected, name
        case.work()
        assert all(p.grad is not None for p in case.learns), name
        assert all(p.grad is None for p in case.model.parameters() if not p.requires_grad), name
        case()
        assert all(p.grad is None for p in case.learns), name
        heads.append([p.detach() for p in own])
    assert all(torch.equal(a, b) for a, b in zip(before, (v for state in weights.values() for v in state.values())))
    assert all(len(own) == (5 if head else 0) for own in heads)  # a convolution, its norm, a classifier
    for own in heads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(own, heads[0], strict=True))


def test_frozen_maps_are_timm_s_and_late_prompts_leave_early_blocks_alone():
    weights = {}
    load = Workload('test_vit', size=64, batch=1)
    frozen, plain = (build_case(name, load, weights).model for name in ('head only', 'timm trunk, inference'))
    for own, expected in zip(frozen(load.images()), plain(load.images()), strict=True):
        assert torch.equal(own, expected)
    late = build_case('VPT-Deep k/v, M=20, last third', load, weights).model
    assert [out.requires_grad for out in late(load.images())] == [False, False, False, True]
    checkpointed = build_case('VPT-Deep k/v, M=20, with_cp', load, weights).model
    assert checkpointed.trunk.grad_checkpointing


def test_davpt_is_vpt_with_the_segmentor_s_guidance():
    """What guidance adds to the gradients of VPT-Deep is what the segmentor's own two losses give."""
    weights, gradients = {}, {}
    for name in (KV, 'DA-VPT'):
        case = build_case(name, LOAD, weights)
        case.work()
        gradients[name] = [p.grad for p in case.model.prompts.parameters()]
    model = segmentor(LOAD, guidance=dict(type='MetricGuidance'))
    model.backbone.load_state_dict(case.model.state_dict())
    model.guidance.assignments[0].assignment.copy_(torch.arange(7))
    losses = model.train().loss(LOAD.images(), samples(LOAD.labels()))
    (losses['loss_guide_patch'] + losses['loss_guide_proto']).backward()
    for plain, guided, expected in zip(*gradients.values(), model.backbone.prompts.parameters(), strict=True):
        assert expected.grad.abs().max() > 1e-4
        torch.testing.assert_close(guided - plain, expected.grad, rtol=1e-4, atol=1e-5)


def test_the_recipe_is_that_of_the_configs():
    own = load_config(Path(__file__).parents[2] / 'configs' / 'davpt_upernet_ade20k.py').model.guidance
    expected, found = MODELS.build(own), MetricGuidance(own.num_classes, **GUIDANCE['recipe'])
    for option in (
        'blocks',
        'weight_patch',
        'weight_proto',
        'sample_space',
        'prompt_space',
        'proto_space',
        'center_prototypes',
    ):
        assert getattr(found, option) == getattr(expected, option), option


def test_bfloat16_is_autocast():
    load = Workload('test_vit', size=64, batch=1, dtype='bfloat16')
    case = build_case('DA-VPT', load)
    case.work()
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in case.learns)
    exact = build_case('20 prompts, inference', Workload('test_vit', size=64, batch=1)).work()[-1]
    low = build_case('20 prompts, inference', load).work()[-1]
    assert 0 < (low - exact).abs().max() < 0.2


def test_tokens_refuse_rotary_trunks():
    with pytest.raises(ValueError, match='absolute positions'):
        build_case(TOKENS, Workload('eva02_tiny_patch14_224', size=56))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the runs turn on."""
    now = [0.0]
    monkeypatch.setattr(measure.benchmark, 'timer', lambda: now[0])
    return now


def test_rounds_are_interleaved_and_ratios_are_taken_round_by_round(clock):
    """The machine is slow in some rounds: it shows in the times, not in the ratios."""
    calls = []
    pace = itertools.chain([1.0] * 4, *([speed] * 2 for speed in (1.0, 5.0, 1.5, 1.0, 9.0)))

    def run(name, seconds):
        calls.append(name)
        clock[0] += seconds * next(pace)

    runs = {'a': lambda: run('a', 3.0), 'b': lambda: run('b', 2.0)}
    found = benchmark.time_rounds(runs, rounds=5)
    rounds = [calls[index : index + 2] for index in range(0, len(calls), 2)]
    assert len(rounds) == 2 + 5  # warm-up, one to count calls
    assert all(sorted(own) == ['a', 'b'] for own in rounds)
    assert ['b', 'a'] in rounds[2:] and ['a', 'b'] in rounds[2:]
    assert found['a'].times == pytest.approx([3.0, 15.0, 4.5, 3.0, 27.0])
    assert found['a'].median == pytest.approx(4.5)
    own = benchmark.ratio(found['a'].times, found['b'].times)
    assert own['median'] == pytest.approx(1.5)
    assert own['iqr'] == pytest.approx(0.0, abs=1e-12)


def test_short_runs_are_repeated_within_a_round(clock):
    def run():
        clock[0] += 0.03

    assert benchmark.time_rounds({'a': run}, 3, min_seconds=0.2)['a'].times == pytest.approx([0.03] * 3)
    assert clock[0] == pytest.approx(0.03 * (1 + 1 + 3 * 7))


def test_median_and_spread_by_hand():
    own = benchmark.ratio([2.0, 6.0, 3.0, 8.0, 5.0], [2.0, 3.0, 2.0, 2.0, 2.0])  # 1, 2, 1.5, 4, 2.5
    assert own['median'] == pytest.approx(2.0)
    assert own['iqr'] == pytest.approx(2.5 - 1.5)


def result(seconds, growth, adamw=None):
    memory = dict(growth=growth, peak=growth + 300)
    memory |= {} if adamw is None else dict(growth_adamw=adamw, peak_adamw=adamw + 300)
    return dict(times=[seconds, 2 * seconds, seconds], seconds=seconds, iqr=0.0, learns=1, memory=memory)


def test_goals_are_of_cases_and_judged_by_their_trunk():
    assert {name for goal in GOALS for name in (goal.numerator, goal.denominator)} <= set(CASES)
    assert len({(goal.name, goal.measure) for goal in GOALS}) == len(GOALS)
    results = {'DA-VPT': result(0.7, 65.0, 90.0), 'full tuning': result(1.0, 100.0, 180.0), KV: result(0.7, 60.0)}
    rows = {(row['denominator'], row['measure']): row for row in benchmark.check_goals('vit_base_patch16_224', results)}
    assert len(rows) == 5
    full = {kind: rows['full tuning', kind] for kind in ('seconds', 'growth', 'growth_adamw')}
    assert [row['ratio'] for row in full.values()] == pytest.approx([0.7, 0.65, 0.5])
    assert full['growth']['met'] is True
    assert full['growth_adamw']['met'] is False
    assert rows[KV, 'growth']['ratio'] == pytest.approx(65 / 60)
    assert rows[KV, 'growth']['met'] is False
    assert rows[KV, 'seconds']['met'] is True
    other = benchmark.check_goals('vit_small_patch14_dinov2', results)
    assert [row['met'] for row in other if row['denominator'] == 'full tuning'] == [None] * 3
    text = goal_table(other)
    assert '| DA-VPT against full tuning | peak memory | 0.650 | <= 0.65 | - | no goal for this trunk |' in text
    results['DA-VPT']['memory'] = None  # --no-memory
    assert {row['measure'] for row in benchmark.check_goals('vit_base_patch16_224', results)} == {'seconds'}


def allocate(megabytes, passing=0):
    """A parameter of that size; each call needs more for a moment."""
    own = nn.Parameter(torch.ones(megabytes * 250_000))

    def work():
        torch.ones(passing * 250_000)
        own.sum().backward()

    return Case(work, [own] if megabytes else [])


def nothing():
    return allocate(1)


def hold(megabytes):
    kept = torch.ones(megabytes * 250_000)
    return Case(kept.sum)


class Holds:
    """To be pickled."""

    def __init__(self, make, *args):
        self.make, self.args = make, args

    def __call__(self):
        return self.make(*self.args)


def test_memory_of_a_known_size_is_found():
    held = benchmark.peak_memory(Holds(hold, 200), nothing)
    assert held['growth'] == pytest.approx(200, abs=4)
    assert set(held) == {'growth', 'peak'}
    assert held['peak'] > 300  # torch itself
    own = benchmark.peak_memory(Holds(allocate, 50, 150), nothing)
    assert own['growth'] == pytest.approx(50 + 150, abs=4)  # what is there for a moment counts
    # Parameter, gradient, two moments; and what a step needs for a moment, at most three more.
    steps = benchmark.peak_memory(Holds(allocate, 50), nothing)
    assert steps['growth'] == pytest.approx(100, abs=4)
    assert 196 < steps['growth_adamw'] < 354


def test_exchange_by_hand():
    assert benchmark.ring_seconds(1e9, 8, 25e9) == pytest.approx(2 * 7 / 8 / 25)
    davpt, full = (benchmark.exchanged_bytes(f'configs/{name}_upernet_ade20k.py') for name in ('davpt', 'full'))
    assert davpt['trunk'] == 4 * 12 * (20 * 768 + 1)  # prompts and a gate
    assert davpt['statistics'] == 4 * 150 * (768 + 1)
    assert full['statistics'] == 0
    assert full['trunk'] > 4 * 85e6
    assert full['heads'] == davpt['heads'] > 4 * 40e6
    assert benchmark.workers(rate=40.0, batch=16, step_seconds=0.2) == 2
    assert benchmark.workers(rate=40.0, batch=17, step_seconds=0.2) == 3


@pytest.mark.parametrize('first', [True, False])
def test_refreshes_start_from_nothing_or_from_the_last_one(first, monkeypatch):
    """What the clustering is given: no assignment, or that of means which have moved a little since."""
    seen, own = [], assignment.assign_classes

    def record(*args):
        seen.append([np.copy(part) for part in args])  # they are views of the buffers
        return own(*args)

    monkeypatch.setattr(assignment, 'assign_classes', record)
    refresh = refresh_case(60, DIMS, first)
    changed = [refresh() for _ in range(3)]
    assert len(seen) == 1 + 3
    for (means, *_), (moved, present, last, centroids, _) in itertools.pairwise(seen):
        assert present.all()
        assert (last < 0).all() if first else (last >= 0).all()
        assert centroids.any() != first
        assert 0 < abs(moved - means).mean() < 0.3 < abs(means).mean()
    assert max(changed) <= 6


def test_guidance_and_windows_compute_what_they_time():
    case = benchmark.guidance_case(Workload('test_vit', batch=2), classes=30, patches=16)
    case.work()
    attn_out, tokens, prompts = case.learns
    assert attn_out.shape == tokens.shape == (2, 16, DIMS)
    assert all(leaf.grad.abs().max() > 0 for leaf in (attn_out, tokens, prompts))  # both terms
    with pytest.raises(ValueError, match='patches=20'):
        benchmark.guidance_case(Workload('test_vit'), 30, 20)
    load = Workload('test_vit', size=32, classes=7)
    sequential, batched = (benchmark.evaluation_case(load, (64, 80), number) for number in (0, 4))
    assert type(sequential.model).__name__ == 'EncoderDecoder'
    found, expected = batched.work(), sequential.work()
    assert found.shape == (1, 64, 80)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 1


def test_a_profile_names_what_a_case_runs():
    step, inference = 'VPT-Deep k/v, M=20', '20 prompts, inference'
    found = benchmark.profile_cases(Workload('test_vit', size=64), [step, inference], calls=2)
    backward = [any('flash' in key and 'backward' in key for key in found[name]) for name in (step, inference)]
    assert backward == [True, False]
    for own in found.values():
        assert list(own.values()) == sorted(own.values(), reverse=True)
        assert own['aten::addmm'] > 0


def test_a_profile_s_table_by_hand():
    many = {f'small {number}': 0.001 for number in range(12)}
    lines = benchmark.format_profile({'a': {'large': 0.088, **many}, 'b': {'large': 0.03, 'other': 0.01}}).splitlines()
    assert lines[0] == '| operator, its own ms | a | b |'
    assert lines[2:4] == ['| `large` | 88.0 (88.0 %) | 30.0 (75.0 %) |', '| `other` | 0.0 (0.0 %) | 10.0 (25.0 %) |']
    assert lines[-2:] == ['| all others | 4.0 (4.0 %) | 0.0 (0.0 %) |', '| sum | 100.0 | 40.0 |']


def test_quick(scenes, tmp_path):
    """The whole command; every case in the JSON, numbers finite, tables in the document, and a picture."""
    out, doc = tmp_path / 'benchmark', tmp_path / 'performance.md'
    marks = [f'<!-- benchmark/{part} -->\nold\n<!-- /benchmark/{part} -->\n' for part in CONTENTS]
    doc.write_text('# Before\n' + ''.join(marks) + 'After\n')
    printed = tool(
        'benchmark', '--quick', '--slide-batch', 4, '--out', out, '--doc', doc, '--cfg-options', f'data_root={scenes}'
    )
    found = {part: json.loads((out / f'{part}.json').read_text()) for part in CONTENTS}
    for part, own in found.items():
        assert own['part'] == part
        assert own['threads'] == 1
        assert (own['settings']['dtype'], own['settings']['rounds']) == ('float32', 2)
        assert own['settings']['rounds'] == 2
        assert own['versions']['torch'] == torch.__version__
        assert own['command'].startswith('python tools/benchmark.py --quick')
        text = (out / f'{part}.md').read_text()
        assert own['device'] in text
        assert all(word in text for word in CONTENTS[part])
        assert f'<!-- benchmark/{part} -->\n{text}<!-- /benchmark/{part} -->\n' in doc.read_text()
    (run,) = found['trunk']['results']
    assert list(run['results']) == benchmark.available_cases()
    for name, own in run['results'].items():
        assert own['seconds'] > 0 and len(own['times']) == 2, name
        kinds = {'growth', 'peak'} | ({'growth_adamw', 'peak_adamw'} if own['learns'] else set())
        assert set(own['memory']) == kinds, name
        assert all(math.isfinite(value) for value in own['memory'].values()), name
    assert [(row['name'], row['measure']) for row in run['goals']] == [(goal.name, goal.measure) for goal in GOALS]
    assert len(found['guidance']['results']['cells']) == 4
    assert found['assignment']['results']['ranks'] == 2
    assert list(found['evaluation']['results']) == ["mmseg's loop", 'slide_batch=4']
    assert found['data']['results']['config'] == 'davpt_upernet_miniscenes'
    assert (out / 'trunk.png').stat().st_size > 5000
    assert 'keys/values against concatenation' in printed
    assert doc.read_text().startswith('# Before\n<!--') and doc.read_text().endswith('-->\nAfter\n')
    assert 'old' not in doc.read_text().split()


CONTENTS = dict(
    trunk=['mmseg ViT, tokens, M=20', 'arithmetic limit'],
    guidance=['Fitted', 'share of a VPT-Deep step'],
    assignment=['gloo ranks', '**A projection, not measured**', '512 GPUs'],
    evaluation=['2000 images', 'estimated'],
    data=['workers needed'],
    profile=['aten::addmm', 'all others'],
)
