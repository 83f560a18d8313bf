"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT"""

import argparse
from pathlib import Path
from typing import Any

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper

from mmseg_davpt.apis import (
    checked_checkpoints,
    load_config,
    prepare_launcher,
    prepare_test,
    run_multi_scale,
    run_single_scale,
    save_results,
)
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.engine import PictureGridHook, QuietRunner, open_screens
from mmseg_davpt.reports import format_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for logs and pictures (default: work_dirs/CONFIG)')
    parser.add_argument('--tta', action='store_true', help='also test on several scales, flipped and not (mIoU-MS)')
    parser.add_argument('--json', help='file for the results (default: WORK_DIR/test_CHECKPOINT.json)')
    parser.add_argument('--out', help='folder for predicted masks (with --tta: of the multi-scale test)')
    parser.add_argument(
        '--show-dir', help='folder for image | truth | prediction (with --tta: of the multi-scale test)'
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that the checkpoint holds')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_data_roots(cfg)
    cfg.load_from = args.checkpoint
    prepare_test(cfg, args.tta, args.out, args.show_dir)
    prepare_launcher(cfg, args.launcher)
    runner = QuietRunner.from_cfg(cfg)
    open_screens(runner.logger, cfg.get('log_level', 'INFO'))
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    grid = PictureGridHook(draw_after_test=False)
    runner.register_hook(grid)
    tests = dict(single_scale=(run_single_scale, 'picture_grid.png'))
    if args.tta:
        tests['multi_scale'] = (run_multi_scale, 'picture_grid_multi_scale.png')
    path = args.json or Path(runner.work_dir, f'test_{Path(args.checkpoint).stem}.json')
    results, pictures = {}, []
    with checked_checkpoints(runner, args.trust_checkpoint):
        for name, (run_test, picture) in tests.items():
            results[name] = run_test(runner, cfg)
            if is_main_process():  # results first: an error in a picture must not lose them
                save_results(path, args.config, args.checkpoint, len(runner.test_dataloader.dataset), results)
                pictures.append(grid.draw(runner, Path(runner.work_dir, picture)))
    if is_main_process():
        print()
        for name, result in zip(('mIoU-SS', 'mIoU-MS'), results.values()):
            print(f'{name}: {result["metrics"].get("mIoU", "no IoUMetric")}  ({describe(result["protocol"])})')
        print(f'\n{format_report(model)}\n\nResults: {path}\nCheckpoint: {args.checkpoint}')
        for file in filter(None, pictures):
            print(f'Picture grid (image | truth | prediction): {file}')


def describe(protocol: dict[str, Any]) -> str:
    """One line: slide 512x512, stride 341x341, 6 scales, flip."""
    size, stride = ('x'.join(map(str, protocol[key] or ())) for key in ('crop_size', 'stride'))
    words = [f'slide {size}, stride {stride}' if size else 'whole', f'scales {protocol["scales"]}']
    return ', '.join([*words, 'flip'] if protocol['flip'] else words)


if __name__ == '__main__':
    main()
