# Prompts behind gates: what the start and the guidance still matter, and beside which biases. On the selection slice.
config = 'configs/davpt_linear_camvid.py'
__head = 1.6e-2
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {
    'optim_wrapper.optimizer.lr': __head,
    __lr_mult: 2e-3 / __head,
    'model.backbone.prompts.gate': True,
}
__weights = ('model.guidance.weight_patch', 'model.guidance.weight_proto')
methods = {
    'VPT-Deep, gates': {
        'model.guidance': None,
        'model.backbone.tuning': 'vpt_deep',
        'model.backbone.prompts.init': 'xavier',
    },
    'prototype init, gates': dict.fromkeys(__weights, 0.0),
    'recipe': {},
    'recipe, 0.05': dict.fromkeys(__weights, 0.05),
    'recipe, all biases': {'model.backbone.tuning': 'vpt_bias'},
    'recipe, DA-VPT+': {'model.backbone.tuning': 'davpt_plus'},
    'recipe, rate 5e-4': {__lr_mult: 5e-4 / __head},
    'recipe, rate 8e-3': {__lr_mult: 8e-3 / __head},
}
seeds = (0,)
baseline = 'recipe'
select = True
