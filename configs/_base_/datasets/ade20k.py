_base_ = './_common.py'
dataset_type = 'ADE20KDataset'
data_root = 'data/ade/ADEChallengeData2016'
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
# CheckedLoadAnnotations: ids are 1 to 150, 0 is unlabeled
train_pipeline[2].update(reduce_zero_label=True, num_classes=150)
test_pipeline[2].update(reduce_zero_label=True, num_classes=150)
tta_pipeline[1].transforms[2][0].update(reduce_zero_label=True, num_classes=150)
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
