# Frozen ViT-L/16, supervised on ImageNet-21k (augreg); DA-VPT with 20 prompts per block; SETR-PUP with three auxiliary
# heads.
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],  # the statistics of these weights, not ImageNet's
    std=[127.5, 127.5, 127.5],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512),
)
head = dict(
    type='SETRUPHead',
    in_channels=1024,
    channels=256,
    num_classes=150,
    dropout_ratio=0,
    norm_cfg=norm_cfg,
    kernel_size=3,
    align_corners=False,
)
auxiliary = dict(
    **head,
    num_convs=2,
    up_scale=4,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
)
model = dict(
    type='PromptedEncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='PromptedViT',
        arch='vit_large_patch16_224.augreg_in21k',
        pretrained=True,
        img_size=(512, 512),
        out_indices=(9, 14, 19, 23),
        norm_outputs=False,  # each head normalizes its input
        tuning='davpt',
        prompts=dict(num=20),
    ),
    guidance=dict(type='MetricGuidance', blocks=(-1,), weight_patch=0.05, weight_proto=0.05),
    decode_head=dict(
        **head,
        in_index=3,
        num_convs=4,
        up_scale=2,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[dict(**auxiliary, in_index=index) for index in range(3)],
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
