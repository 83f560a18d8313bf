# A folder of images and one of index masks, named in the leaf config, which also names the classes:
#   DATA_ROOT/images/train/a.jpg       DATA_ROOT/images/val/b.jpg        (with or without subfolders)
#   DATA_ROOT/annotations/train/a.png  DATA_ROOT/annotations/val/b.png   (same names, 8 bits, one channel)
_base_ = './_common.py'
dataset_type = 'BaseSegDataset'
crop_size = (280, 280)  # whole patches of 14
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[3].update(scale=(640, 480), ratio_range=(0.75, 1.5))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline[1].update(scale=(640, 480))  # Resize
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(640 * r), int(480 * r)), keep_ratio=True) for r in (0.75, 1.0, 1.25)
]
train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
