# Masks hold class ids 0 to 170, and 255 for unlabeled pixels.
_base_ = './_common.py'
dataset_type = 'COCOStuffDataset'
data_root = 'data/coco_stuff164k'
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=171)  # CheckedLoadAnnotations
test_pipeline[2].update(num_classes=171)
tta_pipeline[1].transforms[2][0].update(num_classes=171)
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
