# Residual DA-VPT for Cityscapes: frozen ViT-B/16, guided prompts, UPerNet.
# python tools/prepare_dataset.py cityscapes
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-b16.py',
    './_base_/datasets/cityscapes.py',
    './_base_/schedules/adamw_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    backbone=dict(img_size=(512, 1024)),
    guidance=dict(num_classes=19),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(512, 1024), stride=(341, 683)),
)
