# Masks hold class id + 1, and 0 for no data: LoveDADataset reduces them by one.
_base_ = './_common.py'
dataset_type = 'LoveDADataset'
data_root = 'data/loveDA'
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=7)  # CheckedLoadAnnotations
test_pipeline[1].update(scale=(1024, 1024))  # Resize
test_pipeline[2].update(num_classes=7)
tta_pipeline[1].transforms[2][0].update(num_classes=7)
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
