# The paper's protocol on PASCAL Context; docs/paper.md lists which settings are from the paper.
_base_ = [
    '../_base_/models/davpt_setr-pup_vit-l16.py',
    '../_base_/datasets/pascal_context59.py',
    '../_base_/schedules/adamw_80k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(img_size=_base_.crop_size),
    decode_head=dict(num_classes=59),
    auxiliary_head=[{**_base_.auxiliary, 'num_classes': 59, 'in_index': index} for index in range(3)],
    test_cfg=dict(crop_size=_base_.crop_size, stride=(320, 320)),
)
