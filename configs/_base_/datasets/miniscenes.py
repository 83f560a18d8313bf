# Generated on first use; see mmseg_davpt/datasets/miniscenes.
_base_ = './camvid.py'
dataset_type = 'MiniScenesDataset'
data_root = 'data/miniscenes'
crop_size = (224, 224)
train_pipeline = [step for step in _base_.train_pipeline if step.type != 'PhotoMetricDistortion']
scale = (480, 360)  # the images have 320x240 pixels: enlarged, as a patch of the trunk is 14 pixels wide
train_pipeline[3].update(scale=scale, ratio_range=(0.75, 1.5))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
test_pipeline.insert(1, dict(type='Resize', scale=scale, keep_ratio=True))
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(scale[0] * r), int(scale[1] * r)), keep_ratio=True) for r in (0.75, 1.0, 1.25)
]
# CheckedLoadAnnotations: ids are 1 to 16, 0 is unlabeled
train_pipeline[2].update(reduce_zero_label=True, num_classes=16)
test_pipeline[2].update(reduce_zero_label=True, num_classes=16)
tta_pipeline[1].transforms[2][0].update(reduce_zero_label=True, num_classes=16)
train_dataloader = dict(
    num_workers=1,  # the other one of two CPU cores trains
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
