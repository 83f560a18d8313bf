# Masks hold class id + 1, and 0 for no data: LoveDADataset reduces them by one.
_base_ = './_common.py'
dataset_type = 'LoveDADataset'
data_root = 'data/loveDA'
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(1024, 1024))  # Resize
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=_base_.train_pipeline,
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
