"""Comparisons: statistics by hand, hashes, paired heads and data, cells that are run once."""

import fcntl
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, batch, run, segmentor_cfg
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import MODELS

from benchmarks.compare import (
    PairedHeadsHook,
    compare,
    config_hash,
    format_table,
    load_suite,
    plot,
    run_cell,
    runner,
    summarize,
)
from mmseg_davpt.reports import attention_mass


def row(method, seed, miou, **extra):
    figures = dict(frequent_mIoU=miou + 10, aAcc=80.0, tuned_trunk=1000, tuned_heads=500, trunk_share=0.5)
    return dict(method=method, seed=seed, mIoU=miou, seconds_per_iteration=0.5, peak_memory_mb=900, **figures) | extra


def test_statistics_by_hand():
    rows = [row('a', s, m) for s, m in enumerate((40.0, 42.0, 41.0))]
    rows += [row('b', s, m) for s, m in ((0, 41.0), (1, 44.0), (2, 42.0), (3, 50.0))]
    base, other = summarize(rows, 'a')
    assert (base['seeds'], base['mIoU'], base['difference'], base['interval']) == (3, 41.0, None, None)
    assert base['sd'] == pytest.approx(1.0)
    # Differences 1, 2, 1 over the three seeds that both have; t(0.975, 2) = 4.302653.
    assert other['difference'] == pytest.approx(4 / 3)
    half = 4.302653 * math.sqrt(1 / 3) / math.sqrt(3)
    assert other['interval'] == pytest.approx((4 / 3 - half, 4 / 3 + half), abs=1e-5)
    assert other['mIoU'] == pytest.approx((41 + 44 + 42 + 50) / 4)


def test_one_seed_has_no_spread(tmp_path):
    summaries = summarize([row('a', 0, 40.0), row('b', 0, 41.0)], 'a')
    assert summaries[1]['interval'] is None
    table = format_table(summaries, 'a')
    assert '| b | 1 | 41.00 | +1.00 |' in table
    assert '±' not in table
    plot(summaries, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 5000


def test_titles_name_methods_in_tables():
    summaries = summarize([row('a', 0, 40.0), row('b', 0, 41.0)], 'a')
    table = format_table(summaries, 'a', {'a': 'plain', 'b': 'gated'})
    assert '| gated | 1 | 41.00 | +1.00 |' in table
    assert 'against plain [95 %]' in table
    assert [summary['method'] for summary in summaries] == ['a', 'b']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("config='c.py'", 'missing'),
        ("config='c.py'; methods={}; seeds=(0,); common={}; baseline='a'; speed=3", 'speed'),
        ("config='c.py'; methods=dict(b={}); seeds=(0,); common={}; baseline='a'", "baseline='a' is none of"),
        ("config='c.py'; methods=dict(a={}); seeds=(); common={}; baseline='a'", 'seeds'),
        ("config='c.py'; methods=dict(a={}); seeds=(0,); common={}; baseline='a'; titles=dict(b='c')", 'titles of b'),
    ],
)
def test_bad_suites_are_named(tmp_path, text, message):
    (tmp_path / 's.py').write_text(text.replace('; ', '\n'))
    with pytest.raises(ValueError, match=message) as error:
        load_suite(tmp_path / 's.py')
    assert 's.py' in str(error.value)


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks/suites').glob('*.py')), ids=lambda path: path.stem)
def test_shipped_suites_make_configs(path, monkeypatch, scenes):
    """The options of every cell are valid; data, schedule and head are those of the baseline."""
    monkeypatch.chdir(ROOT)
    suite = load_suite(path)
    monkeypatch.setattr('benchmarks.compare.suite.DATASETS.build', lambda _: range(24))
    # Seeds change the seed only: all methods for the first one, and the baseline for all.
    cells = [cell for cell in suite.cells() if suite.seeds[0] == cell.seed or cell.method == suite.baseline]
    assert len(cells) == len(suite.methods) + len(suite.seeds) - 1
    base = next(cell for cell in cells if cell.method == suite.baseline).config()
    keys = set()
    for cell in cells:
        cfg = cell.config()
        keys.add(cell.key(cfg))
        for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg'):
            if key != 'param_scheduler' or 'warm-up' not in cell.method:  # a suite may search the warm-up
                assert cfg[key] == base[key], (cell.method, key)
        assert cfg.model.decode_head == base.model.decode_head
        assert cfg.randomness.seed == cell.seed
    assert len(keys) == len(cells)


def small_config(tuning='lora', pretrained=True, data_root='/data/camvid', **options):
    """A config whose backbone is printed on one line, with its data at ``data_root``."""
    dataset = dict(data_root=data_root, ann_file=f'{data_root}/train.txt', data_prefix=dict(img_path='images'))
    backbone = dict(tuning=tuning, pretrained=pretrained)
    return Config(dict(model=dict(backbone=backbone), data_root=data_root, train=dict(dataset=dataset), **options))


def test_hash_tells_configs_apart_that_differ_on_the_line_of_the_weights():
    assert len(small_config().pretty_text.splitlines()) < 12  # tuning and pretrained share a line
    hashes = {config_hash(small_config(tuning)) for tuning in ('lora', 'full', 'bias')}
    assert len(hashes) == 3
    assert config_hash(small_config('lora')) == config_hash(small_config('lora', work_dir='/elsewhere'))


def test_hash_follows_the_content_of_the_weights_not_their_path(tmp_path):
    first, copy, other = tmp_path / 'a.pth', tmp_path / 'elsewhere' / 'b.pth', tmp_path / 'c.pth'
    copy.parent.mkdir()
    for path, content in ((first, b'weights'), (copy, b'weights'), (other, b'others!')):
        path.write_bytes(content)
    a, b, c = (config_hash(small_config(pretrained=str(path))) for path in (first, copy, other))
    assert a == b != c
    values = (True, False, str(first), 'missing.pth', 'another.pth')
    assert len({config_hash(small_config(pretrained=value)) for value in values}) == len(values)
    first.write_bytes(b'changed')  # the same size: the cache must not hide it
    assert config_hash(small_config(pretrained=str(first))) not in (a, c)


def test_hash_ignores_where_the_data_is():
    assert config_hash(small_config()) == config_hash(small_config(data_root='/mnt/disk'))
    changed = small_config()
    changed.train.dataset.ann_file = '/data/camvid/part.txt'
    assert config_hash(changed) != config_hash(small_config())
    beside = [small_config(), small_config()]
    beside[0].train.dataset.ann_file, beside[1].train.dataset.ann_file = '/data/camvid2/x.txt', '/data/camvid3/x.txt'
    assert config_hash(beside[0]) != config_hash(beside[1])  # not below data_root


def test_hash_ignores_what_only_records_a_run():
    """Stored rows keep their hash when a config gets another hook that watches."""
    cfgs = [small_config(), small_config(), small_config()]
    for cfg in cfgs:
        cfg.custom_hooks, cfg.default_hooks = [dict(type='StepSeedHook')], dict(checkpoint=dict(interval=5))
    cfgs[1].custom_hooks = [*cfgs[1].custom_hooks, dict(type='RunRecordHook', num_images=2)]
    cfgs[1].default_hooks.checkpoint.save_best = 'mIoU'
    cfgs[2].custom_hooks = [*cfgs[2].custom_hooks, dict(type='EMAHook')]
    hashes = [config_hash(cfg) for cfg in cfgs]
    assert hashes[0] == hashes[1] != hashes[2]


SUITE = """
config = {root!r} + '/configs/davpt_upernet_miniscenes.py'
common = {common}
methods = {{
    'head only': {{'model.backbone.tuning': 'frozen', 'model.backbone.prompts': None, 'model.guidance': None}},
    'DA-VPT': {{'model.backbone.tuning': 'davpt', 'model.backbone.prompts.num': 4, 'custom_hooks': {hooks}}},
}}
seeds = (3,)
baseline = 'head only'
select = {select}
fraction = {fraction}
"""


def write_suite(path, select=False, fraction=1.0):
    common = load_suite(ROOT / 'benchmarks/suites/quick.py').common
    common = {**common, 'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2}
    hooks = [dict(type='PromptAssignmentHook'), dict(type='AttentionMassHook', num_batches=2)]
    hooks += [dict(type='StepSeedHook'), dict(type='EMAHook', momentum=0.1)]
    path.write_text(SUITE.format(root=str(ROOT), common=common, select=select, fraction=fraction, hooks=hooks))
    return path


def test_slices_of_the_training_images(tmp_path, scenes):
    """Selection: every sixth training image is evaluated on and not trained on. A fraction is spread evenly."""
    whole, selection, quarter = (
        load_suite(write_suite(tmp_path / f'{name}.py', *options)).cells()[0].config({'data_root': str(scenes)})
        for name, options in dict(whole=(), selection=(True,), quarter=(False, 0.25)).items()
    )
    assert whole.train_dataloader.dataset.indices == list(range(8))
    assert 'validation' in whole.val_dataloader.dataset.data_prefix.img_path
    assert selection.train_dataloader.dataset.indices == [1, 2, 3, 4, 5, 7]
    assert selection.test_dataloader.dataset.indices == [0, 6]
    assert selection.test_dataloader.dataset.data_prefix == selection.train_dataloader.dataset.data_prefix
    assert not any('Random' in step.type for step in selection.test_dataloader.dataset.pipeline)
    assert quarter.train_dataloader.dataset.indices == [0, 4]


def test_an_interrupted_cell_ends_with_the_same_row(tmp_path, scenes, monkeypatch):
    """Interrupted between two checkpoints; the evaluated weights are the averaged ones (EMA)."""
    suite = load_suite(write_suite(tmp_path / 'suite.py'))
    cell = next(cell for cell in suite.cells() if cell.method == 'DA-VPT')
    options = {'data_root': str(scenes)}
    whole = run_cell(cell.config(options), cell.method, tmp_path / 'whole', keep=True)
    step = IterBasedTrainLoop.run_iter

    def interrupt(self, batch):
        if self.iter == 3:
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(IterBasedTrainLoop, 'run_iter', interrupt)
        run_cell(cell.config(options), cell.method, tmp_path / 'interrupted')
    assert not (tmp_path / 'interrupted/row.json').exists()
    resumed = run_cell(cell.config(options), cell.method, tmp_path / 'interrupted')
    volatile = ('seconds_per_iteration', 'peak_memory_mb')
    assert {k: v for k, v in resumed.items() if k not in volatile} == {
        k: v for k, v in whole.items() if k not in volatile
    }
    state = torch.load(tmp_path / 'whole/iter_4.pth', weights_only=False)
    assert not torch.equal(  # the averaged weights differ from the last ones
        state['state_dict']['decode_head.conv_seg.weight'],
        state['ema_state_dict']['module.decode_head.conv_seg.weight'],
    )


@pytest.mark.parametrize('method', ['head only', 'DA-VPT'])
def test_every_cell_stops_at_inf_and_nan(method, tmp_path, scenes, monkeypatch):
    """Also of a suite that replaces the hooks, and under the same hash."""
    cell = next(cell for cell in load_suite(write_suite(tmp_path / 'suite.py')).cells() if cell.method == method)
    cfg, built = cell.config({'data_root': str(scenes)}), []
    replaced = 'TrainingGuardHook' not in [hook.type for hook in cfg.custom_hooks]
    assert replaced == (method == 'DA-VPT')

    def build(cfg):
        built.extend(hook['type'] for hook in cfg.custom_hooks)
        raise KeyboardInterrupt

    monkeypatch.setattr('benchmarks.compare.cell.Runner.from_cfg', build)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cfg, method, tmp_path / 'cell')
    assert built.count('TrainingGuardHook') == built.count('PairedHeadsHook') == 1


def test_a_cell_is_run_by_one_process_at_a_time(tmp_path, scenes, monkeypatch):
    """A thread takes the place of the cell's process: a lock is held by the file that was opened."""
    suite, out = write_suite(tmp_path / 'suite.py'), tmp_path / 'out'
    cell, options = load_suite(suite).cells()[0], {'data_root': str(scenes)}
    folder = out / 'cells' / cell.key(cell.config(options))
    folder.mkdir(parents=True)
    monkeypatch.setattr(runner, 'ProcessPoolExecutor', lambda jobs, **_: ThreadPoolExecutor(jobs))
    with (folder / 'cell.log').open('w') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match='another process is running this cell'):
            compare(suite, out, only=[cell.method], options=options)


def test_a_suite_is_stopped_continued_and_not_run_again(tmp_path, scenes, capfd):
    suite, out, options = write_suite(tmp_path / 'suite.py'), tmp_path / 'out', {'data_root': str(scenes)}
    compare(suite, out, only=['head only'], minutes=0.02, options=options)  # before the process has imported torch
    stopped = capfd.readouterr().out
    assert '0 cells have finished, 1 to run' in stopped
    assert 'Stopped after 0.02 minutes; the same command continues.' in stopped
    assert not list(out.glob('cells/*/row.json'))
    command = (sys.executable, ROOT / 'tools/compare.py', suite, '--out', out, '--keep', '--cfg-options')
    first = run(*command, f'data_root={scenes}', cwd=tmp_path)
    assert '0 cells have finished, 2 to run' in first
    rows = [json.loads(line) for line in (out / 'rows.jsonl').read_text().splitlines()]
    assert [row['method'] for row in rows] == ['head only', 'DA-VPT']
    assert rows[0]['tuned_trunk'] == 0
    assert rows[1]['tuned_trunk'] == 6 * 4 * 64
    assert rows[0]['tuned_heads'] == rows[1]['tuned_heads'] > 0
    assert rows[0]['eval_images'] == 3
    assert 'attention_after' not in rows[0]
    before, after = rows[1]['attention_before'], rows[1]['attention_after']
    assert before.keys() == after.keys() == {'to_prompts', 'to_own', 'own_by_chance', 'bits'}
    assert before != after
    assert set(rows[0]['versions']) >= {'torch', 'timm', 'mmseg_davpt'}
    assert '| DA-VPT | 1 |' in (out / 'table.md').read_text()
    # A finished cell is not run again. A cell without a row is resumed from its last checkpoint.
    lost = next(out.glob('cells/da-vpt*/row.json'))
    lost.unlink()
    compare(suite, out, keep=True, options=options)
    assert '1 cells have finished, 1 to run' in capfd.readouterr().out
    assert rows[1]['mIoU'] != rows[0]['mIoU']
    again = json.loads(lost.read_text())
    assert again['mIoU'] == rows[1]['mIoU']
    log = (lost.parent / 'cell.log').read_text()
    assert log.count('Saving checkpoint at 4 iterations') == 1  # no iteration was left


class TestPairedHeads:
    def start(self, tuning):
        torch.manual_seed(len(tuning))  # methods draw different amounts of random numbers
        model = MODELS.build(segmentor_cfg(tuning=tuning, guidance=False))
        runner = type('R', (), dict(iter=0, seed=7, model=model, cfg=type('C', (), {})()))()
        runner.cfg.model = segmentor_cfg(tuning=tuning, guidance=False)
        state = torch.get_rng_state()
        PairedHeadsHook().before_train(runner)
        assert torch.equal(state, torch.get_rng_state())
        return model

    def test_heads_start_alike_backbones_do_not(self):
        a, b = self.start('vpt_deep'), self.start('frozen')
        for x, y in zip(a.decode_head.parameters(), b.decode_head.parameters(), strict=True):
            assert torch.equal(x, y)
        assert not torch.equal(a.backbone.trunk.pos_embed, b.backbone.trunk.pos_embed)


class TestAttentionMass:
    def measure(self, model, batches=2):
        torch.manual_seed(5)
        data = []
        for _ in range(batches):
            images, samples = batch(4)
            data.append(dict(inputs=list(images), data_samples=samples))
        return data, attention_mass(model, data)

    @pytest.mark.parametrize('gate', [False, True])
    def test_against_timm_s_softmax(self, gate):
        """Literal attention of the block over [prompts, tokens]; the patches' rows are averaged by class."""
        model = MODELS.build(segmentor_cfg(4, guidance=True, prompts=dict(num=3, gate=gate))).double()
        model.data_preprocessor.double()
        model.guidance.assignments[0].assignment.copy_(torch.tensor([2, 0, 1, 0]))
        data, measured = self.measure(model)
        block, seen = model.backbone.trunk.blocks[5], {}
        table, patches = torch.zeros(4, 3, dtype=torch.float64), 0.0
        for item in data:
            item = model.data_preprocessor(item, training=True)
            handle = block.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
            with torch.no_grad():
                model.eval().backbone(item['inputs'])
            handle.remove()
            tokens = model.backbone.prompts.tokens['5'].expand(len(seen['x']), -1, -1)
            z = block.norm1(torch.cat([tokens, seen['x']], dim=1))
            q, k, _ = block.attn.qkv(z).reshape(len(z), -1, 3, block.attn.num_heads, block.attn.head_dim).unbind(2)
            scores = torch.einsum('bqhd,bkhd->bhqk', q, k) / math.sqrt(block.attn.head_dim)
            scores = scores[..., :3] if gate else scores  # gated prompts have a separate softmax
            mass = scores.softmax(-1).mean(1)[:, 4:, :3]  # behind 3 prompts and the class token
            fractions = model.class_fractions(item['data_samples']).double()
            for c in range(4):
                table[c] += (fractions[..., c, None] * mass).sum((0, 1)).detach()
            patches += fractions.sum().item()
        joint = table / table.sum()
        assert measured['to_prompts'] == pytest.approx(100 * table.sum().item() / patches)
        to_own = joint[0, 2] + joint[1, 0] + joint[2, 1] + joint[3, 0]
        assert measured['to_own'] == pytest.approx(100 * to_own.item())
        entropy = {name: -(p * p.log2()).sum() for name, p in dict(c=joint.sum(1), m=joint.sum(0), cm=joint).items()}
        assert measured['bits'] == pytest.approx((entropy['c'] + entropy['m'] - entropy['cm']).item(), abs=1e-9)

    def test_equal_prompts_carry_no_information(self):
        model = MODELS.build(segmentor_cfg(4, guidance=True))
        with torch.no_grad():
            model.backbone.prompts.tokens['5'].copy_(model.backbone.prompts.tokens['5'][:1].expand(3, -1))
        model.guidance.assignments[0].assignment.copy_(torch.tensor([0, 1, 2, -1]))
        _, measured = self.measure(model)
        assert measured['bits'] == pytest.approx(0, abs=1e-6)
        assert measured['to_own'] == pytest.approx(measured['own_by_chance'], rel=1e-4)

    def test_without_guidance_there_is_no_prompt_of_the_class(self):
        model = MODELS.build(segmentor_cfg(4, guidance=False))
        _, measured = self.measure(model, 1)
        assert set(measured) == {'to_prompts', 'bits'}
