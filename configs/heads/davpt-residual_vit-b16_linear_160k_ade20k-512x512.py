# Batch norm and one linear layer (DINOv2's linear protocol): results depend mostly on the trunk.
_base_ = '../davpt_upernet_ade20k.py'
model = dict(
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='LinearBNHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        dropout_ratio=0,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
