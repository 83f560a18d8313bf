# Frozen ViT-S/14; batch norm and one linear layer (DINOv2's linear protocol): results depend mostly on the trunk.
_base_ = './davpt-residual_upernet_vit-s14.py'
model = dict(
    backbone=dict(out_indices=(11,)),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='LinearBNHead',
        in_channels=[384],
        in_index=[0],
        dropout_ratio=0.1,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
