# The schedule of the comparisons: 400 iterations in bfloat16 on a CPU, averaged weights. Each suite sets the learning
# rates: of the head, and by lr_mult of the parameters in the backbone.
_base_ = './adamw_cpu.py'
optim_wrapper = dict(
    type='CpuAmpOptimWrapper',
    paramwise_cfg=dict(custom_keys=dict(_delete_=True, backbone=dict(lr_mult=1.25, decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=400, by_epoch=False),
]
train_cfg = dict(max_iters=400)
test_cfg = dict(fp16=True)  # bfloat16, on a CPU
default_hooks = dict(checkpoint=dict(interval=100, save_best=None))
