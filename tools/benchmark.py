"""Measure speed and memory: python tools/benchmark.py [--parts trunk guidance ...]; python -m benchmarks.speed"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is not installed
from benchmarks.speed.__main__ import main

if __name__ == '__main__':
    main('python tools/benchmark.py')
