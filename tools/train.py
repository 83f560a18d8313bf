"""Train a model: python tools/train.py configs/davpt_upernet_ade20k.py"""

import argparse
import sys

import mmseg_davpt  # noqa: F401  (first: its shims)

from mmseg_davpt.apis import (
    checked_checkpoints,
    enable_amp,
    exclusive_work_dir,
    explained_worker_errors,
    load_config,
    prepare_launcher,
)
from mmseg_davpt.apis.checks import check_config
from mmseg_davpt.apis.command_line import DictAction
from mmseg_davpt.engine import QuietRunner, RunSummaryHook, stoppable
from mmseg_davpt.packaged import tool_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument('--resume', action='store_true', help='continue from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 autocast on a CPU)')
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that the checkpoint holds')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_config(cfg)
    if args.amp:
        enable_amp(cfg)
    cfg.resume = args.resume or cfg.get('resume', False)
    with exclusive_work_dir(cfg.work_dir, args.launcher), explained_worker_errors(), stoppable():
        prepare_launcher(cfg, args.launcher)
        runner = QuietRunner.from_cfg(cfg)
        runner.register_hook(RunSummaryHook())
        with checked_checkpoints(runner, args.trust_checkpoint):
            try:
                runner.train()
            except KeyboardInterrupt as interrupt:
                print(f'\n{interrupt or "Stopped at once"}\nContinue: {resume_command()}', flush=True)
                raise SystemExit(130) from None  # as shells report a process that ctrl-C has ended


def resume_command() -> str:
    """This command, with --resume; tools/dist_train.sh has started a launcher with it."""
    config, *options = sys.argv[1:]
    resume = [] if '--resume' in options else ['--resume']
    command = tool_command('train', config, *resume, *options)
    return command if '--launcher' not in options else 'the same command with --resume'


if __name__ == '__main__':
    main()
