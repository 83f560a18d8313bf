# UPerNet behind MultiLevelNeck, as in mmseg's own ViT configs.
_base_ = '../davpt_upernet_ade20k.py'
model = dict(
    neck=dict(
        _delete_=True,
        type='MultiLevelNeck',
        in_channels=[768, 768, 768, 768],
        out_channels=768,
        scales=[4, 2, 1, 0.5],
    ),
)
