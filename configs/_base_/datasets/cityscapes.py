# Masks hold the 19 train ids, and 255 for pixels that are not evaluated.
_base_ = './_common.py'
dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes'
crop_size = (512, 1024)
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=19)  # CheckedLoadAnnotations
train_pipeline[3].update(scale=(2048, 1024))  # RandomResize
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
test_pipeline[1].update(scale=(2048, 1024))  # Resize
test_pipeline[2].update(num_classes=19)
tta_pipeline[1].transforms[2][0].update(num_classes=19)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
