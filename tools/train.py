"""Train a model: python tools/train.py configs/davpt_upernet_ade20k.py"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction
from mmengine.runner import Runner

from mmseg_davpt.apis import enable_amp, load_config, prepare_launcher
from mmseg_davpt.apis.checks import check_classes, check_schedule
from mmseg_davpt.datasets import check_data_roots, check_sampler


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument('--resume', action='store_true', help='continue from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 autocast on a CPU)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_data_roots(cfg)
    check_sampler(cfg)
    check_schedule(cfg)
    check_classes(cfg)
    if args.amp:
        enable_amp(cfg)
    cfg.resume = args.resume or cfg.get('resume', False)
    prepare_launcher(cfg, args.launcher)
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
