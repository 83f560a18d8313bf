"""Check all data of a config before training: python tools/check_dataset.py CONFIG

With --map, write masks with other ids instead: python tools/check_dataset.py CONFIG --map 255=1 --out FOLDER
"""

import argparse
import json
import sys
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmengine.config import Config

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.command_line import DictAction
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.datasets.audit import audit_config, format_audit, map_masks, parse_map


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Read every image and mask; exit code 1 if there are errors, 2 if the data cannot be read'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--workers', type=int, help='threads (default: all CPUs)')
    parser.add_argument('--json', help='file for all findings')
    parser.add_argument('--show', type=int, default=5, help='paths to print of each kind (default: 5)')
    parser.add_argument(
        '--allow-missing', nargs='+', default=[], metavar='CLASS', help='classes that may occur in no split'
    )
    parser.add_argument('--map', metavar='OLD=NEW[,...]', help='write masks with other ids to --out, check nothing')
    parser.add_argument('--out', help='folder for the masks of --map; new or empty')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    args = parser.parse_args()
    if (args.map is None) != (args.out is None):
        parser.error('--map and --out belong together')
    return args


def write_masks(cfg: Config, mapping: str, out: str) -> None:
    written, failed = map_masks(cfg, parse_map(mapping), Path(out))
    for folder, number in written.items():
        print(f'{number:,} masks written to {folder}: set data_prefix.seg_map_path={Path(folder).resolve()} for them')
    if failed:
        raise SystemExit('Not written:\n' + '\n'.join(f'  {path}: {why}' for path, why in failed.items()))


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options)
        check_data_roots(cfg)
        if args.map is not None:
            return write_masks(cfg, args.map, args.out)
        audit = audit_config(cfg, args.workers, args.allow_missing)
    except (FileNotFoundError, ValueError) as error:
        print(f'check_dataset: {error}', file=sys.stderr)
        raise SystemExit(2) from error
    print(format_audit(audit, args.show))
    if args.json:
        Path(args.json).write_text(json.dumps(audit.as_dict(), indent=1))
    raise SystemExit(1 if audit.errors else 0)


if __name__ == '__main__':
    main()
