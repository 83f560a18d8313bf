"""Task files in figures: size, memory, mixed batches, load of the demo.

python -m benchmarks.tasks TASK TASK --trunk WEIGHTS [--doc docs/task_files.md] [--seconds 60]
"""

from __future__ import annotations

import argparse
import io
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image
from safetensors.torch import save

import mmseg_davpt  # noqa: F401  (first: its shims)
from benchmarks.speed import time_rounds
from mmseg_davpt import TaskSegmenter
from mmseg_davpt.tasks import describe_task, read_task, task_backbone, task_state, write_task
from mmseg_davpt.tasks.file import SUFFIX
from mmseg_davpt.tasks.mixture import can_mix, mix_backbones

CONFIGS = {
    'ViT-S/14, light UPerNet': 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py',
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
import ctypes, sys
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
ctypes.CDLL(None).malloc_trim(0)  # without what was freed while loading
print(resident() - before)
"""


def resident(process: int | str = 'self') -> int:
    """Bytes of a process in memory."""
    kilobytes = re.search(r'VmRSS:\s+(\d+) kB', Path(f'/proc/{process}/status').read_text())
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


def on_whole_images(tasks: list[str], folder: Path) -> list[str]:
    """The same tasks, for images that are neither resized nor cut into windows: then two tasks can share a batch."""
    paths = []
    for index, task in enumerate(tasks):
        info, tensors = read_task(task)
        model = {**info.model, 'test_cfg': dict(mode='whole')}
        paths.append(str(folder / f'{index}{SUFFIX}'))
        write_task(paths[-1], replace(info, model=model, resize=None), tensors)
    return paths


def batches(tasks: list[str], trunk: str, rounds: int) -> list[str]:
    """Eight images of two tasks: in one call, one by one, and with two separate models."""
    tasks = on_whole_images(tasks, Path(tempfile.mkdtemp()))
    segmenter = TaskSegmenter(trunk)
    for name, path in zip('ab', tasks):
        segmenter.add_task(name, path)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(8)]
    names = list('abababab')
    assert can_mix(*(segmenter._find(name).model for name in 'ab'))  # one pass through the trunk
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
    return lines


def switching() -> list[str]:
    """Time to choose another task, and to join two tasks for a mixed batch, on a ViT-B/16 with random weights."""
    folder = Path(tempfile.mkdtemp())
    cfg = Config.fromfile(CONFIGS['ViT-B/16, UPerNet'])
    trunk = timm.create_model(cfg.model.backbone.arch, num_classes=0).state_dict()
    torch.save(trunk, folder / 'trunk.pth')
    cfg.model.backbone.pretrained = str(folder / 'trunk.pth')
    cfg.model.auxiliary_head = None  # a task file leaves it out
    classes = [f'class {index}' for index in range(cfg.model.decode_head.num_classes)]
    meta = dict(classes=classes, palette=[[index] * 3 for index in range(len(classes))])
    segmenter = TaskSegmenter(folder / 'trunk.pth')
    for name in 'ab':
        model = MODELS.build(cfg.model)
        model.init_weights()
        fingerprint = model.backbone.fingerprint()
        info = describe_task(cfg, meta, model, fingerprint)
        path = folder / f'{name}{SUFFIX}'
        write_task(path, info, task_state(task_backbone(model), model.state_dict(), fingerprint))
        segmenter.add_task(name, path)
    vits = [segmenter._find(name).model.backbone for name in 'ab']
    assert all(a is b for a, b in zip(*(vit.trunk.parameters() for vit in vits)))  # one trunk in memory
    times = []
    for run in (lambda: segmenter._find('b'), lambda: mix_backbones(vits, (4, 4))):
        start = time.perf_counter()
        for _ in range(1000):
            run()
        times.append((time.perf_counter() - start) / 1000)
    return [
        '| two tasks on one ViT-B/16, UPerNet | time |',
        '| --- | --- |',
        f'| choose another task | {1e6 * times[0]:.1f} microseconds |',
        f'| join both for a mixed batch | {1e3 * times[1]:.2f} ms |',
        '',
        'No tensor of the trunk is copied or moved.',
    ]


def load(task: str, trunk: str, seconds: float) -> list[str]:
    """Requests per second of the demo's API, from clients in another process; memory of the server."""
    from gradio_client import Client, handle_file

    picture = Path(tempfile.mkdtemp(), 'image.png')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(picture)
    name = Path(task).name.removesuffix(SUFFIX)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, 'tools/demo.py', task, '--trunk', trunk, '--port', str(port)])
    lines = ['| clients | requests per second | p50 | p99 | memory of the server |', '| --- | --- | --- | --- | --- |']

    def send(client: Client, end: float, times: list[float]) -> None:
        while time.monotonic() < end:
            start = time.monotonic()
            client.predict([handle_file(str(picture))], name, 0.5, api_name='/segment')
            times.append(time.monotonic() - start)

    try:
        first = _connect(Client, f'http://127.0.0.1:{port}')
        send(first, time.monotonic() + seconds / 2, [])  # memory and caches are filled
        for number in (1, 4, 16):
            clients = [Client(first.src, verbose=False) for _ in range(number)]
            times: list[float] = []
            before, end = resident(server.pid), time.monotonic() + seconds
            threads = [threading.Thread(target=send, args=(client, end, times)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            p50, p99 = np.percentile(times, [50, 99])
            lines.append(
                f'| {number} | {len(times) / seconds:.2f} | {p50:.2f} s | {p99:.2f} s | '
                f'{before / MB:.0f} to {resident(server.pid) / MB:.0f} MB |'
            )
    finally:
        server.terminate()
        server.wait()
    return lines


def _connect(kind: Any, address: str) -> Any:
    """A client, as soon as the server answers."""
    end = time.monotonic() + 120
    while True:
        try:
            return kind(address, verbose=False)
        except Exception:  # refused, or not ready
            if time.monotonic() > end:
                raise
            time.sleep(1)


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
        'Switching': switching(),
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
