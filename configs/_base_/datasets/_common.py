# Common to all datasets: steps of the pipelines, loaders, evaluators. A dataset file changes steps by their index
# and names its files; sizes here are those of ADE20K. CheckedLoadAnnotations gets the number of classes in the
# file of the dataset.
crop_size = (512, 512)
train_pipeline = [
    dict(type='SeedPerDraw'),
    dict(type='CheckedLoadImageFromFile'),
    dict(type='CheckedLoadAnnotations'),  # 2
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),  # 3
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),  # 4
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),  # mmseg's inference functions need this name
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),  # 1
    dict(type='CheckedLoadAnnotations'),  # 2, after Resize: the truth keeps its size
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='CheckedLoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    timeout=100,  # seconds without a batch until the training ends; 0, which torch requires, without workers
    sampler=dict(type='ReplayableSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    timeout=100,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
