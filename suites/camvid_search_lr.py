# Learning rates of what learns in the trunk: three a method, on the selection slice, one seed. The head's rate (4e-3)
# is the same for all and was searched with the head alone.
config = 'configs/davpt_linear_camvid.py'
common = {}
__rates = {
    'VPT-Deep': ({'model.backbone.tuning': 'vpt_deep'}, (2e-3, 5e-3, 1.25e-2)),
    'full': ({'model.backbone.tuning': 'full'}, (2e-5, 6e-5, 2e-4)),
    'LoRA q,v': ({'model.backbone.tuning': 'lora'}, (5e-4, 2e-3, 8e-3)),
    'bias': ({'model.backbone.tuning': 'bias'}, (1e-3, 4e-3, 1.6e-2)),
    'VPT + bias': ({'model.backbone.tuning': 'vpt_bias'}, (1e-3, 4e-3, 1.6e-2)),
    'AdaptFormer': ({'model.backbone.tuning': 'adaptformer'}, (5e-4, 2e-3, 8e-3)),
}
methods = {'head only': {'model.backbone.tuning': 'frozen', 'model.guidance': None}}
for __rate in (1e-3, 1.6e-2):
    methods[f'head only, {__rate:g}'] = {**methods['head only'], 'optim_wrapper.optimizer.lr': __rate}
for __name, (__options, __tried) in __rates.items():
    for __rate in __tried:
        methods[f'{__name}, {__rate:g}'] = {
            **__options,
            'model.guidance': None,
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / 4e-3,
        }
seeds = (0,)
baseline = 'head only'
select = True
