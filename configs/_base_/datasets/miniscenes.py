# Generated on first use; see mmseg_davpt/datasets/miniscenes.
_base_ = './camvid.py'
dataset_type = 'MiniScenesDataset'
data_root = 'data/miniscenes'
crop_size = (224, 224)
train_pipeline = [step for step in _base_.train_pipeline if step.type != 'PhotoMetricDistortion']
train_pipeline[3].update(scale=(320, 240), ratio_range=(1.0, 1.5))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
# CheckedLoadAnnotations: ids are 1 to 16, 0 is unlabeled
train_pipeline[2].update(reduce_zero_label=True, num_classes=16)
test_pipeline[1].update(reduce_zero_label=True, num_classes=16)
tta_pipeline[1].transforms[2][0].update(reduce_zero_label=True, num_classes=16)
train_dataloader = dict(
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
