"""Ctrl-C ends a training after its iteration, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mmengine.dist import all_reduce, get_world_size
from torch import tensor

_requested = threading.Event()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the first ctrl-C (SIGINT) request a stop, and a second one end the process as usual.

    :class:`~mmseg_davpt.engine.SafeCheckpointHook` then saves a checkpoint and raises ``KeyboardInterrupt``. Enter the
    context before the data loaders start their workers: they get the signal too, and must not end of it. Outside of
    the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        if _requested.is_set():
            raise KeyboardInterrupt
        _requested.set()

    _requested.clear()
    before = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _requested.clear()


def stop_requested() -> bool:
    """Whether a stop was requested on any rank: the same value on all ranks, in the same iteration."""
    if get_world_size() == 1:
        return _requested.is_set()
    votes = tensor(float(_requested.is_set()))
    all_reduce(votes)
    return bool(votes)
