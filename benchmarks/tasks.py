"""Task files in figures: size, memory, mixed batches, load of the demo.

python -m benchmarks.tasks TASK TASK --trunk WEIGHTS [--doc docs/task_files.md] [--seconds 60]
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image
from safetensors.torch import save

import mmseg_davpt  # noqa: F401  (first: its shims)
from benchmarks.speed import time_rounds
from mmseg_davpt import TaskSegmenter
from mmseg_davpt.tasks import task_backbone, task_state

CONFIGS = {
    'ViT-S/14, light UPerNet': 'configs/davpt-gated_vit-s14_upernet_300it_camvid-210x280.py',
    'ViT-B/16, UPerNet': 'configs/davpt_upernet_ade20k.py',
}
MB = 1e6


def sizes() -> list[str]:
    """File sizes, from the configs; the weights do not matter."""
    lines = ['| model | task file | full checkpoint | full checkpoint with AdamW state |', '| --- | --- | --- | --- |']
    for name, path in CONFIGS.items():
        cfg = Config.fromfile(path)
        cfg.model.backbone.update(pretrained=False, allow_random=True)
        model = MODELS.build(cfg.model)
        state = model.state_dict()
        kept = task_state(task_backbone(model), state, model.backbone.fingerprint())
        task = len(save({key: tensor for key, tensor in kept.items() if isinstance(tensor, torch.Tensor)}))
        full = io.BytesIO()
        torch.save(state, full)
        moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
        whole = full.tell()
        lines.append(f'| {name} | {task / MB:.1f} MB | {whole / MB:.1f} MB | {(whole + moments) / MB:.1f} MB |')
    return lines


_MEMORY = """
import sys
import mmseg_davpt, torch, gc
from mmseg_davpt import TaskSegmenter
from mmseg_davpt.tasks.model import build_task
from benchmarks.tasks import resident
mode, number, trunk, *tasks = sys.argv[1:]
before = resident()
if mode == 'shared':
    kept = TaskSegmenter(trunk)
    for index in range(int(number)):
        kept.add_task(str(index), tasks[index % len(tasks)])
else:
    kept = [build_task(tasks[index % len(tasks)], trunk) for index in range(int(number))]
gc.collect()
print(resident() - before)
"""


def resident() -> int:
    """Bytes of this process in memory."""
    kilobytes = re.search(r'VmRSS:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert kilobytes is not None
    return 1024 * int(kilobytes[1])


def memory(tasks: list[str], trunk: str) -> list[str]:
    """Memory of tasks on one trunk and of separate models, each in a fresh process."""
    lines = ['| tasks | on one trunk | separate models |', '| --- | --- | --- |']
    for number in (1, 2, 8):
        figures = []
        for mode in ('shared', 'separate'):
            command = [sys.executable, '-c', _MEMORY, mode, str(number), trunk, *tasks]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures.append(f'{int(out.split()[-1]) / MB:.0f} MB')
        lines.append(f'| {number} | {figures[0]} | {figures[1]} |')
    return lines


def batches(tasks: list[str], trunk: str, rounds: int) -> list[str]:
    """Eight images of two tasks: in one call, one by one, and with two separate models."""
    segmenter = TaskSegmenter(trunk)
    for name, path in zip('ab', tasks):
        segmenter.add_task(name, path)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(8)]
    names = list('abababab')
    separate = {name: TaskSegmenter.load(path, trunk, name) for name, path in zip('ab', tasks)}

    def two_models() -> None:
        for name in 'ab':
            separate[name]([image for image, task in zip(images, names) if task == name])

    runs = {
        'one call, tasks mixed': lambda: segmenter(images, tasks=names),
        'eight calls': lambda: [segmenter(image, task=task) for image, task in zip(images, names)],
        'two models in memory, four images each': two_models,
    }
    measured = time_rounds(runs, rounds)
    base = median(measured['two models in memory, four images each'].times)
    lines = ['| eight images of 224x224, two tasks | seconds | ratio |', '| --- | --- | --- |']
    for name, one in measured.items():
        lines.append(f'| {name} | {median(one.times):.2f} | {median(one.times) / base:.2f} |')
    start = time.perf_counter()
    for _ in range(10000):
        segmenter._find('b')
    switch = (time.perf_counter() - start) / 10000
    return [*lines, '', f'Choosing another task takes {1e6 * switch:.1f} microseconds: no tensor is copied or moved.']


def load(task: str, trunk: str, seconds: float) -> list[str]:
    """Requests per second of the demo's API."""
    from gradio_client import Client, handle_file

    from mmseg_davpt.apis import demo

    folder = tempfile.mkdtemp()
    picture = Path(folder, 'image.png')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(picture)
    segmenter = TaskSegmenter.load(task, trunk, name='task')
    page = demo.build_demo(segmenter)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    lines = ['| clients | requests per second | p50 | p99 | memory |', '| --- | --- | --- | --- | --- |']
    for number in (1, 4, 16):
        times: list[float] = []
        end = time.monotonic() + seconds

        def send(end: float = end, times: list[float] = times) -> None:
            client = Client(address, verbose=False)
            while time.monotonic() < end:
                start = time.monotonic()
                client.predict([handle_file(str(picture))], 'task', 0.5, api_name='/segment')
                times.append(time.monotonic() - start)

        threads = [threading.Thread(target=send) for _ in range(number)]
        before = resident()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        p50, p99 = np.percentile(times, [50, 99])
        lines.append(
            f'| {number} | {len(times) / seconds:.2f} | {p50:.2f} s | {p99:.2f} s | '
            f'{before / MB:.0f} to {resident() / MB:.0f} MB |'
        )
    page.close()
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tasks', nargs=2, help='two task files on one trunk')
    parser.add_argument('--trunk', required=True, help='weights of the trunk')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=60, help='per number of clients; 0: no load')
    parser.add_argument('--doc', help='put the tables into this Markdown file, between <!-- figures --> lines')
    args = parser.parse_args()
    init_default_scope('mmseg')
    parts = {
        'Sizes': sizes(),
        'Memory': memory(args.tasks, args.trunk),
        'Mixed batches': batches(args.tasks, args.trunk, args.rounds),
    }
    if args.seconds:
        parts['Load of the demo'] = load(args.tasks[0], args.trunk, args.seconds)
    text = '\n\n'.join(f'### {title}\n\n' + '\n'.join(lines) for title, lines in parts.items())
    print(text)
    if args.doc:
        path = Path(args.doc)
        before, _, rest = path.read_text().partition('<!-- figures -->\n')
        after = rest.partition('<!-- end -->\n')[2]
        path.write_text(f'{before}<!-- figures -->\n{text}\n<!-- end -->\n{after}')


if __name__ == '__main__':
    main()
