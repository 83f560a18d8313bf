# One thing changed at a time in the recipe before it had gates: on the selection slice.
config = 'configs/davpt_linear_camvid.py'
__head, __rate = 1.6e-2, 2e-3
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: __rate / __head, 'model.backbone.prompts.gate': False}
__num, __blocks = 'model.backbone.prompts.num', 'model.guidance.blocks'
__shared = {__num: [20] * 11 + [4]}  # 11 classes, 4 prompts in the guided block
methods = {
    'recipe': {},
    'all biases, too': {'model.backbone.tuning': 'vpt_bias'},
    'all biases and norms, too': {'model.backbone.tuning': dict(_delete_=True, prompts=True, bias='all', norm=True)},
    '5 prompts': {__num: 5},
    '10 prompts': {__num: 10},
    '50 prompts': {__num: 50},
    'shared by classes, refreshed': __shared,
    'shared by classes, fixed': {**__shared, 'custom_hooks.2.interval': 0},
    'patch term alone': {'model.guidance.weight_proto': 0.0},
    'prototype term alone': {'model.guidance.weight_patch': 0.0},
    'last four blocks guided': {__blocks: (-4, -3, -2, -1)},
    'all blocks guided': {__blocks: tuple(range(12))},
    'no norm on the map': {'model.backbone.norm_taps': False},
    'rate 5e-4': {__lr_mult: 5e-4 / __head},
    'rate 8e-3': {__lr_mult: 8e-3 / __head},
}
seeds = (0,)
baseline = 'recipe'
select = True
