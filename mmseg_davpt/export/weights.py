"""Segmentors as weight files: a full checkpoint, a task file, or a trunk for timm."""

from __future__ import annotations

from pathlib import Path

import mmengine
import mmseg
import torch
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from safetensors.torch import save_file

from ..files import replacing
from ..models import PromptedViT
from ..tasks import describe_task, task_backbone, task_state, write_task
from ..version import __version__


def save_full(model: EncoderDecoder, cfg: Config, out: str | Path) -> None:
    """Write a checkpoint of the whole segmentor, trunk included, without an optimizer.

    Args:
        model: The segmentor, with its weights and ``dataset_meta``.
        cfg: Its config.
        out: File to write; mmseg's ``init_model``, ``load_from`` and the command lines read it.

    Raises:
        WeightsError: The trunk's weights were never loaded.
    """
    if isinstance(model.backbone, PromptedViT):
        model.backbone.require_weights()
    meta = dict(
        dataset_meta=dict(model.dataset_meta),
        cfg=cfg.pretty_text,
        mmengine_version=mmengine.__version__,
        mmseg_version=mmseg.__version__,
        mmseg_davpt_version=__version__,
    )
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    with replacing(out) as temporary:
        torch.save(dict(meta=meta, state_dict=state), temporary)


def save_task(model: EncoderDecoder, cfg: Config, out: str | Path) -> None:
    """Write a task file: everything but the frozen trunk.

    Args:
        model: The segmentor, with its weights and ``dataset_meta``.
        cfg: Its config.
        out: File to write, ``NAME.task.safetensors``.

    Raises:
        TaskFileError: The task cannot be kept in a file; see :class:`~mmseg_davpt.engine.TaskFileHook`.
        WeightsError: The trunk's weights were never loaded.
    """
    backbone = task_backbone(model)
    fingerprint = backbone.fingerprint()
    info = describe_task(cfg, model.dataset_meta, model, fingerprint)
    write_task(out, info, task_state(backbone, model.state_dict(), fingerprint))


def save_timm(backbone: PromptedViT, out: str | Path) -> str:
    """Write the trunk with all methods merged into it, as safetensors under timm's names.

    Args:
        backbone: The backbone, with its weights.
        out: File to write.

    Returns:
        The Python call that loads it.

    Raises:
        ValueError: A method cannot be merged; the message says why.
        WeightsError: The trunk's weights were never loaded.
    """
    backbone.require_weights()
    state = backbone.merged_trunk()
    if backbone.trunk.pooled_norm:  # build_trunk gave timm's fc_norm the place of the final norm
        state = {
            name.replace('norm.', 'fc_norm.', 1) if name.startswith('norm.') else name: state[name] for name in state
        }
    tensors = {name: value.cpu().contiguous() for name, value in state.items()}
    with replacing(out) as temporary:
        save_file(tensors, temporary, metadata=dict(format='pt'))
    sizes = ''
    trunk = backbone.trunk
    if tuple(trunk.patch_embed.img_size) != tuple(trunk.pretrained_cfg['input_size'][-2:]):
        sizes = f', img_size={tuple(trunk.patch_embed.img_size)}'
    return (
        f'timm.create_model({backbone.arch!r}, pretrained=True, pretrained_cfg_overlay=dict(file={str(out)!r}), '
        f'num_classes=0{sizes})'
    )
