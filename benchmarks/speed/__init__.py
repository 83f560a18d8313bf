"""Speed and memory, measured on the same workload in one run."""

from .assignment import assignment_cost, exchange, exchanged_bytes, format_assignment, ring_seconds
from .components import (
    data_rate,
    evaluation_case,
    evaluation_cost,
    format_data,
    format_evaluation,
    format_guidance,
    guidance_case,
    guidance_cost,
    workers,
)
from .goals import GOALS, Goal, case_table, check_goals, goal_table, plot
from .measure import Case, environment, measurement, peak_memory, ratio, time_rounds
from .profile import format_profile, profile_cases
from .runner import PARTS, Options, fill_document, run_benchmark
from .trunk import CASES, PromptTokens, available_cases, build_case, trunk_cost
from .workload import Workload

__all__ = [
    'CASES',
    'GOALS',
    'PARTS',
    'Case',
    'Goal',
    'Options',
    'PromptTokens',
    'Workload',
    'assignment_cost',
    'available_cases',
    'build_case',
    'case_table',
    'check_goals',
    'data_rate',
    'environment',
    'evaluation_case',
    'evaluation_cost',
    'exchange',
    'exchanged_bytes',
    'fill_document',
    'format_assignment',
    'format_data',
    'format_evaluation',
    'format_guidance',
    'format_profile',
    'goal_table',
    'guidance_case',
    'guidance_cost',
    'measurement',
    'peak_memory',
    'plot',
    'profile_cases',
    'ratio',
    'ring_seconds',
    'run_benchmark',
    'time_rounds',
    'trunk_cost',
    'workers',
]
