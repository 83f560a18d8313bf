# Frozen ViT-B/16, supervised on ImageNet-21k (augreg); residual DA-VPT with 20 prompts per block; UPerNet.
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
model = dict(
    type='PromptedEncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='PromptedViT',
        arch='vit_base_patch16_224.augreg_in21k',
        pretrained=True,
        img_size=(512, 512),
        out_indices=(2, 5, 8, 11),
        tuning='davpt_residual',  # prompts that start as class prototypes; their values start at zero
        prompts=dict(num=20),  # per block
    ),
    guidance=dict(  # the metric loss
        type='MetricGuidance',
        num_classes=150,
        blocks=(-1,),  # the last block, the best choice in the paper
        sample_space='query',  # prototypes of the patches' queries ...
        prompt_space='key',  # ... against the keys of the prompts, as in attention
        weight_patch=0.05,  # beta:   prototypes of each image <-> prompts
        weight_proto=0.05,  # lambda: prototypes of the batch  <-> prompts
        center_prototypes=True,  # subtract their mean first
    ),
    neck=dict(type='Feature2Pyramid', embed_dim=768, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
