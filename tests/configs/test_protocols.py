"""How a checkpoint is tested: single and multi scale, per-class results as JSON; and the paper's configs."""

import json
import re
import runpy

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, run, tool
from mmengine.structures import PixelData
from mmseg.apis import init_model
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

import mmseg_davpt
from mmseg_davpt.apis import load_config, prepare_test, save_results
from mmseg_davpt.apis.testing import protocol
from mmseg_davpt.engine import PerClassIoUMetric
from mmseg_davpt.reports import build_shapes, count_parameters

ADE = ROOT / 'configs/davpt_upernet_ade20k.py'
PAPER = ROOT / 'configs/paper'


class TestPerClass:
    """Against counting pixels."""

    def metric(self, masks):
        metric = PerClassIoUMetric()
        metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
        for truth, prediction in masks:
            sample = dict(
                gt_sem_seg=dict(data=torch.tensor(truth)[None]), pred_sem_seg=dict(data=torch.tensor(prediction)[None])
            )
            metric.process({}, [sample])
        return metric, metric.evaluate(len(masks))

    def test_counts(self):
        rng = np.random.default_rng(0)
        truths = rng.integers(0, 3, (2, 6, 6))
        truths[:, 0] = 255
        predictions = rng.integers(0, 2, (2, 6, 6))  # 'c' is never predicted, 'd' is nowhere
        metric, metrics = self.metric(list(zip(truths, predictions)))
        seen = truths != 255
        expected = []
        for index, name in enumerate('abcd'):
            both = int(((truths == index) & (predictions == index)).sum())
            either = int((((truths == index) | (predictions == index)) & seen).sum())
            labeled = int((truths == index).sum())
            iou = round(100 * both / either, 2) if either else None
            expected.append(dict(name=name, IoU=iou, Acc=round(100 * both / labeled, 2) if labeled else None))
        assert metric.classes() == expected
        assert expected[2]['IoU'] == 0
        assert expected[3]['IoU'] is None
        assert metrics['mIoU'] == pytest.approx(np.mean([row['IoU'] for row in expected[:3]]), abs=0.01)

    def test_format_only_keeps_nothing(self, tmp_path):
        metric = PerClassIoUMetric(format_only=True, output_dir=str(tmp_path))
        assert metric.compute_metrics([]) == {}
        assert metric.areas is None


class TestConfigs:
    """What a test does to a config, stock or not."""

    def test_stock_metric_keeps_its_classes(self):
        for evaluator in (
            dict(type='IoUMetric'),
            dict(type=IoUMetric),
            [dict(type='mmseg.IoUMetric'), dict(type='CityscapesMetric')],
        ):
            cfg = load_config(ADE)
            cfg.test_evaluator = evaluator
            prepare_test(cfg, masks='there')
            first = cfg.test_evaluator[0] if isinstance(evaluator, list) else cfg.test_evaluator
            assert first == dict(type='mmseg.PerClassIoUMetric')
            assert cfg.custom_hooks[-1] == dict(type='MaskWriterHook', out_dir='there')
            assert cfg.val_evaluator.type == 'IoUMetric'
        assert cfg.test_evaluator[1] == dict(type='CityscapesMetric')

    def test_what_is_missing_is_named(self):
        cfg = load_config(ADE)
        cfg.pop('tta_pipeline')
        prepare_test(cfg)
        with pytest.raises(ValueError, match='--tta: the config has no tta_pipeline'):
            prepare_test(cfg, multi_scale=True)

    def test_protocol(self):
        cfg = load_config(ADE)
        single = protocol(cfg.model.test_cfg, cfg.test_dataloader.dataset.pipeline)
        assert single == dict(mode='slide', crop_size=(512, 512), stride=(341, 341), scales=[(2048, 512)], flip=False)
        multi = protocol(cfg.model.test_cfg, cfg.tta_pipeline)
        assert multi == dict(single, scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], flip=True)
        assert protocol({}, [dict(type='PackSegInputs')]) == dict(
            mode='whole', crop_size=None, stride=None, scales=[1.0], flip=False
        )
        never = [dict(type='RandomFlip', prob=0.0), dict(type='ResizeToMultiple', size_divisor=32)]
        assert protocol({}, never)['flip'] is False

    def test_unreadable_results_are_not_written(self, tmp_path):
        with pytest.raises(TypeError, match='not JSON serializable'):
            save_results(tmp_path / 'r.json', 'c', 'k', 1, dict(single_scale=dict(metrics=torch.zeros(1))))
        assert not (tmp_path / 'r.json').exists()


@pytest.mark.slow
class TestCommand:
    """tools/test.py on a tiny trained model."""

    @pytest.fixture(scope='class')
    @classmethod
    def checkpoint(cls, tiny_config, scenes, tmp_path_factory):
        """A whole model with random weights; its batch norms know the images, so that these get several classes."""
        torch.manual_seed(0)
        model = init_model(str(tiny_config), device='cpu').train()
        model.backbone.eval()  # in training it would ask for prototypes
        torch.nn.init.normal_(model.decode_head.conv_seg.weight)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        images = [cv2.imread(str(path)) for path in sorted((scenes / 'seed0/images/validation').iterdir())]
        images = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        with torch.no_grad():
            model(model.data_preprocessor(dict(inputs=images))['inputs'], mode='tensor')
        path = tmp_path_factory.mktemp('checkpoint') / 'iter_9.pth'
        torch.save(dict(state_dict=model.state_dict(), meta={}), path)
        return path

    @pytest.fixture(scope='class')
    @classmethod
    def slide(cls, tiny_config, tmp_path_factory):
        """Config of a user: slide mode, two scales, a list with one of mmseg's evaluators."""
        path = tmp_path_factory.mktemp('slide') / 'slide.py'
        path.write_text(f"""
_base_ = {str(tiny_config)!r}
model = dict(test_cfg=dict(mode='slide', crop_size=(240, 240), stride=(160, 80)))
test_cfg = dict(type='TestLoop')  # in float32 on every CPU
test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice'])]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.5, 1.0)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
        [dict(type='LoadAnnotations', reduce_zero_label=True)], [dict(type='PackSegInputs')]])]
""")
        return path

    @pytest.fixture(scope='class')
    @classmethod
    def both(cls, slide, checkpoint, tmp_path_factory):
        """(work dir, printed text, results) of one command with --tta."""
        work_dir = tmp_path_factory.mktemp('both')
        printed = tool(
            'test', slide, checkpoint, '--work-dir', work_dir, '--tta', '--out', work_dir / 'masks', '--show-dir',
            work_dir / 'shown',
        )  # fmt: skip
        return work_dir, printed, json.loads((work_dir / 'test_iter_9.json').read_text())

    def test_one_command_gives_both_numbers(self, both):
        work_dir, printed, results = both
        assert f'Results: {work_dir}/test_iter_9.json' in printed
        for name, key in (('mIoU-SS', 'single_scale'), ('mIoU-MS', 'multi_scale')):
            line = re.search(rf'^{name}: (\S+)', printed, re.M)
            assert float(line[1]) == results[key]['metrics']['mIoU']
        logged = re.findall(r'mIoU: (\S+)  mAcc', printed)  # lines of mmengine
        assert [float(value) for value in logged] == [
            results[key]['metrics']['mIoU'] for key in ('single_scale', 'multi_scale')
        ]
        assert printed.count('per class results') == 2
        assert set(results['multi_scale']['metrics']) >= {'aAcc', 'mIoU', 'mAcc', 'mDice'}

    def test_results_say_how_they_were_made(self, both, slide, checkpoint):
        _, _, results = both
        assert results['config'] == str(slide)
        assert results['checkpoint'] == str(checkpoint)
        assert results['images'] == 3
        assert results['versions']['mmseg_davpt'] == mmseg_davpt.__version__
        assert results['versions']['torch'] == torch.__version__
        assert results['single_scale']['protocol'] == dict(
            mode='slide', crop_size=[240, 240], stride=[160, 80], scales=[[480, 360]], flip=False
        )
        assert results['multi_scale']['protocol'] == dict(
            results['single_scale']['protocol'], scales=[0.5, 1.0], flip=True
        )

    def test_classes_average_to_the_mean(self, both):
        _, _, results = both
        assert results['single_scale']['classes'] != results['multi_scale']['classes']
        classes = mmseg_davpt.datasets.MiniScenesDataset.METAINFO['classes']
        for key in ('single_scale', 'multi_scale'):
            rows = results[key]['classes']
            assert [row['name'] for row in rows] == list(classes)
            for metric in ('IoU', 'Acc'):
                known = [row[metric] for row in rows if row[metric] is not None]
                assert np.mean(known) == pytest.approx(results[key]['metrics'][f'm{metric}'], abs=0.02)

    def test_multi_scale_is_the_mean_of_the_probabilities(self, both, slide, checkpoint, scenes):
        """Against predicting each scale and flip by hand; --out and --show-dir hold this one test's results."""
        work_dir, _, _ = both
        model = init_model(str(slide), str(checkpoint), device='cpu')
        path = sorted((scenes / 'seed0/images/validation').iterdir())[0]
        image = cv2.imread(str(path))
        mean = 0
        for ratio in (0.5, 1.0):
            for flip in (False, True):
                size = (int(image.shape[1] * ratio + 0.5), int(image.shape[0] * ratio + 0.5))
                scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
                scaled = np.ascontiguousarray(scaled[:, ::-1] if flip else scaled)
                sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *image.shape[:2])))
                sample.set_metainfo(dict(img_shape=scaled.shape[:2], ori_shape=image.shape[:2]))
                data = dict(inputs=[torch.from_numpy(scaled).permute(2, 0, 1)], data_samples=[sample])
                with torch.no_grad():
                    logits = model.test_step(data)[0].seg_logits.data
                mean = mean + (logits.flip(-1) if flip else logits).softmax(0)
        mask = cv2.imread(str(work_dir / 'masks' / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        assert len(np.unique(mask)) > 2
        assert (mask - 1 == mean.argmax(0).numpy()).mean() > 0.999
        assert len(list((work_dir / 'shown').rglob('*.png'))) == 3

    def test_each_test_has_its_picture(self, both):
        work_dir, printed, _ = both
        for name in ('picture_grid.png', 'picture_grid_multi_scale.png'):
            assert f'Picture grid (image | truth | prediction): {work_dir / name}' in printed
        single, multi = (cv2.imread(str(work_dir / f'picture_grid{name}.png')) for name in ('', '_multi_scale'))
        assert single.shape == multi.shape
        assert (single != multi).any()

    def test_results_are_written_before_a_picture_fails(self, slide, checkpoint, tmp_path, monkeypatch):
        existing = []

        def fail(*_, **__):
            existing.extend(tmp_path.glob('*.json'))
            raise ValueError('no such color')

        monkeypatch.setattr('mmseg_davpt.engine.pictures.draw_grid', fail)
        command = ['test.py', slide, checkpoint, '--work-dir', tmp_path]
        monkeypatch.setattr('sys.argv', [str(word) for word in command])
        runpy.run_path(str(ROOT / 'tools/test.py'), run_name='__main__')
        assert existing == [tmp_path / 'test_iter_9.json']
        assert json.loads(existing[0].read_text())['single_scale']['metrics']['mIoU'] >= 0

    def test_two_processes_write_the_same_once(self, both, slide, checkpoint, tmp_path):
        """Three images on two ranks: one of them is tested twice, and counts once."""
        chosen = tmp_path / 'here/chosen.json'
        run(
            ROOT / 'tools/dist_test.sh', slide, checkpoint, 2, '--work-dir', tmp_path, '--tta', '--json', chosen,
            MASTER_PORT=free_port(),
        )  # fmt: skip
        assert json.loads(chosen.read_text()) == both[2]


class TestPaper:
    """Tuned parameters of the paper's protocol, by hand: ViT-L/16 at 512, SETR-PUP, 150 or 59 classes."""

    WIDTH, DEPTH, CHANNELS = 1024, 24, 256

    def setr(self, classes):
        """A decode head of 4 convolutions and three auxiliary ones of 2, each behind a layer norm."""

        def head(convolutions):
            inputs = [self.WIDTH] + [self.CHANNELS] * (convolutions - 1)
            batch_norms = 2 * self.CHANNELS * convolutions
            kernels = sum(9 * channels * self.CHANNELS for channels in inputs)
            return 2 * self.WIDTH + kernels + batch_norms + (self.CHANNELS + 1) * classes

        return head(4) + 3 * head(2)

    def trunk(self, size):
        """Everything up to the last block; the heads norm for themselves, so the final norm is not used."""
        d = self.WIDTH
        block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d  # attention, MLP, two norms
        stem = 3 * 16 * 16 * d + d + d + ((size // 16) ** 2 + 1) * d  # patches, class token, positions
        return self.DEPTH * block + stem

    @pytest.mark.parametrize(
        ('data', 'classes', 'size'), [('ade20k-512x512', 150, 512), ('pascal-context59-480x480', 59, 480)]
    )
    def test_counts(self, data, classes, size):
        d, blocks = self.WIDTH, self.DEPTH
        by_hand = dict(
            head=0,
            bias=blocks * (3 * d + d + 4 * d + d + 2 * d) + d,  # qkv, proj, fc1, fc2, norms; patch embedding
            vpt=20 * blocks * d,
            davpt=20 * blocks * d,
            full=self.trunk(size),
        )
        by_hand['davpt-plus'] = 20 * blocks * d + 2 * blocks * d
        schedule = '160k' if data.startswith('ade20k') else '80k'
        for name, trunk in by_hand.items():
            cfg = load_config(PAPER / f'{name}_vit-l16_setr-pup_{schedule}_{data}.py')
            model = build_shapes(cfg.model)
            assert next(model.parameters()).is_meta
            counts = count_parameters(model)
            assert counts['heads'] == (self.setr(classes),) * 2, name
            assert sum(tuned for tuned, _ in counts.values()) == trunk + self.setr(classes), name

    def test_page_holds_the_paper_and_these_counts(self, monkeypatch, capsys):
        """docs/paper.md against the paper's table in docs/method.md, and against the tool."""
        method = (ROOT / 'docs/method.md').read_text().split('## What the paper reports')[1]
        paper = dict(re.findall(r'^\| ([\w+ -]+?) \| ([\d.]+) M \|', method, re.M))
        page = (ROOT / 'docs/paper.md').read_text()
        rows = {row[0]: row[1:] for row in re.findall(r'^\| ([\w+ -]+?) \| ([\d.]+) M \| ([\d.]+) M \|', page, re.M)}
        assert rows.keys() == paper.keys()
        assert len(rows) == 6
        names = {'full': 'full', 'head only': 'head', 'bias': 'bias', 'VPT-Deep': 'vpt', 'DA-VPT': 'davpt'}
        names['DA-VPT+'] = 'davpt-plus'
        configs = [str(PAPER / f'{names[row]}_vit-l16_setr-pup_160k_ade20k-512x512.py') for row in rows]
        monkeypatch.setattr('sys.argv', ['param_report.py', *configs])
        runpy.run_path(str(ROOT / 'tools/param_report.py'), run_name='__main__')
        printed = capsys.readouterr().out
        for row, (theirs, ours) in rows.items():
            assert theirs == paper[row]
            assert re.search(
                rf'^{names[row]}_vit-l16_setr-pup_160k_ade20k-512x512 .* {re.escape(ours)}$', printed, re.M
            )
