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
from .overview import compiled_step, format_compiled, run_overview
from .prediction import file_cases, format_prediction, prediction_cost, validation_cases
from .profile import beyond_arithmetic, format_profile, profile_cases
from .runner import PARTS, Options, fill_document, run_benchmark
from .scale import counted_exchange, format_scale, large_trunk
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
    'beyond_arithmetic',
    'build_case',
    'case_table',
    'check_goals',
    'compiled_step',
    'counted_exchange',
    'data_rate',
    'environment',
    'evaluation_case',
    'evaluation_cost',
    'exchange',
    'exchanged_bytes',
    'file_cases',
    'fill_document',
    'format_assignment',
    'format_compiled',
    'format_data',
    'format_evaluation',
    'format_guidance',
    'format_prediction',
    'format_profile',
    'format_scale',
    'goal_table',
    'guidance_case',
    'guidance_cost',
    'large_trunk',
    'measurement',
    'peak_memory',
    'plot',
    'prediction_cost',
    'profile_cases',
    'ratio',
    'ring_seconds',
    'run_benchmark',
    'run_overview',
    'time_rounds',
    'trunk_cost',
    'validation_cases',
    'workers',
]
