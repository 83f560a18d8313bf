# The frame of the comparisons on CamVid: frozen ViT-S/14, batch norm and a linear layer on the last block's map, crops
# of 168x224, bfloat16 autocast on a CPU, averaged weights (EMA) at the end. Suites change what learns, nothing else.
_base_ = ['../davpt_upernet_camvid.py']
iterations = 400
crop_size = (168, 224)
train_pipeline = [
    dict(type='SeedPerDraw'),
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(out_indices=(11,)),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='LinearBNHead',
        in_channels=[384],
        in_index=[0],
        num_classes=11,
        dropout_ratio=0.1,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
optim_wrapper = dict(
    type='CpuAmpOptimWrapper',
    paramwise_cfg=dict(
        custom_keys=dict(
            # Everything that learns in the backbone; lr_mult is searched for each method.
            backbone=dict(lr_mult=1.25, decay_mult=0.0),
        )
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100))
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='ParamReportHook'),
    dict(type='PromptAssignmentHook', num_batches=40),
    dict(type='EMAHook', momentum=0.01),
]
