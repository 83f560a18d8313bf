"""Size of the file of a task, by tuning method.

python -m benchmarks.method_sizes

ViT-S/14 with a linear head for 11 classes, float32. The weights do not matter, so nothing is downloaded or trained.
"""

from __future__ import annotations

import io

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from safetensors.torch import save
from torch import Tensor, nn

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.tasks import TaskFileError, task_backbone, task_state

CONFIG = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
METHODS = {
    'guided prompts, residual': 'davpt_residual',
    'guided prompts, gated': 'davpt_gated',
    'LoRA': 'lora',
    'biases': 'bias',
    'full tuning': 'full',
}


def file_bytes(model: nn.Module) -> int:
    """Size of a task file; of a full checkpoint without optimizer where the method needs one."""
    state = model.state_dict()
    try:
        kept = task_state(task_backbone(model), state, model.backbone.fingerprint())
    except TaskFileError:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.tell()
    return len(save({name: tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)}))


def main() -> None:
    """Print a table."""
    init_default_scope('mmseg')
    print('| method | trainable in the trunk | file |\n| --- | --- | --- |')
    for name, tuning in METHODS.items():
        cfg = Config.fromfile(CONFIG).model
        cfg.backbone.update(pretrained=False, allow_random=True, tuning=tuning)
        if not tuning.startswith('davpt'):
            cfg.backbone.prompts = cfg.guidance = None
        model = MODELS.build(cfg)
        trainable = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
        print(f'| {name} | {trainable / 1e6:.3f} M | {file_bytes(model) / 1e6:.2f} MB |')


if __name__ == '__main__':
    main()
