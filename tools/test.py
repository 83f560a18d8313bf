"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmengine.config import DictAction
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.engine import load_config, prepare_launcher, require_complete, use_tta
from mmseg_davpt.tuning import format_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for logs and pictures (default: work_dirs/CONFIG)')
    parser.add_argument('--out', help='folder for predicted masks')
    parser.add_argument('--show-dir', help='folder for painted images')
    parser.add_argument('--tta', action='store_true', help='several scales and flip')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_data_roots(cfg)
    cfg.load_from = args.checkpoint
    if args.tta:
        use_tta(cfg)
    if args.out:
        cfg.test_evaluator.output_dir = args.out
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, interval=1)
        cfg.visualizer.save_dir = args.show_dir
    cfg.setdefault('custom_hooks', []).append(dict(type='PictureGridHook'))
    prepare_launcher(cfg, args.launcher)
    runner = Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    model = model.module if args.tta else model
    require_complete(model, args.checkpoint)
    runner.test()
    if is_main_process():
        print(f'\n{format_report(model)}\n\nCheckpoint: {args.checkpoint}')
        print(f'Picture grid (image | truth | prediction): {runner.work_dir}/picture_grid.png')


if __name__ == '__main__':
    main()
