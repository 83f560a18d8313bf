# Residual DA-VPT for PASCAL Context: frozen ViT-B/16, guided prompts, UPerNet.
# python tools/prepare_dataset.py pascal-context59
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-b16.py',
    './_base_/datasets/pascal_context59.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(img_size=(480, 480)),
    guidance=dict(num_classes=59),
    decode_head=dict(num_classes=59),
    auxiliary_head=dict(num_classes=59),
    test_cfg=dict(crop_size=(480, 480), stride=(320, 320)),
)
