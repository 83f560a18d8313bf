"""A full checkpoint -> a task file."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ..tasks import describe_task, task_backbone, task_state, write_task
from .inference import load_segmentor


def task_from_checkpoint(cfg: Config, checkpoint: str | Path, out: str | Path, trust_checkpoint: bool = False) -> None:
    """Write the task file of a checkpoint.

    Args:
        cfg: Config of the run.
        checkpoint: Checkpoint of the whole model, with the names and colors of the classes.
        out: File to write, ``NAME.task.safetensors``.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        TaskFileError: The task cannot be kept in a file; see :class:`~mmseg_davpt.engine.TaskFileHook`.
        ValueError: The checkpoint does not fit the config.
        WeightsError: It is damaged or cannot be read safely.
    """
    model = load_segmentor(cfg, checkpoint, trust_checkpoint=trust_checkpoint)
    backbone = task_backbone(model)
    fingerprint = backbone.fingerprint()
    info = describe_task(cfg, model.dataset_meta, model, fingerprint)
    write_task(out, info, task_state(backbone, model.state_dict(), fingerprint))
