# A short schedule that two CPU cores finish in minutes.
_base_ = './adamw_160k.py'
optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(
        custom_keys={
            'tuned': dict(lr_mult=0.5),  # 2e-3
            'tuned.prompts': dict(lr_mult=1.25),  # 5e-3
            'tuned.shallow_prompts': dict(lr_mult=1.25),
            'tuned.blocks': dict(lr_mult=0.005),  # 2e-5
            'tuned.stem': dict(lr_mult=0.005),
        }
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, by_epoch=False),  # to the end of the training
]
train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=300))
