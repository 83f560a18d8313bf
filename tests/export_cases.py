"""Segmentors to export: methods, heads, and a table of errors.

``python tests/export_cases.py [WEIGHTS]`` exports every method with every head and prints the largest error of the
logits; with open size, of two sizes. With WEIGHTS of a DINOv2 ViT-S/14 it takes that trunk, and open sizes only.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from conftest import ROOT, spread
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from small_configs import shrink
from torch import nn

BASE = ROOT / 'configs/_base_/models/davpt-residual_upernet_vit-s14.py'
METHODS = {
    'prompts': dict(tuning='vpt_deep', prompts=dict(num=5)),
    'gated prompts': dict(tuning=dict(prompts=dict(gate=True, num=5))),
    'residual prompts': dict(tuning='vpt_residual', prompts=dict(num=5)),
    'LoRA': dict(tuning='lora'),
    'AdaptFormer': dict(tuning='adaptformer'),
    'bias': dict(tuning='bias'),
}
HEADS = ('linear', 'light UPerNet', 'full UPerNet')
CLASSES = 7


def make_segmentor(method, head, weights=None, **backbone):
    """A segmentor in eval mode whose every parameter matters; tiny, or with the trunk in a file."""
    model = Config.fromfile(BASE).model
    if weights is None:
        shrink(model)
        model.backbone.out_indices = (0, 1, 2, 3)
    model.guidance = None
    model.backbone.pop('prompts', None)
    model.backbone.update(**{**METHODS[method], **backbone})
    width = model.decode_head.in_channels[0]
    model.decode_head.num_classes = CLASSES
    if head == 'linear':
        model.neck = None
        model.backbone.out_indices = (1,) if weights is None else (11,)
        model.decode_head = dict(
            type='LinearBNHead', in_channels=[width], in_index=[0], num_classes=CLASSES, align_corners=False
        )
    elif head == 'full UPerNet':
        model.decode_head.channels = 24 if weights is None else 512
        model.auxiliary_head = dict(
            type='FCNHead', in_channels=width, in_index=2, channels=8, num_classes=CLASSES, norm_cfg=dict(type='BN')
        )
    if weights is not None:
        model.backbone.pretrained = str(weights)
    torch.manual_seed(0)
    built = MODELS.build(model)
    if weights is None:
        spread(built)
    else:
        built.backbone.init_weights()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if 'tuned' in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
        if weights is None:
            for norm in norms:
                norm.running_mean.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 2)
        else:  # the statistics of features of this trunk: as after a training, logits are of order one
            for norm in norms:
                norm.momentum = None  # means over the passes
            built.train()
            for _ in range(2):
                built.decode_head(built.extract_feat(torch.randn(2, 3, 224, 224)))
    palette = [[index * 30, 255 - index * 30, 9] for index in range(CLASSES)]
    built.dataset_meta = dict(classes=tuple('abcdefg'), palette=palette, reduce_zero_label=True)
    return built.eval()


def main():
    from mmseg_davpt.export import export_onnx, export_torch

    init_default_scope('mmseg')
    weights = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    exports = [(export_onnx, None), (export_torch, None)]
    if weights is None:
        exports = [(export_onnx, (192, 256)), (export_onnx, (320, 240)), *exports]
    names = ['open size' if size is None else '{}x{}'.format(*size) for _, size in exports]
    kinds = ['ONNX' if export is export_onnx else 'torch' for export, _ in exports]
    print('| method | head | ' + ' | '.join(map(' '.join, zip(kinds, names))) + ' |')
    print('| --- ' * (2 + len(exports)) + '|', flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            for head in HEADS:
                model, row = make_segmentor(method, head, weights), []
                for (export, size), kind in zip(exports, kinds):
                    errors = export(model, Path(folder, 'a.onnx' if kind == 'ONNX' else 'a.pt2'), size)
                    row.append(f'{max(errors.values()):.1e}')
                print(f'| {method} | {head} | ' + ' | '.join(row) + ' |', flush=True)
    print(f'{time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
