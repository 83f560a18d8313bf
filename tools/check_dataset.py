"""Check all data of a config before training: python tools/check_dataset.py CONFIG"""

import argparse
import json
import sys
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.datasets.audit import audit_config, format_audit


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Read every image and mask; exit code 1 if there are errors, 2 if the data cannot be read'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--workers', type=int, help='threads (default: all CPUs)')
    parser.add_argument('--json', help='file for all findings')
    parser.add_argument('--show', type=int, default=5, help='paths to print of each kind (default: 5)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options)
        check_data_roots(cfg)
        audit = audit_config(cfg, args.workers)
    except (FileNotFoundError, ValueError) as error:
        print(f'check_dataset: {error}', file=sys.stderr)
        raise SystemExit(2) from error
    print(format_audit(audit, args.show))
    if args.json:
        Path(args.json).write_text(json.dumps(audit.as_dict(), indent=1))
    raise SystemExit(1 if audit.errors else 0)


if __name__ == '__main__':
    main()
