"""Count trainable parameters: python tools/param_report.py CONFIG [MORE CONFIGS]"""

import argparse
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction
from mmengine.registry import init_default_scope

from mmseg_davpt.apis import load_config
from mmseg_davpt.reports import build_shapes, format_comparison, format_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Report the parameters of a model by part, or compare several')
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    models = {}
    for config in args.configs:
        cfg = load_config(config, args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        models[Path(config).stem] = build_shapes(cfg.model)
    print(format_report(*models.values()) if len(models) == 1 else format_comparison(models))


if __name__ == '__main__':
    main()
