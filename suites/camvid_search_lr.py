# Learning rates of what learns in the trunk: three a method, on the selection slice, one seed. The head's rate is the
# same for all; its three are tried with the head alone.
config = 'configs/davpt_linear_camvid.py'
common = {'model.guidance': None}
__head = 4e-3
__tried = {
    'VPT-Deep': ('vpt_deep', (1.25e-3, 5e-3, 2e-2)),
    'VPT + bias': ('vpt_bias', (1e-3, 4e-3, 1.6e-2)),
    'bias': ('bias', (1e-3, 4e-3, 1.6e-2)),
    'LoRA q,v': ('lora', (5e-4, 2e-3, 8e-3)),
    'LoRA qkv+proj': ('lora_all', (5e-4, 2e-3, 8e-3)),
    'AdaptFormer': ('adaptformer', (5e-4, 2e-3, 8e-3)),
    'full': ('full', (2e-5, 6e-5, 2e-4)),
}
methods = {
    f'head only, {__rate:g}': {'model.backbone.tuning': 'frozen', 'optim_wrapper.optimizer.lr': __rate}
    for __rate in (1e-3, __head, 1.6e-2)
}
for __name, (__tuning, __rates) in __tried.items():
    for __rate in __rates:
        methods[f'{__name}, {__rate:g}'] = {
            'model.backbone.tuning': __tuning,
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
        }
seeds = (0,)
baseline = 'head only, 0.004'
select = True
