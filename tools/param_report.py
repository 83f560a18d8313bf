"""Count what learns, by part: python tools/param_report.py CONFIG"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmengine.config import DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_davpt.engine import load_config
from mmseg_davpt.tuning import format_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Report the parameters of a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    print(format_report(MODELS.build(cfg.model)))


if __name__ == '__main__':
    main()
