"""Task files: what was trained on a frozen trunk, without the trunk."""

from .description import TaskFileError, TaskInfo, describe_task, plain_model_config
from .file import is_task_file, read_info, read_task, task_backbone, task_checkpoint, task_state, write_task

__all__ = [
    'TaskFileError',
    'TaskInfo',
    'describe_task',
    'is_task_file',
    'plain_model_config',
    'read_info',
    'read_task',
    'task_backbone',
    'task_checkpoint',
    'task_state',
    'write_task',
]
