_base_ = './_common.py'
dataset_type = 'CamVidDataset'
data_root = 'data/camvid'
crop_size = (210, 280)  # whole patches of 14
train_pipeline, tta_pipeline = _base_.train_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=11)  # CheckedLoadAnnotations
train_pipeline[3].update(scale=(480, 360), ratio_range=(0.75, 1.5))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline = [step for step in _base_.test_pipeline if step.type != 'Resize']  # all images are 480x360
test_pipeline[1].update(num_classes=11)
tta_pipeline[1].transforms[2][0].update(num_classes=11)
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)]
train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
