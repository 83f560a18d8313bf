# CCP, 33 classes, 224 pixels wide: small enough for two CPU cores. The photos are 320 wide and about 480 high.
_base_ = './_common.py'
dataset_type = 'CCPDataset'
data_root = 'data/ccp'
crop_size = (224, 168)  # whole patches of 14
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=33)  # CheckedLoadAnnotations
train_pipeline[3].update(scale=(10000, 224), ratio_range=(0.75, 1.5))  # RandomResize; 10000: no limit of the height
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline[1].update(scale=(10000, 224))  # Resize
test_pipeline[2].update(num_classes=33)
tta_pipeline[1].transforms[2][0].update(num_classes=33)
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(10000, s), keep_ratio=True) for s in (168, 224, 280)]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    timeout=0,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    timeout=0,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
