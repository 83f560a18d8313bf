# Full fine-tuning: every weight of the trunk is trainable, at mmseg's learning rate for ViT.
_base_ = './davpt_upernet_ade20k.py'
model = dict(backbone=dict(tuning='full', prompts=None, drop_path_rate=0.1), guidance=None)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    paramwise_cfg=dict(custom_keys={'tuned.blocks': dict(lr_mult=1.0), 'tuned.stem': dict(lr_mult=1.0)}),
)
