# Frozen ViT-S/14 in DINOv2 layout; residual DA-VPT with 20 prompts per block; a light UPerNet.
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],  # the statistics of these weights
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    type='PromptedEncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='PromptedViT',
        arch='vit_small_patch14_dinov2',
        pretrained='weights/vit_small_patch14_dinov2.safetensors',  # tools/get_weights.py makes it
        out_indices=(2, 5, 8, 11),
        tuning='davpt_residual',
        prompts=dict(num=20),
    ),
    guidance=dict(
        type='MetricGuidance', num_classes=150, sample_space='query', prompt_space='key', center_prototypes=True
    ),
    neck=dict(type='Feature2Pyramid', embed_dim=384, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[384, 384, 384, 384],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=64,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
