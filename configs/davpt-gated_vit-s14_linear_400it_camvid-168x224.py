# The base of the comparisons (docs/results.md). Each suite sets lr_mult, the learning rate in the backbone.
_base_ = [
    './_base_/models/davpt-gated_linear_vit-s14.py',
    './_base_/datasets/camvid_168x224.py',
    './_base_/schedules/adamw_cpu.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(168, 224)),
    guidance=dict(num_classes=11),
    decode_head=dict(num_classes=11),
    test_cfg=dict(mode='slide', crop_size=(168, 224), stride=(96, 128), slide_batch=9),
)
optim_wrapper = dict(
    type='CpuAmpOptimWrapper',
    paramwise_cfg=dict(custom_keys=dict(_delete_=True, backbone=dict(lr_mult=1.25, decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=400, by_epoch=False),
]
train_cfg = dict(max_iters=400)
test_cfg = dict(fp16=True)  # bfloat16, on a CPU
default_hooks = dict(checkpoint=dict(interval=100))
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='ParamReportHook'),
    dict(type='PromptAssignmentHook', num_batches=40),
    dict(type='EMAHook', momentum=0.01),
]
