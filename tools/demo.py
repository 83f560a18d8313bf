"""Try task files in a browser: python tools/demo.py TASK.task.safetensors ... --trunk WEIGHTS"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)
import torch

from mmseg_davpt import TaskSegmenter
from mmseg_davpt.tasks.file import SUFFIX


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='A web page that segments images by task files')
    parser.add_argument('tasks', nargs='+', help='task files')
    parser.add_argument('--trunk', default='timm', help="weights of the trunk: a file, or timm for timm's hub")
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--auth', metavar='USER:PASSWORD', help='require a login')
    parser.add_argument('--title', default='Segment images')
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        from mmseg_davpt.apis import demo
    except ImportError as error:
        raise SystemExit(f"the demo needs gradio: pip install 'mmseg-davpt[demo]' ({error})") from error
    auth = demo.check_auth(args.auth)
    if args.host not in ('127.0.0.1', 'localhost', '::1') and auth is None:
        print(f'Warning: {args.host} can be reached from other machines, and needs no login (--auth).')
    segmenter = TaskSegmenter(args.trunk, device=args.device, max_pixels=demo.MAX_PIXELS)
    for path in args.tasks:
        segmenter.add_task(path.rpartition('/')[2].removesuffix(SUFFIX), path)
    page = demo.build_demo(segmenter, args.title)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        auth=auth,
        max_file_size=demo.MAX_FILE_SIZE,
        show_error=True,
        share=False,
        state_session_capacity=demo.SESSIONS,
        footer_links=['api'],
    )


if __name__ == '__main__':
    main()
