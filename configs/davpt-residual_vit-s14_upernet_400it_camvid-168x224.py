# The base of the comparisons with a light UPerNet on CamVid (docs/results.md).
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-s14.py',
    './_base_/datasets/camvid_168x224.py',
    './_base_/schedules/adamw_400it_cpu.py',
    './_base_/comparison_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(168, 224)),
    guidance=dict(num_classes=11),
    decode_head=dict(num_classes=11),
    test_cfg=dict(mode='slide', crop_size=(168, 224), stride=(96, 128), slide_batch=9),
)
