# Residual DA-VPT for COCO-Stuff 164k: frozen ViT-B/16, guided prompts, UPerNet.
# python tools/prepare_dataset.py coco-stuff164k
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-b16.py',
    './_base_/datasets/coco-stuff164k.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    guidance=dict(num_classes=171),
    decode_head=dict(num_classes=171),
    auxiliary_head=dict(num_classes=171),
)
