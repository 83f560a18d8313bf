# Every weight of the trunk learns, at a rate for that.
_base_ = './davpt_setr-pup_vit-l16_ade20k-512x512.py'
model = dict(backbone=dict(tuning='full', drop_path_rate=0.1), guidance=None)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    paramwise_cfg=dict(custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}),
)
