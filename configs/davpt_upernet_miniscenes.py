# Gated DA-VPT on generated scenes, with a pretrained frozen ViT-S/14. `make train` runs it.
_base_ = [
    './_base_/models/davpt-gated_upernet_vit-s14.py',
    './_base_/datasets/miniscenes.py',
    './_base_/schedules/adamw_cpu.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    # 16 classes share the 10 prompts of the last block, so that the clustering matters.
    backbone=dict(prompts=dict(num=[20] * 11 + [10])),
    guidance=dict(num_classes=16),
    decode_head=dict(num_classes=16),
)
