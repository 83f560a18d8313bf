# Masks hold class id + 1, and 0 for pixels of no class: PascalContextDataset59 reduces them by one.
_base_ = './_common.py'
dataset_type = 'PascalContextDataset59'
data_root = 'data/VOCdevkit/VOC2010'
crop_size = (480, 480)
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=59)  # CheckedLoadAnnotations
train_pipeline[3].update(scale=(520, 520))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline[1].update(scale=(520, 520))  # Resize
test_pipeline[2].update(num_classes=59)
tta_pipeline[1].transforms[2][0].update(num_classes=59)
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ann_file='ImageSets/SegmentationContext/train.txt',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ann_file='ImageSets/SegmentationContext/val.txt',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
