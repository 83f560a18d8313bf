"""The benchmark: every case computes the named function; statistics by hand; memory of a known size. No times."""

import itertools
import json
import math
import time
from pathlib import Path

import cv2
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

WORKLOAD = Workload('test_vit', size=72, batch=2, classes=7)  # 72 pixels are padded to 80
KV, TOKENS, STOCK = 'VPT-Deep k/v, M=20', 'VPT-Deep tokens, M=20', 'mmseg ViT, tokens, M=20'


def outputs_and_gradients(model, prompts, x):
    """Maps, and the gradients of the prompts for random gradients of the last map."""
    maps = model(x)
    torch.manual_seed(3)
    return maps, torch.autograd.grad(maps[-1], list(prompts), torch.randn_like(maps[-1]))


def test_tokens_and_keys_values_are_the_same_function():
    """The two forms that are compared, and both are VPT-Deep: the oracle's literal order of tokens."""
    kv, tokens = (build_case(name, WORKLOAD).model.double() for name in (KV, TOKENS))
    prompts = list(kv.prompts.tokens.values())
    spread(kv)
    tokens.model.trunk.load_state_dict(kv.trunk.state_dict())
    for target, source in zip(tokens.prompts, prompts):
        target.data.copy_(source.data)
    x = WORKLOAD.images().double()
    (maps, gradients), (literal, literal_gradients) = (
        outputs_and_gradients(model, tuned, x) for model, tuned in ((kv, prompts), (tokens, tokens.prompts))
    )
    for actual, expected in zip((*maps, *gradients), (*literal, *literal_gradients), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    plain, x = build_case('timm trunk, inference', WORKLOAD).model.trunk.double(), x[..., :64, :64]
    plain.load_state_dict(kv.trunk.state_dict())
    expected = oracles.vpt_deep(plain, dict(enumerate(prompts)), x, WORKLOAD.activations)
    for actual, reference in zip(tokens(x), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=0, atol=1e-10)


def test_prompts_in_mmseg_s_vit_are_the_same_too(tmp_path):
    """mmseg's ViT with the same weights, which are loaded from a checkpoint of mmseg's ViT."""
    workload = Workload('test_vit', size=64, batch=2)
    kv, stock = (build_case(name, workload).model for name in (KV, STOCK))
    spread(stock)
    torch.save(stock.model.state_dict(), tmp_path / 'mmseg.pth')
    load_trunk_weights(kv.trunk, 'test_vit', str(tmp_path / 'mmseg.pth'))
    prompts = list(kv.prompts.tokens.values())
    for target, source in zip(prompts, stock.prompts):
        target.data.copy_(source.data)
    x = workload.images().double()
    maps, gradients = outputs_and_gradients(kv.double(), prompts, x)
    literal, literal_gradients = outputs_and_gradients(stock.double(), stock.prompts, x)
    assert len(literal) == len(maps) == 4
    torch.testing.assert_close(maps[-1], literal[-1], rtol=0, atol=1e-10)  # mmseg norms only the last map
    for actual, expected in zip(gradients, literal_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


TRUNK = 'all of the trunk'
TUNED = {
    'timm trunk, inference': 0,
    '20 prompts, inference': 0,
    '20 gated prompts, inference': 0,
    '20 residual prompts, inference': 0,
    'head only': 0,
    TOKENS: DEPTH * 20 * DIMS,
    'VPT-Deep tokens, M=100': DEPTH * 100 * DIMS,
    'VPT-Deep k/v, M=10': DEPTH * 10 * DIMS,
    KV: DEPTH * 20 * DIMS,
    'VPT-Deep k/v, M=100': DEPTH * 100 * DIMS,
    'VPT-Deep k/v, M=20, last half': 3 * 20 * DIMS,
    'VPT-Deep k/v, M=20, last third': 2 * 20 * DIMS,
    'VPT-Deep k/v, M=20, bfloat16 trunk': DEPTH * 20 * DIMS,
    'VPT-Deep k/v, M=20, with_cp': DEPTH * 20 * DIMS,
    'DA-VPT': DEPTH * 20 * DIMS,
    'DA-VPT+': DEPTH * (20 * DIMS + 2 * DIMS),
    'gated DA-VPT': DEPTH * (20 * DIMS + 1),
    'residual DA-VPT': DEPTH * 2 * 20 * DIMS,
    'residual DA-VPT, last half': 3 * 2 * 20 * DIMS,
    'residual DA-VPT, last third': 2 * 2 * 20 * DIMS,
    'residual DA-VPT, bfloat16 trunk': DEPTH * 2 * 20 * DIMS,
    'residual DA-VPT, last third, bfloat16 trunk': 2 * 2 * 20 * DIMS,
    'residual DA-VPT, M=10, and LoRA 6': DEPTH * (2 * 10 * DIMS + 2 * 2 * 6 * DIMS),
    'bias': (DEPTH * 10 + 2) * DIMS,  # 3 of qkv, 1 of proj, 3 and 1 of the MLP, 2 of norms; patch embedding, last norm
    'AdaptFormer': DEPTH * (2 * 64 * DIMS + 64 + DIMS),
    'AdaptFormer, last half': 3 * (2 * 64 * DIMS + 64 + DIMS),
    'AdaptFormer, last third': 2 * (2 * 64 * DIMS + 64 + DIMS),
    'LoRA': DEPTH * 2 * 2 * 8 * DIMS,
    'LoRA, last half': 3 * 2 * 2 * 8 * DIMS,
    'LoRA, last third': 2 * 2 * 2 * 8 * DIMS,
    'LoRA, bfloat16 trunk': DEPTH * 2 * 2 * 8 * DIMS,
    'full tuning': TRUNK,
    'mmseg ViT, frozen': 0,
    'mmseg ViT, full': TRUNK,
    STOCK: DEPTH * 20 * DIMS,
}


@pytest.mark.parametrize('head', [False, True])
def test_trainable_parameters_get_gradients_and_nothing_else_changes(head):
    """All cases on shared weights, as they are timed."""
    assert list(TUNED) == list(CASES)
    workload = Workload('test_vit', size=64, batch=1, classes=7, head=head)
    weights, heads = {}, []
    cases = {name: build_case(name, workload, weights) for name in benchmark.available_cases()}
    assert len(weights) == 3  # timm's, in two types, and mmseg's
    before = [value.clone() for state in weights.values() for value in state.values()]
    for name, case in cases.items():
        tuned = [p for p in case.model.parameters() if p.requires_grad]
        of_head = [p for p in case.trainable if all(p is not other for other in tuned)]
        if 'inference' in name:
            assert case.trainable == [], name
            assert not any(out.requires_grad for out in case.work()), name
            continue
        expected = sum(p.numel() for p in case.model.parameters()) if TUNED[name] == TRUNK else TUNED[name]
        assert sum(p.numel() for p in tuned) == expected, name
        case.work()
        assert all(p.grad is not None for p in case.trainable), name
        assert all(p.grad is None for p in case.model.parameters() if not p.requires_grad), name
        case()
        assert all(p.grad is None for p in case.trainable), name
        heads.append([p.detach() for p in of_head])
    assert all(torch.equal(a, b) for a, b in zip(before, (v for state in weights.values() for v in state.values())))
    assert all(len(parameters) == (5 if head else 0) for parameters in heads)  # a convolution, its norm, a classifier
    for parameters in heads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(parameters, heads[0], strict=True))


def test_frozen_maps_are_timm_s_and_late_prompts_leave_early_blocks_alone():
    weights = {}
    workload = Workload('test_vit', size=64, batch=1)
    frozen, plain = (build_case(name, workload, weights).model for name in ('head only', 'timm trunk, inference'))
    for actual, expected in zip(frozen(workload.images()), plain(workload.images()), strict=True):
        assert torch.equal(actual, expected)
    late = build_case('VPT-Deep k/v, M=20, last third', workload, weights).model
    assert [out.requires_grad for out in late(workload.images())] == [False, False, False, True]
    checkpointed = build_case('VPT-Deep k/v, M=20, with_cp', workload, weights).model
    assert all(block.with_cp for block in checkpointed.trunk.blocks)


def test_davpt_is_vpt_with_the_segmentor_s_guidance():
    """Guidance adds to the gradients of VPT-Deep those of the two losses of the segmentor."""
    weights, gradients = {}, {}
    for name in (KV, 'DA-VPT'):
        case = build_case(name, WORKLOAD, weights)
        case.work()
        gradients[name] = [p.grad for p in case.model.prompts.parameters()]
    model = segmentor(WORKLOAD, guidance=dict(type='MetricGuidance'))
    model.backbone.load_state_dict(case.model.state_dict())
    model.guidance.assignments[0].assignment.copy_(torch.arange(7))
    losses = model.train().loss(WORKLOAD.images(), samples(WORKLOAD.labels()))
    (losses['loss_guide_patch'] + losses['loss_guide_proto']).backward()
    for plain, guided, expected in zip(*gradients.values(), model.backbone.prompts.parameters(), strict=True):
        assert expected.grad.abs().max() > 1e-4
        torch.testing.assert_close(guided - plain, expected.grad, rtol=1e-4, atol=1e-5)


def test_guidance_of_the_recipe_is_that_of_the_configs():
    cfg = load_config(Path(__file__).parents[2] / 'configs' / 'davpt_upernet_ade20k.py').model.guidance
    sizes = dict(num_classes=cfg.num_classes, prompt_counts=[20], embed_dims=DIMS)
    expected, actual = MODELS.build({**cfg, **sizes}), MetricGuidance(**GUIDANCE['recipe'], **sizes)
    for option in (
        'blocks',
        'weight_patch',
        'weight_proto',
        'sample_space',
        'prompt_space',
        'proto_space',
        'center_prototypes',
    ):
        assert getattr(actual, option) == getattr(expected, option), option


def test_bfloat16_is_autocast():
    workload = Workload('test_vit', size=64, batch=1, dtype='bfloat16')
    case = build_case('DA-VPT', workload)
    case.work()
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in case.trainable)
    exact = build_case('20 prompts, inference', Workload('test_vit', size=64, batch=1)).work()[-1]
    low = build_case('20 prompts, inference', workload).work()[-1]
    assert 0 < (low - exact).abs().max() < 0.2


def test_tokens_refuse_rotary_trunks():
    with pytest.raises(ValueError, match='absolute positions'):
        build_case(TOKENS, Workload('eva02_tiny_patch14_224', size=56))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the runs advance."""
    now = [0.0]
    monkeypatch.setattr(measure.benchmark, 'timer', lambda: now[0])
    return now


def test_rounds_are_interleaved_and_ratios_are_taken_round_by_round(clock):
    """Slow rounds of the machine change the times, not the ratios."""
    calls = []
    pace = itertools.chain([1.0] * 4, *([speed] * 2 for speed in (1.0, 5.0, 1.5, 1.0, 9.0)))

    def run(name, seconds):
        calls.append(name)
        clock[0] += seconds * next(pace)

    runs = {'a': lambda: run('a', 3.0), 'b': lambda: run('b', 2.0)}
    measured = benchmark.time_rounds(runs, rounds=5)
    rounds = [calls[index : index + 2] for index in range(0, len(calls), 2)]
    assert len(rounds) == 2 + 5  # warm-up, one to count calls
    assert all(sorted(names) == ['a', 'b'] for names in rounds)
    assert ['b', 'a'] in rounds[2:] and ['a', 'b'] in rounds[2:]
    assert measured['a'].times == pytest.approx([3.0, 15.0, 4.5, 3.0, 27.0])
    assert measured['a'].median == pytest.approx(4.5)
    ratio = benchmark.ratio(measured['a'].times, measured['b'].times)
    assert ratio['median'] == pytest.approx(1.5)
    assert ratio['iqr'] == pytest.approx(0.0, abs=1e-12)


def test_short_runs_are_repeated_within_a_round(clock):
    def run():
        clock[0] += 0.03

    assert benchmark.time_rounds({'a': run}, 3, min_seconds=0.2)['a'].times == pytest.approx([0.03] * 3)
    assert clock[0] == pytest.approx(0.03 * (1 + 1 + 3 * 7))


def test_cpu_time_does_not_count_waiting():
    times = benchmark.time_rounds({'a': lambda: time.sleep(0.05)}, 2, min_seconds=0.0, cpu_time=True)['a'].times
    assert max(times) < 0.02 < 0.05 <= min(benchmark.time_rounds({'a': lambda: time.sleep(0.05)}, 2, 0.0)['a'].times)


def test_median_and_spread_by_hand():
    ratio = benchmark.ratio([2.0, 6.0, 3.0, 8.0, 5.0], [2.0, 3.0, 2.0, 2.0, 2.0])  # 1, 2, 1.5, 4, 2.5
    assert ratio['median'] == pytest.approx(2.0)
    assert ratio['iqr'] == pytest.approx(2.5 - 1.5)


def result(seconds, growth, adamw=None):
    memory = dict(growth=growth, peak=growth + 300)
    memory |= {} if adamw is None else dict(growth_adamw=adamw, peak_adamw=adamw + 300)
    return dict(times=[seconds, 2 * seconds, seconds], seconds=seconds, iqr=0.0, trainable=1, memory=memory)


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
    """A parameter of that size; each call allocates ``passing`` MB more for a moment."""
    parameter = nn.Parameter(torch.ones(megabytes * 250_000))

    def work():
        torch.ones(passing * 250_000)
        parameter.sum().backward()

    return Case(work, [parameter] if megabytes else [])


def nothing():
    return allocate(1)


def hold(megabytes):
    kept = torch.ones(megabytes * 250_000)
    return Case(kept.sum)


class Deferred:
    """A call that can be pickled."""

    def __init__(self, make, *args):
        self.make, self.args = make, args

    def __call__(self):
        return self.make(*self.args)


def test_memory_of_a_known_size_is_measured():
    held = benchmark.peak_memory(Deferred(hold, 200), nothing)
    assert held['growth'] == pytest.approx(200, abs=4)
    assert set(held) == {'growth', 'peak'}
    assert held['peak'] > 300  # torch itself
    passing = benchmark.peak_memory(Deferred(allocate, 50, 150), nothing)
    assert passing['growth'] == pytest.approx(50 + 150, abs=4)  # memory that is used for a moment counts
    # Parameter, gradient, two moments; and what a step needs for a moment, at most three more.
    steps = benchmark.peak_memory(Deferred(allocate, 50), nothing)
    assert steps['growth'] == pytest.approx(100, abs=4)
    assert 196 < steps['growth_adamw'] < 354


def test_exchange_by_hand():
    assert benchmark.ring_seconds(1e9, 8, 25e9) == pytest.approx(2 * 7 / 8 / 25)
    names = 'davpt_upernet_ade20k', 'full_vit-b16_upernet_160k_ade20k-512x512'
    davpt, full = (benchmark.exchanged_bytes(f'configs/{name}.py') for name in names)
    assert davpt['trunk'] == 4 * 12 * 2 * 20 * 768  # prompts and their values
    assert davpt['statistics'] == 4 * 150 * (768 + 1)
    assert full['statistics'] == 0
    assert full['trunk'] > 4 * 85e6
    assert full['heads'] == davpt['heads'] > 4 * 40e6
    assert benchmark.workers(rate=40.0, batch=16, step_seconds=0.2) == 2
    assert benchmark.workers(rate=40.0, batch=17, step_seconds=0.2) == 3


@pytest.mark.parametrize('first', [True, False])
def test_refreshes_start_from_nothing_or_from_the_last_one(first, monkeypatch):
    """The clustering gets no assignment, or the one of means that have moved a little since."""
    seen, assign_classes = [], assignment.assign_classes

    def record(*args, **options):
        seen.append([np.copy(argument) for argument in args])  # the arguments are views of the buffers
        return assign_classes(*args, **options)

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


def test_guidance_and_windows_do_the_work_that_is_timed():
    case = benchmark.guidance_case(Workload('test_vit', batch=2), classes=30, patches=16)
    case.work()
    attn_out, tokens, prompts = case.trainable
    assert attn_out.shape == tokens.shape == (2, 16, DIMS)
    assert all(leaf.grad.abs().max() > 0 for leaf in (attn_out, tokens, prompts))  # both terms
    with pytest.raises(ValueError, match='patches=20'):
        benchmark.guidance_case(Workload('test_vit'), 30, 20)
    workload = Workload('test_vit', size=32, classes=7)
    sequential, batched = (benchmark.evaluation_case(workload, (64, 80), number) for number in (0, 4))
    assert type(sequential.model).__name__ == 'EncoderDecoder'
    actual, expected = batched.work(), sequential.work()
    assert actual.shape == (1, 64, 80)
    assert torch.equal(actual, expected)
    assert len(actual.unique()) > 1


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_validation_and_files_do_the_work_that_is_timed(mode, tmp_path):
    """This project and mmseg predict the same classes; masks and overlays are written."""
    workload, size = Workload('test_vit', size=32, classes=7), (64, 80)
    predicted = [work() for work in benchmark.validation_cases(workload, size, mode).values()]
    assert predicted[0].shape == (1, *size) and torch.equal(*predicted)
    for work in benchmark.file_cases(workload, size, mode, tmp_path).values():
        work()
    for index in range(4):
        paths = [tmp_path / folder / f'{index}.png' for folder in ('mmseg', 'ours/masks')]
        masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
        assert (masks[0] == masks[1]).all() and len(np.unique(masks[0])) > 1
        assert (tmp_path / f'overlays/{index}.jpg').exists() and (tmp_path / f'ours/overlays/{index}.jpg').exists()


def test_a_profile_names_the_operators_of_a_case():
    step, inference = 'VPT-Deep k/v, M=20', '20 prompts, inference'
    profiles = benchmark.profile_cases(Workload('test_vit', size=64), [step, inference], calls=2)
    backward = [any('flash' in key and 'backward' in key for key in profiles[name]) for name in (step, inference)]
    assert backward == [True, False]
    for operators in profiles.values():
        assert list(operators.values()) == sorted(operators.values(), reverse=True)
        assert operators['aten::addmm'] > 0


def test_a_profile_s_table_by_hand():
    many = {f'small {number}': 0.001 for number in range(12)}
    lines = benchmark.format_profile({'a': {'large': 0.088, **many}, 'b': {'large': 0.03, 'other': 0.01}}).splitlines()
    assert lines[0] == '| operator, ms without its callees | a | b |'
    assert lines[2:4] == ['| `large` | 88.0 (88.0 %) | 30.0 (75.0 %) |', '| `other` | 0.0 (0.0 %) | 10.0 (25.0 %) |']
    assert lines[12:14] == ['| all others | 4.0 (4.0 %) | 0.0 (0.0 %) |', '| sum | 100.0 | 40.0 |']
    assert lines[-1] == '- b: `large` 75.0 %, `other` 25.0 %'
    operators = {'aten::mm': 6.0, 'aten::_flash_attention_backward': 2.0, 'aten::gelu': 1.5, 'aten::add': 0.5}
    assert benchmark.beyond_arithmetic(operators) == {'aten::gelu': 0.15, 'aten::add': 0.05}


def test_quick(scenes, tmp_path):
    """The whole command; the goals' cases in the JSON, numbers finite, tables in the document, and a picture."""
    cases = [name for name in benchmark.available_cases() if any(name in (g.numerator, g.denominator) for g in GOALS)]
    assert len(cases) > 10
    out, doc = tmp_path / 'benchmark', tmp_path / 'speed.md'
    marks = [f'<!-- benchmark/{part} -->\nold\n<!-- /benchmark/{part} -->\n' for part in CONTENTS]
    doc.write_text('# Before\n' + ''.join(marks) + 'After\n')
    printed = tool(
        'benchmark', '--quick', '--slide-batch', 4, '--out', out, '--doc', doc, '--only', *cases, '--cfg-options',
        f'data_root={scenes}',
    )  # fmt: skip
    records = {part: json.loads((out / f'{part}.json').read_text()) for part in CONTENTS}
    for part, record in records.items():
        assert record['part'] == part
        assert record['threads'] == 1
        assert (record['settings']['dtype'], record['settings']['rounds']) == ('float32', 2)
        assert record['versions']['torch'] == torch.__version__
        assert record['command'].startswith('python tools/benchmark.py --quick')
        text = (out / f'{part}.md').read_text()
        assert record['device'] in text
        assert all(word in text for word in CONTENTS[part])
        assert f'<!-- benchmark/{part} -->\n{text}<!-- /benchmark/{part} -->\n' in doc.read_text()
    (run,) = records['trunk']['results']
    assert list(run['results']) == cases
    for name, case in run['results'].items():
        assert case['seconds'] > 0 and len(case['times']) == 2, name
        kinds = {'growth', 'peak'} | ({'growth_adamw', 'peak_adamw'} if case['trainable'] else set())
        assert set(case['memory']) == kinds, name
        assert all(math.isfinite(value) for value in case['memory'].values()), name
    assert [(row['name'], row['measure']) for row in run['goals']] == [(goal.name, goal.measure) for goal in GOALS]
    assert len(records['guidance']['results']['cells']) == 4
    assert records['assignment']['results']['ranks'] == 2
    assert list(records['evaluation']['results']) == ["mmseg's loop", 'slide_batch=4']
    assert records['data']['results']['config'] == 'davpt_upernet_miniscenes'
    assert (out / 'trunk.png').stat().st_size > 5000
    assert 'keys/values against concatenation' in printed
    assert doc.read_text().startswith('# Before\n<!--') and doc.read_text().endswith('-->\nAfter\n')
    assert 'old' not in doc.read_text().split()


CONTENTS = dict(
    trunk=['mmseg ViT, tokens, M=20', 'arithmetic limit'],
    guidance=['Fitted', 'share of a VPT-Deep step'],
    assignment=['gloo ranks', '**A projection, not measured**', '512 GPUs'],
    evaluation=['2000 images', 'estimated'],
    prediction=['tools/infer.py', 'whole', 'slide'],
    compile=['step, aot_eager', 'full tuning'],
    data=['workers needed'],
    profile=['aten::addmm', 'all others', 'beyond products'],
    scale=['Arithmetic from the shapes', 'full tuning, float32'],
)
