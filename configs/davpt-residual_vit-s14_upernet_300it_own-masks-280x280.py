# Your images and index masks: edit the five lines, then run tools/check_dataset.py and tools/train.py.
_base_ = [
    './_base_/models/davpt-residual_upernet_vit-s14.py',
    './_base_/datasets/own_masks.py',
    './_base_/schedules/adamw_cpu.py',
    './_base_/default_runtime.py',
]
classes = ('background', 'object')  # class of id 0, of id 1, ...; 255 in a mask is ignored
data_root = 'data/own_masks'  # or --cfg-options data_root=PATH; for its layout see _base_/datasets/own_masks.py
img_suffix = '.jpg'
seg_map_suffix = '.png'
reduce_zero_label = False  # True: ids are 1, 2, ..., and 0 is ignored
# Nothing to edit below.
__files = dict(data_root=data_root, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix)
__dataset = dict(metainfo=dict(classes=classes), reduce_zero_label=reduce_zero_label, **__files)
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=len(classes))  # CheckedLoadAnnotations
test_pipeline[2].update(num_classes=len(classes))
tta_pipeline[1].transforms[2][0].update(num_classes=len(classes))
train_dataloader = dict(dataset=dict(**__dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**__dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=(280, 280)),
    guidance=dict(num_classes=len(classes)),
    decode_head=dict(num_classes=len(classes)),
)
