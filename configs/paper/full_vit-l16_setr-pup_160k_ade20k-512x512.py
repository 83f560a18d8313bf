# Every weight of the trunk is trainable, at a learning rate for full fine-tuning.
_base_ = './davpt_vit-l16_setr-pup_160k_ade20k-512x512.py'
model = dict(backbone=dict(tuning='full', prompts=None, drop_path_rate=0.1), guidance=None)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    paramwise_cfg=dict(custom_keys={'tuned.blocks': dict(lr_mult=1.0), 'tuned.stem': dict(lr_mult=1.0)}),
)
