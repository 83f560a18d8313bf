"""Functions for command lines and notebooks: config loading, testing, inference."""

from ..version import library_versions
from .checkpoints import checked_checkpoints, require_complete, safe_checkpoints
from .inference import find_images, segment_images
from .launch import enable_amp, leave_process_group, load_config, prepare_launcher
from .processes import exclusive_work_dir, explained_worker_errors
from .testing import (
    prepare_test,
    run_multi_scale,
    run_single_scale,
    save_results,
)

__all__ = [
    'checked_checkpoints',
    'enable_amp',
    'exclusive_work_dir',
    'explained_worker_errors',
    'find_images',
    'leave_process_group',
    'library_versions',
    'load_config',
    'prepare_launcher',
    'prepare_test',
    'require_complete',
    'run_multi_scale',
    'run_single_scale',
    'safe_checkpoints',
    'save_results',
    'segment_images',
]
