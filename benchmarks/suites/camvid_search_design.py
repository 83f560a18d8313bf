# One change at a time in the recipe (gated DA-VPT), on the selection slice.
config = 'configs/davpt-residual_vit-s14_linear_400it_camvid-168x224.py'
__head, __rate = 1.6e-2, 2e-3
common = {
    'optim_wrapper.optimizer.lr': __head,
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': __rate / __head,
    'model.backbone.tuning': 'davpt_gated',
    'model.backbone.prompts.gate': True,
}
__num = 'model.backbone.prompts.num'
__shared = {__num: [20] * 11 + [4]}  # 11 classes, 4 prompts in the guided block
# The recipe before there were gates.
__first = {
    'model.backbone.prompts.gate': False,
    'model.guidance.sample_space': 'attn_out',
    'model.guidance.prompt_space': 'query',
    'model.guidance.weight_patch': 0.005,
    'model.guidance.weight_proto': 0.005,
}
methods = {
    'recipe': {},
    'random init': {'model.backbone.prompts.init': 'xavier'},
    '5 prompts': {__num: 5},
    '10 prompts': {__num: 10},
    '50 prompts': {__num: 50},
    'shared by classes, refreshed': __shared,
    'shared by classes, fixed': {**__shared, 'custom_hooks.2.interval': 0},
    'patch term alone': {'model.guidance.weight_proto': 0.0},
    'prototype term alone': {'model.guidance.weight_patch': 0.0},
    'all blocks guided': {'model.guidance.blocks': tuple(range(12))},
    'key and value biases': {'model.backbone.tuning': 'davpt_gated_plus'},
    'all biases': {'model.backbone.tuning': 'davpt_gated_bias'},
    'no norm on the map': {'model.backbone.norm_outputs': False},
    'first recipe': __first,
    'first recipe, all biases': {**__first, 'model.backbone.tuning': 'davpt_gated_bias'},
    'first recipe, all biases and norms': {
        **__first,
        'model.backbone.tuning': dict(_delete_=True, prompts=dict(init='prototype'), bias='all', norm=True),
    },
}
seeds = (0, 1, 2)
baseline = 'recipe'
titles = {'recipe': 'gated DA-VPT'}
select = True
