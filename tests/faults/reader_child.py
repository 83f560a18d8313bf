"""Read files in a process of its own, with limits on memory and time. Used by the tests of this folder.

Argument: a file with a JSON list of [file, intact file]. Prints one JSON line per file: outcome, seconds, megabytes,
and what the log says about checksums (None: nothing was read, or the file is a checkpoint).
"""

import json
import re
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from foreign_formats import vit
from mmengine.logging import HistoryBuffer

from mmseg_davpt.weights import load_trunk_weights
from mmseg_davpt.weights.checkpoints import load_checkpoint

SECONDS = 20
MEGABYTES = 1024
EXPECTED = ('WeightsError', 'UnsafeFileError', 'ValueError')


def read(path):
    """Weights through the public function, with its line; checkpoints of a training as --resume reads them."""
    if Path(path).name.startswith('iter_'):
        return load_checkpoint(path), None
    trunk = vit()
    line = load_trunk_weights(trunk, 'vit', str(path))
    return trunk.state_dict(), re.search(r'(Not c|C)hecked: .*', line)[0]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, HistoryBuffer):
        return np.array_equal(a.data[0], b.data[0])
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return repr(a) == repr(b)


def expire(*_):
    raise BaseException('too slow')  # not caught as a damaged file


def outcome_of(path, intact):
    try:
        signal.alarm(SECONDS)
        content, check = read(path)
        signal.alarm(0)
    except BaseException as error:
        signal.alarm(0)
        name = type(error).__name__
        named = name in EXPECTED and str(path) in str(error) and 'MemoryError' not in str(error)
        return ('refused: ' if named else f'FAILED {name}: ') + str(error), None
    if intact is None:
        return 'loaded', check
    return 'identical' if same(content, read(intact)[0]) else 'other values', check


def main():
    torch.set_num_threads(1)
    read_once = vit()  # all imports
    del read_once
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    signal.signal(signal.SIGALRM, expire)
    for path, intact in json.loads(Path(sys.argv[1]).read_text()):
        start = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, check = outcome_of(path, intact)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        seconds = time.perf_counter() - start
        line = dict(file=path, outcome=outcome, seconds=seconds, megabytes=growth, check=check)
        print(json.dumps(line), flush=True)
