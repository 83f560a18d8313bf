"""Where the time of a case goes, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.profiler import ProfilerActivity, profile

from .goals import table
from .trunk import build_case
from .workload import Workload

ROWS = 10  # operators that a table shows


def profile_cases(load: Workload, names: Sequence[str], calls: int = 3) -> dict[str, dict[str, float]]:
    """Profile cases one after another with ``torch.profiler``.

    Args:
        load: What they work on.
        names: Which of :data:`~mmseg_davpt.benchmark.CASES`.
        calls: Calls of each that count, after one that warms up.

    Returns:
        Case -> operator -> seconds a call that it spends itself, not in operators that it calls: on a GPU the device's
        time, else the CPU's. The largest first.
    """
    cuda = load.device == 'cuda'
    weights: dict = {}
    found = {}
    for name in names:
        case = build_case(name, load, weights)
        case()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
            for _ in range(calls):
                case()
        micros = {
            event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
            for event in profiler.key_averages()
        }
        found[name] = {key: micros[key] / 1e6 / calls for key in sorted(micros, key=micros.get, reverse=True)}
    return found


def format_profile(found: Mapping[str, Mapping[str, float]]) -> str:
    """The operators that take longest in any case, in Markdown; milliseconds and shares."""
    longest: dict[str, float] = {}
    for own in found.values():
        for key, seconds in own.items():
            longest[key] = max(seconds, longest.get(key, 0.0))
    shown = sorted(longest, key=longest.get, reverse=True)[:ROWS]
    totals = {name: sum(own.values()) for name, own in found.items()}

    def cell(seconds: float, name: str) -> str:
        return f'{1e3 * seconds:.1f} ({100 * seconds / totals[name]:.1f} %)'

    rows = [(f'`{key}`', *(cell(own.get(key, 0.0), name) for name, own in found.items())) for key in shown]
    rest = (cell(totals[name] - sum(own.get(key, 0.0) for key in shown), name) for name, own in found.items())
    rows += [('all others', *rest), ('sum', *(f'{1e3 * total:.1f}' for total in totals.values()))]
    return table(('operator, its own ms', *found), rows)
