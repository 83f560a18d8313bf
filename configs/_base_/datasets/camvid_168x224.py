# CamVid in crops that are small enough for two CPU cores.
_base_ = './camvid.py'
crop_size = (168, 224)
train_pipeline = _base_.train_pipeline
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
train_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0)
test_dataloader = val_dataloader
