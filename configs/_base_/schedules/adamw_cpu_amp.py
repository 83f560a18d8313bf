# adamw_cpu.py in bfloat16 autocast where the CPU has instructions for it, elsewhere (GPUs, too) in float32.
_base_ = './adamw_cpu.py'
optim_wrapper = dict(type='CpuAmpOptimWrapper', dtype='auto')
val_cfg = dict(type='CpuAmpValLoop')
test_cfg = dict(type='CpuAmpTestLoop')
