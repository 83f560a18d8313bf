# The base of the comparisons with a light UPerNet on CCP: 33 classes, more than a block has prompts (docs/results.md).
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-s14.py',
    './_base_/datasets/ccp_224x168.py',
    './_base_/comparison_runtime.py',
    './_base_/schedules/adamw_400it_cpu.py',
]
model = dict(
    data_preprocessor=dict(size=(224, 168)),
    guidance=dict(num_classes=33),
    decode_head=dict(num_classes=33),
    test_cfg=dict(mode='slide', crop_size=(224, 168), stride=(112, 56), slide_batch=4),
)
