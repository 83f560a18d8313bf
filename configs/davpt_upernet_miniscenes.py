# The embedded default: generated scenes, really pretrained frozen ViT-S/14. `make train` runs it.
_base_ = [
    './_base_/models/davpt_upernet_vit-s14.py',
    './_base_/datasets/miniscenes.py',
    './_base_/schedules/adamw_cpu.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    # 16 classes share the last block's 10 prompts, so that the clustering has work to do.
    backbone=dict(prompts=dict(num=[20] * 11 + [10])),
    guidance=dict(num_classes=16),
    decode_head=dict(num_classes=16),
)
