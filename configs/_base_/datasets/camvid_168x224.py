# CamVid in crops that two CPU cores can afford.
_base_ = './camvid.py'
crop_size = (168, 224)
train_pipeline = _base_.train_pipeline
train_pipeline[4].update(crop_size=crop_size)  # RandomCrop
train_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0)
test_dataloader = val_dataloader
