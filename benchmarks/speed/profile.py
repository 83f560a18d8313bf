"""Time of a case by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .goals import table
from .trunk import build_case
from .workload import Workload

ROWS = 10  # operators that a table shows
LARGEST = 5  # costs beyond the arithmetic
# Parts of the names of operators that are the trunk's own arithmetic: products of matrices and attention.
ARITHMETIC = ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm', 'attention', 'convolution', 'gemm')


def profile_cases(workload: Workload, names: Sequence[str], calls: int = 3) -> dict[str, dict[str, float]]:
    """Profile cases one after another with ``torch.profiler``.

    Args:
        workload: Model size, images and device.
        names: Names of :data:`~benchmarks.speed.CASES`.
        calls: Measured calls per case, after one that warms up.

    Returns:
        Case -> operator -> seconds per call, without the operators that it calls in turn: on a GPU the device's time,
        else the CPU's. The largest first.
    """
    cuda = workload.device == 'cuda'
    weights: dict[object, Any] = {}
    results = {}
    for name in names:
        case = build_case(name, workload, weights)
        case()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
            for _ in range(calls):
                case()
        micros = {
            event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
            for event in profiler.key_averages()
        }
        results[name] = {key: micros[key] / 1e6 / calls for key in sorted(micros, key=micros.__getitem__, reverse=True)}
    return results


def beyond_arithmetic(operators: Mapping[str, float]) -> dict[str, float]:
    """The largest operators of a case that are neither products of matrices nor attention -> share of the case."""
    total = sum(operators.values())
    rest = {key: seconds for key, seconds in operators.items() if not any(part in key for part in ARITHMETIC)}
    return {key: rest[key] / total for key in sorted(rest, key=rest.__getitem__, reverse=True)[:LARGEST]}


def format_profile(results: Mapping[str, Mapping[str, float]]) -> str:
    """The operators that take longest in any case, as Markdown; milliseconds and shares."""
    longest: dict[str, float] = {}
    for operators in results.values():
        for key, seconds in operators.items():
            longest[key] = max(seconds, longest.get(key, 0.0))
    shown = sorted(longest, key=longest.__getitem__, reverse=True)[:ROWS]
    totals = {name: sum(operators.values()) for name, operators in results.items()}

    def cell(seconds: float, name: str) -> str:
        return f'{1e3 * seconds:.1f} ({100 * seconds / totals[name]:.1f} %)'

    rows = [
        (f'`{key}`', *(cell(operators.get(key, 0.0), name) for name, operators in results.items())) for key in shown
    ]
    rest = [
        cell(totals[name] - sum(operators.get(key, 0.0) for key in shown), name) for name, operators in results.items()
    ]
    rows += [('all others', *rest), ('sum', *(f'{1e3 * total:.1f}' for total in totals.values()))]
    lines = [
        f'- {name}: ' + ', '.join(f'`{key}` {100 * share:.1f} %' for key, share in beyond_arithmetic(operators).items())
        for name, operators in results.items()
    ]
    return (
        table(('operator, ms without its callees', *results), rows)
        + '\n\nThe largest costs beyond products of matrices and attention:\n\n'
        + '\n'.join(lines)
    )
